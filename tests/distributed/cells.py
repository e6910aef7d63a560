"""The trainings, by strategy, update, objective and setting, and how far two of them are apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from advisor.record.files import trained_record
from tests.distributed.models import ENCODER, MIXTURE, MODEL, TEACHER, TRANSLATOR, UNTIED

LIMIT = 1e-6  # float32 has 1.2e-7 between 1 and the next number; the weights' steps are of 1e-3
LIMIT_MIXED = 1e-5  # the last bit of a float32 sum may turn the rounding of a product in bfloat16
ROUNDED = 1e-4  # of losses in bfloat16, which has 8e-3 between 1 and the next number
# The same where one of the two casts all weights to it, and the other in products alone. 1.1e-3
# was seen, of a reward model.
CAST = 2e-3

MICRO, STEP_ROWS, STEPS = 4, 16, 4
STAGE: dict[str, Any] = {
    "name": "s", "learning_rate": 1e-3, "max_steps": STEPS, "micro_batch_size": MICRO,
    "seq_len": 128, "holdout": 0.1, "weights_dtype": "float32", "optimizer": "adamw",
}  # fmt: skip
WRITES = {"max_steps": 2, "response_tokens": 6, "reward": "own.py:score"}
SAMPLES = {**WRITES, "generations": 4}


@dataclass(frozen=True)
class Lesson:
    """An objective with its data."""

    data: str
    keys: Mapping[str, Any]
    model: str = MODEL
    samples: bool = False  # each process has samples of its own


LESSONS: Mapping[str, Lesson] = {
    "sft": Lesson("chats", {"objective": "sft"}),
    "sft, classes": Lesson("labels", {"objective": "sft", "head": "classes"}),
    "sft, seq2seq": Lesson("rewritings", {"objective": "sft", "head": "seq2seq"}, TRANSLATOR),
    "cpt": Lesson("texts", {"objective": "cpt", "seq_len": 32}),
    "distill": Lesson("chats", {"objective": "distill", "teacher": TEACHER, "on_policy": 0.0}),
    "dpo": Lesson("pairs", {"objective": "dpo"}),
    "orpo": Lesson("pairs", {"objective": "orpo"}),
    "simpo": Lesson("pairs", {"objective": "simpo"}),
    "kto": Lesson("votes", {"objective": "kto"}, samples=True),
    "rm": Lesson("pairs", {"objective": "rm"}),
    "grpo": Lesson("pairs", {"objective": "grpo", **SAMPLES}, samples=True),
    "rloo": Lesson("pairs", {"objective": "rloo", **SAMPLES}, samples=True),
    "ppo": Lesson("pairs", {"objective": "ppo", **WRITES, "kl_limit": 100}, samples=True),
}
UPDATES: Mapping[str, Mapping[str, Any]] = {
    "full": {"update": "full"}, "lora": {"update": "lora", "rank": 4},
    "lora, nf4": {"update": "lora", "rank": 4, "quantization": "nf4"},
    "lora, int8": {"update": "lora", "rank": 4, "quantization": "int8"},
    "adapter": {"update": "adapter"}, "prefix": {"update": "prefix", "prefix_tokens": 4},
    "ia3": {"update": "ia3"},
}  # fmt: skip
ONE, DDP, FSDP = "one process", "ddp", "fsdp"
STRATEGIES = (ONE, DDP, FSDP)
PURE, MIXED = "pure", "mixed"
PRECISIONS = (PURE, MIXED)
WAYS = tuple(product(STRATEGIES, PRECISIONS))


@dataclass(frozen=True)
class Setting:
    """Keys of a stage that change how its steps are computed, and what they are tried with."""

    keys: Mapping[str, Any]
    update: str = "lora"
    objective: str = "sft"
    rounded: bool = False  # in 16 bits: losses alone are compared, and may differ a little more
    samples: bool = False  # each process draws random numbers of its own
    long: bool = (
        False  # fifteen steps, in which a product in bfloat16 that is rounded otherwise grows
    )


HALF = {"weights_dtype": "bfloat16"}
WITH_EXPERTS = {"model": MIXTURE, "target_modules": "with-experts"}
SETTINGS: Mapping[str, Setting] = {
    **{name: Setting({"optimizer": name}, "full") for name in ("adamw_fused", "sgd", "adafactor")},
    "adamw_8bit": Setting({"optimizer": "adamw_8bit"}, "full", rounded=True),  # its states
    "muon": Setting({"optimizer": "muon"}, "full", rounded=True),  # its matrix products
    **{
        f"{name}, bfloat16": Setting({"optimizer": name, **HALF}, "full", rounded=True)
        for name in ("adamw_split", "adamw_stochastic")
    },
    "bfloat16 weights": Setting(HALF, "full", rounded=True),
    "bfloat16 base": Setting(HALF, "lora", rounded=True),
    "bfloat16, nf4": Setting(HALF, "lora, nf4", rounded=True),
    "packing": Setting({"packing": True}, "full"),
    "packing, cpt": Setting({"packing": True}, "full", "cpt"),
    "group_by_length": Setting({"group_by_length": True}, "full"),
    "gradient_checkpointing": Setting({"gradient_checkpointing": True}, "full"),
    "gradient_checkpointing, module": Setting({"gradient_checkpointing": True}, "lora"),
    "gradient_checkpointing, nf4": Setting({"gradient_checkpointing": True}, "lora, nf4"),
    "keep: best": Setting({"keep": "best"}, "full"),
    "early_stopping": Setting({"early_stopping": 1}, "lora"),
    "train_embeddings": Setting({"train_embeddings": True}),
    "rslora": Setting({"rslora": True}),
    "dora": Setting({"peft": {"use_dora": True}}),
    "modules_to_save, tied": Setting({"peft": {"modules_to_save": ["embed_tokens"]}}),
    "dropout": Setting({"dropout": 0.1}, samples=True),
    "three epochs": Setting({"max_steps": None, "epochs": 3.0}, "full", long=True),
    "mixture of experts": Setting({"model": MIXTURE}, "full"),
    "mixture of experts, module": Setting({"model": MIXTURE}, "lora"),
    "mixture of experts, with-experts": Setting(WITH_EXPERTS),
    "mixture of experts, nf4, with-experts": Setting(WITH_EXPERTS, "lora, nf4"),
    "an encoder with classes": Setting({"model": ENCODER}, "full", "sft, classes"),
    "an encoder with classes, module": Setting({"model": ENCODER}, "lora", "sft, classes"),
    "untied output": Setting({"model": UNTIED}, "full"),
}
# Of trainings by several numbers of processes: the steps, and the one whose checkpoint others
# resume from.
LAST, RESUMED = 6, 3
WORLD = "six steps"
WORLD_SETTING = Setting({"max_steps": LAST, "save_steps": RESUMED, "micro_batch_size": 2})


@dataclass(frozen=True)
class Cell:
    """One training: how it is shared, what trains, what for, and in which precision."""

    strategy: str
    update: str
    objective: str = "sft"
    precision: str = PURE
    setting: str = ""
    processes: int = 2  # of any strategy but one process
    after: Cell | None = None  # whose checkpoint it resumes from
    keys: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of its stage

    @property
    def name(self) -> str:
        """What is trained, however it is shared."""
        return f"{self.setting or self.objective}: {self.update}, {self.precision}"

    @property
    def count(self) -> int:
        """How many processes train it."""
        return 1 if self.strategy == ONE else self.processes

    @property
    def world(self) -> str:
        """How it is shared."""
        how = ONE if self.strategy == ONE else f"{self.strategy}, {self.processes} processes"
        return f"{how}, after {self.after.world}" if self.after else how

    @property
    def words(self) -> set[str]:
        """What it may be chosen by."""
        return {self.strategy, self.update, self.objective, self.precision, self.setting}

    @property
    def more(self) -> Setting:
        """Its setting."""
        found = {**SETTINGS, WORLD: WORLD_SETTING}.get(self.setting)
        return found or Setting({}, self.update, self.objective)

    @property
    def samples(self) -> bool:
        """Whether each process draws what no other one does."""
        return LESSONS[self.objective].samples or self.more.samples

    @property
    def begins_anew(self) -> bool:
        """Whether the checkpoint cannot be used: each process held a part, and now holds all."""
        return self.after is not None and (self.strategy == FSDP) != (self.after.strategy == FSDP)

    @property
    def reference(self) -> Cell | None:
        """What it has to be equal to; None: to nothing."""
        strategy = DDP if self.samples else ONE
        found = replace(self, strategy=strategy, processes=2, after=None)
        return None if self == found or (self.strategy == ONE and self.samples) else found

    @property
    def losses_alone(self) -> bool:
        """Whether weights are rounded to 16 bits, which are not compared."""
        return self.casts or self.more.rounded

    @property
    def casts(self) -> bool:
        """Whether all weights are cast to 16 bits, which one process does in products alone."""
        return (self.strategy, self.update, self.precision) == (FSDP, "full", MIXED)

    @property
    def limit(self) -> float:
        """How far it may be from its reference."""
        if self.losses_alone:
            return CAST if self.casts else ROUNDED
        if self.precision == MIXED:
            return ROUNDED if self.more.long else LIMIT_MIXED
        return LIMIT

    def plan(self, folder: Path) -> Path:
        """The path of its plan."""
        shared = f"{self.world} {self.setting} {' '.join(map(str, self.keys.values()))}"
        words = re.findall(r"\w+", f"{self.objective} {self.update} {self.precision} {shared}")
        return folder / f"{'-'.join(words)}.yaml"


def all_cells() -> Iterator[Cell]:
    """Everything that is trained: the table, settings, and numbers of processes."""
    for strategy, objective, update, precision in product(STRATEGIES, LESSONS, UPDATES, PRECISIONS):
        yield Cell(strategy, update, objective, precision)
    yield from setting_cells()
    yield from world_cells()
    for keys in ({}, WITH_EXPERTS):
        one = Cell(ONE, "lora, nf4", setting=WORLD, keys=keys)
        two, four = (replace(one, strategy=FSDP, processes=count) for count in (2, 4))
        yield from (one, two, four, replace(four, after=two), replace(two, after=four))


def setting_cells() -> Iterator[Cell]:
    """Every setting, shared in every way, in both precisions."""
    for (name, one), (strategy, precision) in product(SETTINGS.items(), WAYS):
        yield Cell(strategy, one.update, one.objective, precision, name)


WORLDS = ((ONE, 1), (DDP, 2), (DDP, 4), (FSDP, 2), (FSDP, 4))
# Who resumes from whose checkpoint.
RESUMES = ((0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2), (3, 4), (4, 3), (3, 1), (1, 3))


def world_cells() -> Iterator[Cell]:
    """The same training by one, two and four processes, and from each other's checkpoints."""
    for update in ("full", "lora"):
        worlds = [
            Cell(strategy, update, setting=WORLD, processes=max(2, processes))
            for strategy, processes in WORLDS
        ]
        yield from worlds
        for before, to in RESUMES:
            yield replace(worlds[to], after=worlds[before])


def write_plan(folder: Path, cell: Cell) -> Path:
    """The plan of a cell, of as many rows a step on any number of processes; data in `folder`."""
    lesson = LESSONS[cell.objective]
    keys = {**cell.more.keys, **cell.keys}
    model = keys.pop("model", lesson.model)
    micro = keys.get("micro_batch_size", MICRO)
    stage = {
        **STAGE, **lesson.keys, **UPDATES[cell.update],
        "precision": cell.precision, "grad_accum": STEP_ROWS // (micro * cell.count), **keys,
    }  # fmt: skip
    shared = {} if cell.count == 1 else {"strategy": cell.strategy, "processes": cell.count}
    plan = {
        "version": 1, "name": "table", "model": f"./{model}",
        "data": {"path": f"{lesson.data}.jsonl"},
        "stages": [{key: value for key, value in stage.items() if value is not None}],
        "launch": {"device": "cpu", **shared},
    }  # fmt: skip
    path = cell.plan(folder)
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


# --------------------------------------------------------------------------- what is left


@dataclass(frozen=True)
class Left:
    """A trained stage."""

    losses: list[float]
    weights: dict[str, Any]  # name -> tensor
    launch: dict[str, Any]


def left_by(run: Path) -> Left:
    """What the one stage of a run left."""
    from safetensors.torch import load_file

    (folder,) = [path for path in (run / "stages").iterdir() if path.is_dir()]
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    left = trained_record(folder)  # by several processes, until their result is judged
    record = json.loads((left if left.exists() else folder / "result.json").read_text("utf-8"))
    return Left([json.loads(line)["loss"] for line in lines], weights, record["launch"])


@dataclass(frozen=True)
class Apart:
    """How far two trainings are apart."""

    loss: float  # relative to its size, at the step where it is largest
    weight: float  # of the weights' elements, the largest difference

    @property
    def most(self) -> float:
        """The larger of the two."""
        return max(self.loss, self.weight)


def apart(one: Left, other: Left) -> Apart:
    """How far. Raises ValueError if they do not have the same steps and tensors."""
    if len(one.losses) != len(other.losses):
        raise ValueError(f"{len(one.losses)} and {len(other.losses)} losses")
    if one.weights.keys() != other.weights.keys():
        raise ValueError(f"other tensors: {sorted(one.weights.keys() ^ other.weights.keys())[:3]}")
    loss = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(one.losses, other.losses, strict=True))
    weight = max(
        float((value.float() - other.weights[name].float()).abs().max())
        for name, value in one.weights.items()
    )
    return Apart(loss, weight)
