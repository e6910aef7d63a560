"""Everything that `python -m tests.distributed` trains."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from tests.distributed.cells import LESSONS, Cell, all_cells, write_plan
from tests.distributed.comparing import CAST, LIMIT
from tests.distributed.settings import SETTINGS, all_settings
from tests.distributed.train import TRAINED
from tests.distributed.trained import Place, Result, Wanted, train_shared
from tests.distributed.worlds import Found, compared

ANEW = "each process held "  # what a run says that cannot go on from a checkpoint


def train_table(folder: Path, only: Collection[str] = ()) -> dict[Place, Result]:
    """Every cell of the table that one of the words names; all of them without a word."""
    return train_cells(folder, [cell for cell in all_cells() if cell.is_any_of(only)])


def train_cells(folder: Path, cells: Iterable[Cell]) -> dict[Place, Result]:
    """These cells of the table."""
    return train_shared(
        {
            cell.place: Wanted(
                write_plan(folder, cell),
                rounded=CAST if cell.casts else None,
                samples=LESSONS[cell.objective].samples,
                limit=cell.limit,
            )
            for cell in cells
        }
    )


def train_settings(folder: Path) -> dict[Place, Result]:
    """Every setting, alone and shared in both ways, in both precisions."""
    return train_shared(
        {
            one.place: Wanted(
                one.plan(folder),
                rounded=one.rounded,
                samples=SETTINGS[one.setting].samples,
                limit=one.cell.limit,
            )
            for one in all_settings()
        }
    )


def wrong_worlds(found: Collection[Found]) -> list[str]:
    """What of the numbers of processes may not be."""
    told, far = [], compared(list(found))
    for one in found:
        name = f"{one.step.world}, {one.step.update}, after {one.step.after}"
        resumed = "resuming after step" in one.said
        if one.status != TRAINED:
            told.append(f"{name}: {one.text}")
        elif not far[one.step].most <= LIMIT:
            told.append(f"{name}: {far[one.step]}, and at most {LIMIT} is allowed")
        elif one.step.begins_anew and ANEW not in one.said:
            told.append(f"{name}: it does not say why it begins anew")
        elif one.step.after is not None and not one.step.begins_anew and not resumed:
            told.append(f"{name}: it does not go on from the checkpoint")
    return told
