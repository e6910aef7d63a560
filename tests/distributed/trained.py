"""The table: each cell trained, refused or failed, and how far it is from one process and from ddp."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.cells import DDP, FSDP, OFFLOAD, ONE, STRATEGIES, Cell, write_plan
from tests.distributed.comparing import Apart, Left, apart, left_by
from tests.distributed.starting import train_plans
from tests.distributed.train import FAILED, REFUSED, TRAINED

DIVIDED = (FSDP, OFFLOAD)


@dataclass
class Result:
    """What became of a cell."""

    cell: Cell
    status: str  # TRAINED, REFUSED or FAILED
    text: str = ""  # why it is refused, or how it failed
    seconds: float = 0.0
    left: Left | None = None
    from_one: Apart | None = None
    from_ddp: Apart | None = None


def train_cells(folder: Path, cells: Iterable[Cell]) -> list[Result]:
    """Train the cells, those of a strategy by one start of its processes."""
    wanted = list(cells)
    found: dict[Cell, Result] = {}
    for strategy in STRATEGIES:
        plans = {write_plan(folder, cell): cell for cell in wanted if cell.strategy == strategy}
        processes = 1 if strategy == ONE else 2
        for path, one in train_plans(list(plans), processes=processes).items():
            result = Result(plans[path], one["status"], one["text"], one.get("seconds", 0.0))
            if result.status == TRAINED:
                look_at(result, path.with_suffix(""))
            found[result.cell] = result
    for result in found.values():
        compare(result, found)
    return [found[cell] for cell in wanted]


def look_at(result: Result, run: Path) -> None:
    """Read what the training left; it failed if the model was not shared as the plan says."""
    try:
        result.left = left_by(run)
    except (OSError, ValueError) as error:
        result.status, result.text = FAILED, f"it left nothing to compare: {error}"
        return
    divided = result.left.launch["sharded_tensors"] > 0
    if divided != (result.cell.strategy in DIVIDED):
        result.status = FAILED
        result.text = f"tensors that are divided: {result.left.launch['sharded_tensors']}"


def compare(result: Result, found: Mapping[Cell, Result]) -> None:
    """Note how far it is from one process and from ddp, where they have trained."""

    def from_(strategy: str) -> Apart | None:
        cell = result.cell
        other = found.get(Cell(strategy, cell.update, cell.objective))
        if result.left is None or other is None or other.left is None or other is result:
            return None
        return apart(other.left, result.left)

    try:
        result.from_one, result.from_ddp = from_(ONE), from_(DDP)
    except ValueError as error:
        result.status, result.text = FAILED, f"it left something else: {error}"


def reason(text: str) -> str:
    """Why a cell is refused, without its own place in the plan file."""
    first = text.splitlines()[0]
    return re.sub(r"^\S+\.yaml:\d+:\d+: ", "", first).strip()


def is_located(text: str) -> bool:
    """Whether a refusal says where in the plan."""
    return bool(re.match(r"(\S+\.yaml:\d+:\d+|launch\.\w+|stage \w+)", text))


def bad(results: Iterable[Result]) -> list[str]:
    """What may not be: a cell that failed, and a refusal without a place."""
    told = []
    for one in results:
        name = f"{one.cell.objective} / {one.cell.update} / {one.cell.strategy}"
        if one.status == FAILED:
            told.append(f"{name}: {one.text}")
        elif one.status == REFUSED and not is_located(one.text):
            told.append(f"{name}: refused without a place: {one.text}")
    return told


def chosen(cells: Iterable[Cell], only: Collection[str]) -> list[Cell]:
    """The cells that every given word is a part of; all of them without one."""
    return [
        cell for cell in cells
        if all(word in (cell.strategy, cell.update, cell.objective) for word in only)
    ]  # fmt: skip
