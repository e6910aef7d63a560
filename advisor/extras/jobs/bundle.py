"""Everything a plan needs on another machine, in one folder and one archive: the plan, its data,
its model if that is a folder, this version of the product, and a script that sets up and runs.
"""

from __future__ import annotations

from typing import Literal

from advisor.export.exporter import Wanted

NAME = "bundle"
HELP = "everything to run it on another machine"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()


def export(wanted: Wanted) -> int:
    """Write the bundle of a plan file and say what is in it and how it is used."""
    from advisor.extras.jobs.pack import write_bundle

    return write_bundle(wanted)
