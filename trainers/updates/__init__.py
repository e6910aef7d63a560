"""Update schemes, one module each: which weights of the model are trained.

A module here is found by its name, the plan's `update`: nothing is registered. It holds the names
of `Update`. Its keys are declared in rules/updates/<name>.yaml, and come as `options` with their
defaults filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pkgutil import iter_modules, resolve_name
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import method_roots
from advisor.methods import methods
from advisor.plan.model import Stage
from trainers.job import Model, Tokenizer
from trainers.rows.row import PreparedRow

# Folders in ADVISE_METHODS bring updates of their own, found in the same way.
__path__ += [str(root / "trainers" / "updates") for root in method_roots()[1:]]


# field of a PEFT config -> the plan's key that sets it, in every scheme
COMMON_KEYS: Mapping[str, str] = {
    "task_type": "objective",
    "peft_type": "update",
    "inference_mode": "objective",
    "base_model_name_or_path": "model",
    "revision": "revision",
}


def nothing(*_: Any) -> Any:
    """Of whatever a scheme has nothing to say."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Update:
    """What the module of an update scheme holds, by these names; what it leaves out is as here."""

    # field of the PEFT config -> the plan's key that sets it; such a field is refused in `peft:`
    PLAN_KEYS: Mapping[str, str] = field(default_factory=dict)
    # The PEFT config class whose fields `peft:` may set, as "module:name"; "": the weights
    # themselves are trained, and PEFT takes no part.
    CONFIG: str = ""
    # What in the stage this scheme cannot do, with the reason.
    faults: Callable[[Stage], Sequence[Fault]] = nothing
    # The arguments of that class for this model, from the stage and its options. Raises InputError
    # if the model has no place for such a module.
    arguments: Callable[[Stage, Mapping[str, Any], Model], Mapping[str, Any]] = nothing
    # Give a new module its first weights, if PEFT's own are not the right ones; what was done, in
    # words, or None. Of the stage, its options, the model with the module on it, and the training
    # rows.
    start: Callable[
        [Stage, Mapping[str, Any], Model, Tokenizer, Sequence[PreparedRow]], str | None
    ] = nothing

    def config_class(self) -> type | None:
        return resolve_name(self.CONFIG) if self.CONFIG else None

    def peft_config(self, stage: Stage, options: Mapping[str, Any], model: Model) -> Any | None:
        """The PEFT config of the module for this model; None if the weights are trained. Raises
        InputError as `arguments` does.
        """
        kind: Any = self.config_class()
        given = {"task_type": task_type(model), **stage.peft}
        return kind and kind(**given | dict(self.arguments(stage, options, model)))


def task_type(model: Model) -> str:
    """PEFT's name for the task of the model, by its class: with SEQ_CLS the head is saved with the
    module.
    """
    if "ForSequenceClassification" in type(model).__name__:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"


def load_update(name: str) -> Update:
    """The update scheme of a module. Raises InputError if there is none."""
    there = {module.name for module in iter_modules(__path__)} & set(methods().updates)
    if name not in there:
        raise InputError(
            f"update '{name}' cannot be trained by this version",
            allowed=f"trainers exist for: {', '.join(sorted(there))}",
        )
    module = import_module(f"{__name__}.{name}")
    found = Update(
        **{
            part.name: getattr(module, part.name)
            for part in fields(Update)
            if hasattr(module, part.name)
        }
    )
    if methods().updates[name].is_module and not found.CONFIG:  # or all weights would be trained
        raise InputError(
            f"update '{name}' trains a module, and {module.__file__} has no CONFIG",
            allowed='the class of its PEFT config, such as CONFIG = "peft:LoraConfig"',
            hint="CONTRIBUTING.md says how, under 'Add an update'",
        )
    return found
