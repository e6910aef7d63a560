"""Stage keys that belong to one update scheme or one objective, as their own files declare them.

rules/updates/<name>.yaml and rules/objectives/<name>.yaml list such keys under `keys:` with type,
bounds and default. The reader of plans refuses what no file declares, the JSON Schema offers them
in the editor, trainers take their defaults from here. So a new method brings its keys in its own
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.methods import methods
from advisor.methods.keys import Key as Key
from advisor.methods.keys import Refusal
from advisor.methods.model import Method, Methods


@dataclass(frozen=True, slots=True)
class KeySpecs:
    """Every declared key, by update and by objective."""

    updates: Mapping[str, Method]
    objectives: Mapping[str, Method]

    def allowed(self, objective: str, update: str) -> dict[str, Key]:
        """The keys a stage of that objective and update may have beside the common ones; the
        update's come first.
        """
        found: dict[str, Key] = {}
        for table, name in ((self.updates, update), (self.objectives, objective)):
            if name in table:
                found |= {key: spec for key, spec in table[name].keys.items() if key not in found}
        return found

    def owners(self, key: str) -> list[str]:
        """Who declares a key: ['update lora']."""
        return [
            spec.owner
            for table in (self.updates, self.objectives)
            for method in table.values()
            for name, spec in method.keys.items()
            if name == key
        ]

    def names(self) -> list[str]:
        """Every declared key's name, once, in file order."""
        return list(
            dict.fromkeys(
                name
                for table in (self.updates, self.objectives)
                for method in table.values()
                for name in method.keys
            )
        )

    def default(self, key: str, *, objective: str, update: str) -> Any:
        """The default of a common key (learning_rate, ...) for that objective and update; the
        objective's file wins. None: no default.
        """
        for table, name in ((self.objectives, objective), (self.updates, update)):
            if name in table and key in table[name].defaults:
                return table[name].defaults[key]
        return None

    def unused(self, key: str, *, objective: str, update: str) -> str | None:
        """Why this objective or update never reads a common key, or None where it does."""
        for axis, table, name in (
            ("update", self.updates, update),
            ("objective", self.objectives, objective),
        ):
            if name in table and key in table[name].unused:
                return f"{axis} {name} does not read it: {table[name].unused[key]}"
        return None

    def refused(self, stage: Mapping[str, Any]) -> list[tuple[str, Refusal]]:
        """(`update prefix`, what it refuses of this stage) of each method of the stage; keys are
        looked up in the stage as written.
        """
        methods = (("update", self.updates), ("objective", self.objectives))
        return [
            (f"{axis} {stage[axis]}", refusal)
            for axis, table in methods
            if stage.get(axis) in table
            for refusal in table[stage[axis]].refuses
            if any(
                stage.get(refusal.key) == value and type(stage.get(refusal.key)) is type(value)
                for value in refusal.values
            )
        ]

    def effective(
        self, options: Mapping[str, Any], *, objective: str, update: str
    ) -> dict[str, Any]:
        """A stage's options with the declared default of every key that was not given: what a
        trainer should read.
        """
        return {
            name: options.get(name, spec.default)
            for name, spec in self.allowed(objective, update).items()
        }


@cache
def key_specs() -> KeySpecs:
    """The keys that the files of all methods declare."""
    return specs_of(methods())


def specs_of(found: Methods) -> KeySpecs:
    """The keys that these methods declare."""
    return KeySpecs(updates=found.updates, objectives=found.objectives)
