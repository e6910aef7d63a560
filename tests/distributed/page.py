"""docs/strategies.md: the tables of a whole run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from itertools import product

from tests.distributed.cells import LESSONS, ONE, PRECISIONS, STRATEGIES, UPDATES, Cell
from tests.distributed.comparing import CAST, LIMIT, Apart
from tests.distributed.settings import SETTINGS, SettingCell
from tests.distributed.train import REFUSED, TRAINED
from tests.distributed.trained import Place, Result, reason
from tests.distributed.worlds import UPDATES as OF_WORLDS
from tests.distributed.worlds import WORLDS, Found, Step, World, compared

HEAD = """\
# Strategies, updates and objectives

Which way of sharing a training (`launch.strategy`) goes with which update and which objective.
Every cell was trained, or the plan is refused before a run starts.
`python -m tests.distributed --write docs/strategies.md` trains all of it and writes this page.
Which strategy to take, and what it costs, is in [scale](scale.md).

{about}

## What goes with what

Two processes on a CPU (gloo) train a random model of two layers with float32 weights: four
optimizer steps of sixteen rows (two where answers are written), in both precisions that a plan can
hold, whatever the processor would choose. A number is the largest difference from the same
training in one process, of a loss (relative) or of a trained weight, whichever is larger; up to
{limit} counts as equal. The learning rate is 1e-3, so weights move by about 4e-3. A process of its
own checks that what two have saved is the trained model. With `fsdp` it is checked besides that
each process holds a part of the model, and no whole gradients behind a micro-batch. Under `mixed`
it casts all weights of `full` to bfloat16 before they are sent, and one process those of matrix
products alone: there losses alone are compared, and up to {cast} is allowed. A number in brackets
is refused, for the reason below. A star: each process has samples of its own, so that one process trains on
others (KTO estimates the KL divergence from the rows of all processes at once); the number is
the difference from `ddp`. `offload: true` changes nothing on the CPU, and was not trained.
"""
SETTINGS_HEAD = """\
## Settings

The same training with other settings of its stage. In bfloat16 the sum of two halves is rounded
otherwise than the sum of the whole: there losses alone are compared, and 1e-4 is allowed.
"""
WORLDS_HEAD = """\
## Numbers of processes

Six steps of sixteen rows, as the difference from one process. "After" is a run that goes on from
the checkpoint that another number of processes wrote behind step 3.
"""
REASONS = "## Why it is refused\n"


def page(
    cells: Mapping[Place, Result], settings: Mapping[Place, Result], worlds: Sequence[Found]
) -> str:
    """The whole page."""
    reasons: dict[str, int] = {}
    parts = [HEAD.format(about=_about(), limit=f"{LIMIT:.0e}", cast=f"{CAST:.0e}")]
    ways = list(product(STRATEGIES, PRECISIONS))
    for strategy, precision in ways:
        rows = [
            [
                objective,
                *(
                    _shown(cells[Cell(strategy, update, objective, precision).place], reasons)
                    for update in UPDATES
                ),
            ]
            for objective in LESSONS
        ]
        parts += [f"### {strategy}, {precision}\n", table(["", *UPDATES], rows)]
    rows = [
        [
            name, one.objective, one.update,
            *(
                _shown(settings[SettingCell(name, strategy, precision).place], reasons)
                for strategy, precision in ways
            ),
        ]
        for name, one in SETTINGS.items()
    ]  # fmt: skip
    names = [f"{strategy}, {precision}" for strategy, precision in ways]
    parts += [SETTINGS_HEAD, table(["setting", "objective", "update", *names], rows)]
    parts += [WORLDS_HEAD, table(["", *OF_WORLDS], _world_rows(worlds))]
    told = [f"{number}. {text}" for text, number in reasons.items()]
    return "\n".join([*parts, REASONS, *told, ""])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _shown(one: Result, reasons: dict[str, int]) -> str:
    """A cell: how far from one process, or the number of the reason why it is refused."""
    if one.status == REFUSED:
        number = reasons.setdefault(reason(one.text), len(reasons) + 1)
        return f"[{number}]"
    if one.status != TRAINED:
        return "FAILED"
    if one.strategy == ONE:
        return "trained"
    far = "trained" if one.far is None else _number(one.far)
    return f"{far}*" if one.samples else far


def _number(far: float) -> str:
    return f"{far:.0e}" if far else "0"


def _world_rows(worlds: Sequence[Found]) -> list[list[str]]:
    """A row for each number of processes, and for each that goes on from another one."""
    far = compared(worlds)
    pairs: list[tuple[World, World | None]] = [(world, None) for world in WORLDS[1:]]
    pairs += [(one.step.world, one.step.after) for one in worlds if one.step.after is not None]
    return [
        [
            f"{world}" + (f", after {after}" if after else ""),
            *(_from_there(Step(world, update, after), far) for update in OF_WORLDS),
        ]
        for world, after in dict.fromkeys(pairs)
    ]


def _from_there(step: Step, far: Mapping[Step, Apart]) -> str:
    if step.begins_anew:
        return "begins anew, and says why"
    return _number(far[step].most) if step in far else "FAILED"


def _about() -> str:
    """When, on what and with which versions it was trained."""
    versions = [
        f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "trl", "peft")
    ]
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{date.today().isoformat()}, {os.cpu_count()} CPU cores, Python {python}, {', '.join(versions)}."
