"""Update schemes, one module each: which weights of the model are trained.

A module here is found by its name, the plan's `update`: nothing is registered. It holds the names
of `Update`. Its keys are declared in rules/updates/<name>.yaml, and come as `options` with their
defaults filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import method_roots
from advisor.plan.model import Stage
from trainers.job.types import Model, Tokenizer
from trainers.rows.row import PreparedRow

# Folders in ADVISE_METHODS bring updates of their own, found in the same way.
__path__ += [str(root / "trainers" / "updates") for root in method_roots()[1:]]


class Update(Protocol):
    """What the module of an update scheme holds."""

    # field of the PEFT config -> the plan's key that sets it; such a field is refused in `peft:`
    PLAN_KEYS: Mapping[str, str]

    def config_class(self) -> type | None:
        """The PEFT config class whose fields `peft:` may set; None if PEFT takes no part."""
        ...

    def faults(self, stage: Stage) -> list[Fault]:
        """What in the stage this scheme cannot do, with the reason."""
        ...

    def peft_config(self, stage: Stage, options: Mapping[str, Any], model: Model) -> Any | None:
        """The PEFT config of the module for this model; None if the weights themselves are trained.

        Raises InputError if the model has no place for such a module.
        """
        ...

    def start(
        self,
        stage: Stage,
        options: Mapping[str, Any],
        model: Model,
        tokenizer: Tokenizer,
        rows: Sequence[PreparedRow],
    ) -> str | None:
        """Give a new module its first weights, if PEFT's own are not the right ones; what was done,
        in words, or None.

        Args:
            model: With the module on it.
            rows: The training rows.
        """
        ...


def task_type(model: Model) -> str:
    """PEFT's name for the task of the model, by its class: with SEQ_CLS the head is saved with the
    module.
    """
    if "ForSequenceClassification" in type(model).__name__:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"


def load_update(name: str) -> Update:
    """The module of an update scheme. Raises InputError if there is none."""
    known = sorted(module.name for module in iter_modules(__path__))
    if name not in known:
        raise InputError(
            f"update '{name}' cannot be trained by this version",
            allowed=f"trainers exist for: {', '.join(known)}",
        )
    return cast(Update, import_module(f"{__name__}.{name}"))
