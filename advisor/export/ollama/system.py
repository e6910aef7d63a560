"""The system message of the training data, if there is one and the same in every row."""

from __future__ import annotations

from pathlib import Path

from advisor.data.examples import Skipped, read_examples
from advisor.export.ollama.shape import Shape
from advisor.ground.errors import AdviseError
from advisor.ground.files import PLAN_FILE
from advisor.plan.model import PlanData
from advisor.plan.read import read_plan, resolve_path
from advisor.plan.record import StageRecord

SOME = "some rows of the training data have a system message, and others another or none"


def constant_system(run: Path, stage: StageRecord, shape: Shape) -> tuple[str | None, str]:
    """(the system message of every row, or None; what is to be said of it, "" for nothing).

    Args:
        run: The run folder, whose plan names the data.
    """
    if shape.system is None:
        return None, ""
    try:
        plan_file = run / PLAN_FILE
        data = _data_of(plan_file, stage)
        rows = read_examples(
            resolve_path(plan_file, data.path), mapping=data.mapping, skipped=Skipped()
        )
        found: set[str | None] = set()
        for row in rows:
            first = row.messages[0] if row.messages else None
            found.add(first.content if first is not None and first.role == "system" else None)
            if len(found) > 1:
                return None, f"no SYSTEM line: {SOME}; send the one that fits"
    except (AdviseError, OSError):
        return None, (
            "no SYSTEM line: the training data cannot be read any more; if every row had the same"
            " system message, add it"
        )
    if found in (set(), {None}):
        return None, ""
    (text,) = found
    return text, "SYSTEM is the one system message of the training data"


def _data_of(plan_file: Path, stage: StageRecord) -> PlanData:
    plan = read_plan(plan_file)
    own = next((task.data for task in plan.tasks if task.name == stage.task), plan.data)
    other = next((one.data for one in plan.stages if one.name == stage.plan_stage), None)
    if other is not None:
        return PlanData(path=other)
    assert own is not None  # a plan has data or tasks
    return own
