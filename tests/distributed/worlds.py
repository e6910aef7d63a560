"""The same training on one, two and four processes, and a checkpoint of one number of them that
another goes on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.cells import DDP, FSDP, ONE, Cell, write_plan
from tests.distributed.comparing import Apart, Left, apart, left_by
from tests.distributed.starting import train_plans
from tests.distributed.train import TRAINED

STEPS, RESUMED = 6, 3  # steps of a run, and the checkpoint that another one goes on from
KEYS = {"max_steps": STEPS, "save_steps": RESUMED, "micro_batch_size": 2}
UPDATES = ("full", "lora")


@dataclass(frozen=True)
class World:
    """So many processes that share the work in one way."""

    strategy: str
    processes: int

    def __str__(self) -> str:
        return ONE if self.processes == 1 else f"{self.strategy}, {self.processes} processes"


WORLDS = (World(ONE, 1), World(DDP, 2), World(DDP, 4), World(FSDP, 2), World(FSDP, 4))
# Who goes on from whose checkpoint.
RESUMES = (
    (WORLDS[0], WORLDS[1]), (WORLDS[1], WORLDS[0]), (WORLDS[1], WORLDS[2]),
    (WORLDS[2], WORLDS[1]), (WORLDS[2], WORLDS[0]), (WORLDS[0], WORLDS[2]),
    (WORLDS[3], WORLDS[4]), (WORLDS[4], WORLDS[3]), (WORLDS[3], WORLDS[1]), (WORLDS[1], WORLDS[3]),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One training."""

    world: World
    update: str
    after: World | None = None  # whose checkpoint it goes on from

    @property
    def begins_anew(self) -> bool:
        """Whether the checkpoint cannot be used: each process held a part, and now holds all."""
        both = (self.world, self.after or self.world)
        return len({world.strategy == FSDP for world in both}) > 1

    @property
    def name(self) -> str:
        """In front of its plan's name."""
        before = f"after-{self.after.processes}-{self.after.strategy}-" if self.after else ""
        return f"{before}{self.world.processes}-".replace(" ", "-")

    def plan(self, folder: Path) -> Path:
        """Its plan, written."""
        cell = Cell(self.world.strategy, self.update, "sft")
        return write_plan(folder, cell, processes=self.world.processes, name=self.name, **KEYS)


@dataclass(frozen=True)
class Found:
    """What became of one."""

    step: Step
    status: str
    text: str
    left: Left | None
    said: str  # by the processes of its start


def train_worlds(folder: Path) -> list[Found]:
    """Every world, and every resumed one, compared with one process."""
    fresh = [Step(world, update) for world in WORLDS for update in UPDATES]
    found = _train(folder, fresh)
    resumed = [Step(to, update, by) for by, to in RESUMES for update in UPDATES]
    for step in resumed:
        assert step.after is not None
        run = Step(step.after, step.update).plan(folder).with_suffix("")
        half(run, step.plan(folder).with_suffix(""))
    found |= _train(folder, resumed)
    return list(found.values())


def half(run: Path, into: Path) -> None:
    """A copy of a finished run as it was behind its first checkpoint."""
    shutil.copytree(run, into)
    (stage,) = (into / "stages").iterdir()
    for path in stage.iterdir():
        if path.name == "checkpoints":
            shutil.rmtree(path / f"checkpoint-{STEPS}")
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _train(folder: Path, steps: list[Step]) -> dict[Step, Found]:
    """Train them, all of one world by one start."""
    found: dict[Step, Found] = {}
    for world in WORLDS:
        mine = [step for step in steps if step.world == world]
        plans = {step.plan(folder): step for step in mine}
        outcomes = train_plans(list(plans), processes=world.processes)
        said = next(iter(plans)).with_suffix(".log").read_text("utf-8", errors="replace")
        for path, one in outcomes.items():
            left = left_by(path.with_suffix("")) if one["status"] == TRAINED else None
            found[plans[path]] = Found(plans[path], one["status"], one["text"], left, said)
    return found


def compared(found: Sequence[Found]) -> Mapping[Step, Apart]:
    """How far each is from one process that was never interrupted."""
    whole = {one.step: one.left for one in found}
    told = {}
    for one in found:
        reference = whole[Step(WORLDS[0], one.step.update)]
        if one.left is not None and reference is not None:
            told[one.step] = apart(reference, one.left)
    return told
