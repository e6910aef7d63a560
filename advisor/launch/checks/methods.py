"""Whether every objective and update of the plan has a trainer."""

from __future__ import annotations

from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.resources import method_roots
from advisor.launch.call import Call
from advisor.methods import objectives, updates

PHASE = "plan"


def check(call: Call) -> Checked:
    """Methods without a trainer: an objective is trainers/<name>.py or trainers/<name>/__init__.py,
    an update trainers/updates/<name>.py.
    """
    bad = []
    for axis, place, known in (
        ("objective", "trainers", objectives()),
        ("update", "trainers/updates", updates()),
    ):
        folders = [root / place for root in (call.package_folder, *method_roots()[1:])]
        if axis == "update" and not folders[0].is_dir():
            continue
        there = [name for name in known if any(_has_trainer(one, name) for one in folders)]
        for wanted in dict.fromkeys(str(getattr(entry.stage, axis)) for entry in call.left):
            if wanted in there:
                continue
            entries = [one.name for one in call.left if getattr(one.stage, axis) == wanted]
            bad.append(
                Fault(
                    where=f"stage {', '.join(entries)}",
                    what=f"this version of advise has no trainer for {axis} {wanted}",
                    allowed=f"it trains: {', '.join(there) or 'nothing'}",
                    hint="the plan is complete: keep it for a later version, or choose another"
                    " method with `advise --choose`",
                )
            )
    return Checked(bad=bad)


def _has_trainer(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
