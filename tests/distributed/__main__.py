"""Train every strategy with every update and objective, with other settings, and on other numbers of
processes, and measure the memory of divided stages.

    python -m tests.distributed [--only NAME | --memory] [--write docs/scale.md]

The tables of a whole run are docs/scale.md.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.distributed.cells import (
    CAST,
    DDP,
    FSDP,
    LESSONS,
    LIMIT,
    LIMIT_MIXED,
    ONE,
    PRECISIONS,
    UPDATES,
    Cell,
    all_cells,
    setting_cells,
    world_cells,
)
from tests.distributed.models import fill
from tests.distributed.results import Result, measure, memory_cells, section, train_cells, wrong
from tests.distributed.train import REFUSED, TRAINED
from tests.faults.table import made_with, table
from tools.generate.markdown import with_parts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="cells of an objective, an update, a strategy, a precision or a setting",
    )  # fmt: skip
    parser.add_argument(
        "--memory", action="store_true", help="the memory of divided stages alone, without cells"
    )
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the tables into this page"
    )
    given = parser.parse_args()
    if given.only and (given.write or given.memory):
        parser.error("--write and --memory need all cells: leave --only out")
    began, only = time.monotonic(), set(given.only)
    chosen = [] if given.memory else [cell for cell in all_cells() if not only or cell.words & only]
    with tempfile.TemporaryDirectory(prefix="advise-strategies-", dir=given.folder) as name:
        folder = Path(name)
        fill(folder)
        found = train_cells(folder, chosen)
        held = [] if given.only else measure(folder, [*memory_cells(2), *memory_cells(4)])
    for cell, one in found.items():
        told = f"{one.far:.0e}" if one.far is not None else one.text.partition("\n")[0]
        print(f"{cell.name:42} {cell.world:20} {one.status:8} {told}"[:160])
    if held:
        print(section(held))
    if given.write:
        made = {} if given.memory else {"strategies": page(found)}
        text = with_parts(given.write.read_text("utf-8"), {**made, "divided stages": section(held)})
        given.write.write_text(text, encoding="utf-8")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    faults = [*wrong(found.values()), *(fault for one in held for fault in one.faults())]
    for fault in faults:
        print(f"\nNOT AS IT SHOULD BE: {fault}")
    return 1 if faults else 0


# --------------------------------------------------------------------------- the page


def page(found: Mapping[Cell, Result]) -> str:
    """The part of docs/scale.md about strategies."""
    reasons: dict[str, int] = {}

    def shown(*cells: Cell) -> str:
        """Of the two precisions, or of one if they are told by the same word."""
        return "; ".join(dict.fromkeys(_shown(found[cell], reasons) for cell in cells))

    def shared(cells: Iterable[Cell]) -> list[str]:
        """By every strategy but one process."""
        ways = groupby(cells, lambda cell: cell.strategy)
        return [shown(*same) for strategy, same in ways if strategy != ONE]

    alone = {shown(cell) for cell in found if cell.strategy == ONE and not cell.after}
    about = made_with("torch", "transformers", "accelerate", "trl", "peft")
    parts = [
        f"{about}. Equal: up to {LIMIT:.0e}, {LIMIT_MIXED:.0e} under `mixed`, losses of `full` there under"
        f" fsdp up to {CAST:.0e}. One process trains all of it, in both precisions, except"
        f" {' '.join(sorted(alone - {TRAINED}))}. Beyond that: {'; '.join(wrong(found.values())) or 'none'}.\n"
    ]
    for strategy in (DDP, FSDP):
        rows = [
            [
                name,
                *(
                    shown(*(Cell(strategy, update, name, one) for one in PRECISIONS))
                    for update in UPDATES
                ),
            ]
            for name in LESSONS
        ]
        parts.append(table([strategy, *UPDATES], merged(rows)))
    rows = [
        [name, cells[0].objective, cells[0].update, *shared(cells)]
        for name, group in groupby(setting_cells(), lambda cell: cell.setting)
        for cells in [list(group)]
    ]
    parts.append(table(["setting", "objective", "update", DDP, FSDP], merged(rows)))
    worlds = sorted(world_cells(), key=lambda cell: cell.update)
    half = len(worlds) // 2
    pairs = list(zip(worlds[:half], worlds[half:], strict=True))[1:]  # all but one process
    rows = [[full.world, shown(full), shown(lora)] for full, lora in pairs]
    parts.append(table(["processes", "full", "lora"], merged(rows)))
    told = [f"{number}. {text}" for text, number in reasons.items()]
    return "\n".join([*parts, "Refused:\n", *told])


def merged(rows: Iterable[list[str]]) -> list[list[str]]:
    """Rows whose cells are alike but for the first, as one."""
    found: dict[tuple[str, ...], list[str]] = {}
    for first, *cells in rows:
        found.setdefault(tuple(cells), []).append(first)
    return [["; ".join(names), *cells] for cells, names in found.items()]


def _shown(one: Result, reasons: dict[str, int]) -> str:
    """A cell: how far from its reference, or the number of the reason why it is refused."""
    if one.status == REFUSED:
        # Without its own place and the way out.
        place = r"^\S+\.yaml:\d+:\d+: |^stage \w+: | \(stage \w+\)"
        why = re.sub(place, "", one.text.splitlines()[0]).strip()
        return f"[{reasons.setdefault(why, len(reasons) + 1)}]"
    if one.status != TRAINED:
        return "FAILED"
    if one.cell.begins_anew:
        return "begins anew, and says why"
    far = "trained" if one.far is None else f"{one.far:.0e}" if one.far else "0"
    return f"{far}*" if one.cell.samples and one.cell.count > 1 else far


if __name__ == "__main__":
    sys.exit(main())
