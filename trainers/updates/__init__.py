"""Update schemes, one file each: which weights of the model are trained.

A file here is found by its name, the plan's `update`. Its keys are declared in
rules/updates/<name>.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from advisor.ground.errors import Fault, InputError
from advisor.plan.model import Stage
from trainers.prepare import Row


class Update(Protocol):
    """What the module of an update scheme holds."""

    # PEFT config field -> the plan's key that sets it; such a field is refused in `peft:`
    PLAN_KEYS: Mapping[str, str]
    # what a result of this scheme cannot do, in sentences for the report
    LIMITS: Sequence[str]

    def config_class(self) -> type | None:
        """The PEFT config class whose fields `peft:` may set; None if PEFT takes no part."""
        ...

    def faults(self, stage: Stage) -> list[Fault]:
        """What in the stage this scheme cannot do, with the reason."""
        ...

    def peft_config(self, stage: Stage, options: Mapping[str, Any], model: Any) -> Any | None:
        """The PEFT config that builds the module on this model, or None if the weights
        themselves are trained.
        """
        ...

    def start(
        self,
        stage: Stage,
        options: Mapping[str, Any],
        model: Any,
        tokenizer: Any,
        rows: Sequence[Row],
    ) -> str | None:
        """Give a new module on the model its first weights, where PEFT's own are not the right
        ones; what was done, in words.
        """
        ...


def task_type(model: Any) -> str:
    """PEFT's name for what the model does, by its class: a head that scores or sorts is saved with
    the module.
    """
    return "SEQ_CLS" if "ForSequenceClassification" in type(model).__name__ else "CAUSAL_LM"


def load_update(name: str) -> Update:
    """The module of an update scheme. Raises InputError if there is none."""
    known = sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
    )
    if name not in known:
        raise InputError(
            f"update '{name}' cannot be trained by this version",
            allowed=f"trainers exist for: {', '.join(known)}",
        )
    module: Any = import_module(f"trainers.updates.{name}")
    return module
