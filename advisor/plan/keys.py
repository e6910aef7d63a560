"""The keys that a plan may have: those of every stage, of its methods, and of optional features.

rules/updates/<name>.yaml and rules/objectives/<name>.yaml declare keys of their own. The reader of
plans refuses what neither they nor `Stage` declare, rules that set keys are held to the same
shapes, the JSON Schema offers them in the editor, trainers take their defaults from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from msgspec import NODEFAULT, Struct

from advisor.ground.annotated import build, defaults_of, shape_of
from advisor.ground.errors import did_you_mean
from advisor.ground.extras import all_extras, extras
from advisor.ground.resources import install_line
from advisor.ground.shape import Integer, Keys, Shape
from advisor.methods import methods
from advisor.methods.keys import Key as Key
from advisor.methods.keys import Refusal
from advisor.methods.model import Method, Objective, Update
from advisor.methods.stage import EVERY_STAGE, Stage, stage_keys
from advisor.plan.model import Plan

# A rule sets the rows of a step over all GPUs; the fit search splits them into micro_batch_size
# and grad_accum, which a plan names.
SPLIT = {
    "effective_batch_size": Key(
        name="effective_batch_size",
        owner=EVERY_STAGE,
        shape=Integer(min=1),
        help="rows behind one optimizer step, over all GPUs",
    )
}
# Other rules decide what a stage is and what it starts from; trl and peft belong to users.
NOT_SET = {
    "name", "objective", "update", "quantization", "start_from", "data", "trl", "peft",
}  # fmt: skip


class KeySpecs(Struct, frozen=True):
    """Every key, by who declares it."""

    updates: Mapping[str, Update]
    objectives: Mapping[str, Objective]

    def methods(self) -> Iterator[Method]:
        """Every method, the updates first."""
        yield from self.updates.values()
        yield from self.objectives.values()

    def methods_of(self, objective: str, update: str) -> list[Method]:
        """The methods of a stage, the update first; names of none are left out."""
        found = (self.updates.get(update), self.objectives.get(objective))
        return [method for method in found if method is not None]

    def allowed(self, objective: str, update: str) -> dict[str, Key]:
        """The keys that such a stage may have beside the common ones, the update's first."""
        found: dict[str, Key] = {}
        for method in self.methods_of(objective, update):
            found |= {name: spec for name, spec in method.keys.items() if name not in found}
        return found

    def declared(self, key: str) -> list[Key]:
        """A key of methods as each method that has it declares it."""
        return [method.keys[key] for method in self.methods() if key in method.keys]

    def owners(self, key: str) -> list[str]:
        """Who declares a key: ['update lora']."""
        return [spec.owner for spec in self.declared(key)]

    def names(self) -> list[str]:
        """Every declared key's name, once, in file order."""
        return list(dict.fromkeys(name for method in self.methods() for name in method.keys))

    def default(self, key: str, *, objective: str, update: str) -> Any:
        """The default of a common key there; the objective's file wins. None: no default."""
        found = reversed(self.methods_of(objective, update))
        return next((one.defaults[key] for one in found if key in one.defaults), None)

    def unused(self, key: str, *, objective: str, update: str) -> str | None:
        """Why this objective or update never reads a common key, or None if it does."""
        for method in self.methods_of(objective, update):
            if key in method.unused:
                return f"{method.axis} {method.id} does not read it: {method.unused[key]}"
        return None

    def refused(self, stage: Mapping[str, Any]) -> list[tuple[str, Refusal]]:
        """(`update prefix`, what it refuses) of each method of the stage, by keys as written."""
        return [
            (f"{method.axis} {method.id}", refusal)
            for method in self.methods_of(str(stage.get("objective")), str(stage.get("update")))
            for refusal in method.refuses
            if any(
                stage.get(refusal.key) == value and type(stage.get(refusal.key)) is type(value)
                for value in refusal.values
            )
        ]

    def effective(self, stage: Stage) -> dict[str, Any]:
        """A stage's options with the default of every key not given: what a trainer reads."""
        allowed = self.allowed(stage.objective, stage.update)
        return {name: stage.options.get(name, key.default) for name, key in allowed.items()}


def key_specs() -> KeySpecs:
    """The keys that the files of all methods declare."""
    found = methods()
    return KeySpecs(updates=found.updates, objectives=found.objectives)


# --------------------------------------------------------------------------- what rules may set


def setting_keys() -> tuple[str, ...]:
    """Every key that a `set` rule may name."""
    common = (name for name in stage_keys() if name not in NOT_SET)
    return (*common, *SPLIT, *key_specs().names())


def settable(key: str) -> list[Key]:
    """A key that a `set` rule may name, as each that has it declares it; empty if nothing does."""
    if key in SPLIT:
        return [SPLIT[key]]
    if key in stage_keys() and key not in NOT_SET:
        return [stage_keys()[key]]
    return key_specs().declared(key)


def setting_fault(key: str, value: Any) -> str | None:
    """What the key may hold, in words, if the value is not that; None if it is fine.

    Raises KeyError for an unknown key.
    """
    specs = settable(key)
    if not specs:
        raise KeyError(key)
    if any(spec.accepts(value) for spec in specs):
        return None
    return " or ".join(dict.fromkeys(spec.allowed for spec in specs))


EXTRAS = "extras"  # the map of those keys that do not stand beside the stages
# Features whose keys stand beside the stages, for a plan that is read where one is missing.
BESIDE_STAGES = {"evaluation": "benchmarks", "trackers": "trackers", "push_to": "hub"}


def with_keys(*, beside: bool) -> Iterator[tuple[str, type]]:
    """(name, struct of its keys) of each feature whose keys stand beside the stages or not."""
    for name, extra in extras().items():
        if extra.KEYS is not None and beside == extra.BESIDE_STAGES:
            yield name, extra.KEYS


def shapes_of_extras() -> dict[str, Shape]:
    """Key beside the stages -> what it may hold."""
    found: dict[str, Shape] = {}
    for _, keys in with_keys(beside=True):
        found |= shape_of(keys).keys
    inner = {name: shape_of(keys) for name, keys in with_keys(beside=False)}
    said = shape_of(Plan).keys[EXTRAS].help
    return found | {EXTRAS: Keys(keys=inner, others=missing_extra, help=said)}


def missing_extra(name: str, known: Collection[str]) -> str:
    """What to say of a key or a name that belongs to a feature that is not here; else ''."""
    extra = BESIDE_STAGES.get(name, name)
    why = all_extras().broken.get(extra)
    if why is None and name not in BESIDE_STAGES:  # nobody knows the name
        said = f"remove it, or install what brings the extra '{name}' and name its folder in"
        return did_you_mean(name, known) or f"{said} ADVISE_METHODS"
    why = f" ({why})" if why else ""
    return f"the extra '{extra}' is not here{why}: remove the key, or install it: {install_line()}"


def read_extras(data: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a feature -> the value of its struct, of those whose keys a checked plan has."""
    inner = data.get(EXTRAS) or {}
    found = {}
    for beside in (True, False):
        for name, keys in with_keys(beside=beside):
            source = data if beside else inner.get(name) or {}
            given = {key: source[key] for key in shape_of(keys).keys if key in source}
            value: Any = build(keys, given)
            if _stated(value):
                found[name] = value
    return found


def stated_extras(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys beside the stages, name -> keys below `extras`) of a plan, without defaults."""
    beside: dict[str, Any] = {}
    below: dict[str, Any] = {}
    for name, value in values.items():
        stated = _stated(value)
        if extras()[name].BESIDE_STAGES:
            beside |= stated
        elif stated:
            below[name] = stated
    return beside, below


def _stated(value: Any) -> dict[str, Any]:
    """What is neither the default nor, where there is none, None."""
    usual = {
        key: None if one is NODEFAULT else one for key, one in defaults_of(type(value)).items()
    }
    return {key: part for key in usual if (part := getattr(value, key)) != usual[key]}
