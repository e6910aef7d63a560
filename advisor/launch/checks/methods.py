"""Whether every objective and update of the plan has a trainer."""

from __future__ import annotations

from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.resources import method_roots
from advisor.launch.call import Call

PHASE = "plan"


def check(call: Call) -> Checked:
    """Methods without a trainer: an objective is trainers/<name>.py or trainers/<name>/__init__.py,
    an update trainers/updates/<name>.py.
    """
    bad = []
    for entry in call.left:
        for axis, place in (("objective", "trainers"), ("update", "trainers/updates")):
            name = str(getattr(entry.stage, axis))
            folders = [root / place for root in (call.package_folder, *method_roots()[1:])]
            if any(_has_trainer(folder, name) for folder in folders) or not folders[0].is_dir():
                continue
            what = f"this version of advise has no trainer for {axis} {name}"
            hint = "the plan is complete: keep it for a later version, or choose another method"
            bad.append(Fault(where=f"stage {entry.name}", what=what, hint=hint))
    return Checked(bad=bad)


def _has_trainer(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
