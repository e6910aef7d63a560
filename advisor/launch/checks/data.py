"""Whether the data of each stage can be trained on.

Every stage is checked with the file it names, so that the first call of `advise run` refuses what
any later call would refuse, and no call refuses what the trainers accept.
"""

from __future__ import annotations

from collections.abc import Iterator

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.launch.call import Call

PHASE = "plan"


def check(call: Call) -> Checked:
    """Data that cannot be read or do not suit their stages, and too few rows."""
    bad = [*call.data.faults, *_too_few_rows(call)]
    return Checked(bad=bad, warnings=call.data.warnings)


def _too_few_rows(call: Call) -> Iterator[Fault]:
    processes = call.run.plan.launch.world_size
    for entry in call.left:
        profile = call.data.profiles.get(entry.data.path)
        if processes < 2 or profile is None:
            continue
        rows = round(profile.rows * (1 - entry.stage.holdout))
        if rows < processes:
            yield Fault(
                where=f"stage {entry.name}",
                what=f"{rows} rows to train on cannot be shared by {processes} processes",
                allowed="at least one row for each",
                hint="more rows, or --set launch.processes=1 --set launch.strategy=null",
            )
