"""Settings of a stage that change how its steps are computed: each shared by two processes, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tests.distributed.cells import PRECISIONS, STRATEGIES, Cell, write_plan
from tests.distributed.comparing import CAST, ROUNDED

HALF = {"weights_dtype": "bfloat16"}


@dataclass(frozen=True)
class Setting:
    """Keys of a stage, and what they are tried with."""

    keys: Mapping[str, Any]
    update: str = "lora"
    objective: str = "sft"
    rounded: bool = False  # in 16 bits: losses alone are compared, and may differ a little more
    samples: bool = False  # each process draws random numbers of its own


def _optimizer(name: str, **keys: Any) -> Setting:
    return Setting({"optimizer": name, **keys}, "full", rounded=bool(keys))


SETTINGS: Mapping[str, Setting] = {
    **{name: _optimizer(name) for name in ("adamw_fused", "sgd", "adafactor", "adamw_8bit")},
    "muon": Setting({"optimizer": "muon"}, "full", rounded=True),  # its matrix products
    "adamw_split, bfloat16": _optimizer("adamw_split", **HALF),
    "adamw_stochastic, bfloat16": _optimizer("adamw_stochastic", **HALF),
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
    "three epochs": Setting({"max_steps": None, "epochs": 3.0}, "full"),
    "mixture of experts": Setting({"model": "mixture"}, "full"),
    "mixture of experts, module": Setting({"model": "mixture"}, "lora"),
    "mixture of experts, with-experts": Setting(
        {"model": "mixture", "target_modules": "with-experts"}
    ),
    "an encoder with classes": Setting({"model": "encoder"}, "full", "sft, classes"),
    "an encoder with classes, module": Setting({"model": "encoder"}, "lora", "sft, classes"),
    "untied output": Setting({"model": "untied"}, "full"),
}


@dataclass(frozen=True)
class SettingCell:
    """One training with a setting."""

    setting: str
    strategy: str
    precision: str

    @property
    def cell(self) -> Cell:
        """The same without the setting."""
        one = SETTINGS[self.setting]
        return Cell(self.strategy, one.update, one.objective, self.precision)

    @property
    def place(self) -> tuple[str, str]:
        """What is trained, and how it is shared."""
        return f"{self.setting}, {self.precision}", self.strategy

    @property
    def rounded(self) -> float | None:
        """How far losses may differ where they alone are compared."""
        if self.cell.casts:
            return CAST
        return ROUNDED if SETTINGS[self.setting].rounded else None

    def plan(self, folder: Path) -> Path:
        """Its plan."""
        start = "".join(char if char.isalnum() else "-" for char in self.setting)
        keys = SETTINGS[self.setting].keys
        return write_plan(folder, self.cell, name=f"{start}-", **keys)


def all_settings() -> Iterator[SettingCell]:
    """Every setting in both precisions, shared in every way."""
    for name, strategy, precision in product(SETTINGS, STRATEGIES, PRECISIONS):
        yield SettingCell(name, strategy, precision)
