"""Whether each stage has a trainer, and data that it can be trained on.

Every stage is checked with the file it names, so that the first call of `advise run` refuses what
any later call would refuse, and no call refuses what the trainers accept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.resources import method_roots
from advisor.launch.call import Call
from advisor.methods import objectives, updates

PHASE = "plan"
PLACES = (("objective", "trainers"), ("update", "trainers/updates"))


def check(call: Call) -> Checked:
    """Methods without a trainer, data that cannot be read or do not suit their stages, and fewer
    rows than there are processes.
    """
    bad = [*call.data.faults, *_too_few_rows(call), *_without_trainers(call)]
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


def _without_trainers(call: Call) -> Iterator[Fault]:
    """An objective is trainers/NAME.py or a package there, an update trainers/updates/NAME.py."""
    known = {"objective": objectives(), "update": updates()}
    for axis, place in PLACES:
        folders = [root / place for root in (call.package_folder, *method_roots()[1:])]
        if axis == "update" and not folders[0].is_dir():
            continue
        there = [name for name in known[axis] if any(_has_trainer(one, name) for one in folders)]
        for wanted in dict.fromkeys(str(getattr(entry.stage, axis)) for entry in call.left):
            if wanted in there:
                continue
            entries = [one.name for one in call.left if getattr(one.stage, axis) == wanted]
            yield Fault(
                where=f"stage {', '.join(entries)}",
                what=f"this version of advise has no trainer for {axis} {wanted}",
                allowed=f"it trains: {', '.join(there) or 'nothing'}",
                hint="the plan is complete: keep it for a later version, or choose another"
                " method with `advise --choose`",
            )


def _has_trainer(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
