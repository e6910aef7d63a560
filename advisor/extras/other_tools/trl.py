"""A plan as a configuration of TRL, with its data and how it is started."""

from __future__ import annotations

from typing import Literal

from advisor.export.exporter import Wanted

NAME = "trl"
HELP = "the file of TRL, with its data"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()


def export(wanted: Wanted) -> int:
    """Write the files and say what is in them."""
    from advisor.extras.other_tools.files import write_files

    for line in write_files(NAME, wanted.source, wanted.out, only=wanted.only).lines():
        wanted.say(line)
    return 0
