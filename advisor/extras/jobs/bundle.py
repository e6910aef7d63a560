"""Everything a plan needs on another machine, in one folder and one archive: the plan, its data,
its model if that is a folder, this version of the product, and a script that sets up and runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from advisor.export.exporter import Wanted
from advisor.ground.errors import InputError

NAME = "bundle"
HELP = "everything to run it on another machine"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()


def export(wanted: Wanted) -> int:
    """Write the bundle of a plan file and say what is in it and how it is used."""
    from advisor.extras.jobs.pack import make_bundle

    if wanted.only is not None:
        raise InputError(
            "--only has no effect on a bundle: it carries the whole plan",
            hint="on the other machine: bash run.sh --only NAME",
        )
    bundle = make_bundle(wanted.source, wanted.out, say=wanted.say)
    for line in bundle.lines(Path.cwd()):
        wanted.say(line)
    wanted.document.update(bundle.facts())
    return 0
