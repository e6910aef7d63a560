"""A plan with some values changed from the command line: `--set stages.0.learning_rate=1e-4`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, nearest
from advisor.ground.shape import NamedValue, refuse_secrets
from advisor.ground.yaml_reader import parse_yaml
from advisor.plan.keys import KeySpecs
from advisor.plan.model import Plan
from advisor.plan.read import plan_from_data
from advisor.plan.write import plan_data

Place = tuple[str | int, ...]
FORM = "PATH=VALUE, such as stages.0.learning_rate=1e-4 or stages.NAME.epochs=2"


def set_values(
    plan: Plan, settings: Iterable[str], *, base: Path | None = None, specs: KeySpecs | None = None
) -> Plan:
    """The plan with the settings applied in order and checked as a whole; `null` puts a value back
    to its default.

    A stage or a task is named by its number from 0 or by its name. Raises InputError with every
    fault, each naming the setting it comes from.
    """
    settings = list(settings)
    if not settings:
        return plan
    for text in settings:  # before any message repeats it
        name, _, value = text.partition("=")
        refuse_secrets(NamedValue("", _nested(name, value)))
    changed = _Changed(plan_data(plan))
    faults = [fault for text in settings if (fault := changed.apply(text)) is not None]
    if faults:
        raise InputError(faults=faults)
    return plan_from_data(changed, base=base, specs=specs)


def _nested(name: str, value: str) -> Any:
    """A setting as plain data: {'trl': {'seed': '3'}} of trl.seed=3."""
    nested: Any = value
    for part in reversed(name.strip().split(".")):
        nested = {part: nested}
    return nested


@dataclass
class _Changed:
    """The plan's data while it is being changed, and which setting wrote which place."""

    data: dict[str, Any]
    written: dict[Place, str] = field(default_factory=dict)

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        """The setting that wrote the place or something around it, else the place itself."""
        for length in range(len(path), -1, -1):
            if tuple(path[:length]) in self.written:
                return self.written[tuple(path[:length])]
        inner = [
            text
            for place, text in self.written.items()
            if path and place[: len(path)] == tuple(path)
        ]
        return inner[-1] if inner else ".".join(["plan", *map(str, path)])

    def apply(self, text: str) -> Fault | None:
        """Write one setting into the data, or say why it cannot be."""
        name, equals, value_text = text.partition("=")
        at = f"--set {text}"
        parts = name.strip().split(".")
        if not equals or not all(parts):
            return Fault(where=at, what="not a setting", allowed=FORM)
        try:
            value = parse_yaml(value_text, name=at).data if value_text.strip() else ""
        except InputError as error:
            return error.faults[0]
        node: Any = self.data
        place: Place = ()
        for part in parts[:-1]:
            step = _step(node, part, place)
            if isinstance(step, Fault):
                return replace(step, where=at)
            place = (*place, step)
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[step]
        if isinstance(node, dict):
            step = parts[-1]
            if (
                value is None
                and (len(place) < 3 or place[2] not in ("trl", "peft"))
                and place[:2] != ("origin", "answers")
            ):
                node.pop(step, None)
            else:
                node[step] = value
        else:
            found = _step(node, parts[-1], place)
            if isinstance(found, Fault):
                return replace(found, where=at)
            node[found] = value
            step = str(found)
            place = (*place, found)
        self.written[(*place, step) if isinstance(node, dict) else place] = at
        return None


def _step(node: Any, part: str, place: Place) -> str | int | Fault:
    """The key or index that one part of a path means inside a node."""
    where = ".".join(map(str, place)) or "the plan"
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        return Fault(what=f"'{where}' has no parts", allowed=FORM)
    names = [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in node]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    known = [name or str(index) for index, name in enumerate(names)]
    return Fault(
        what=f"'{where}' has no entry '{part}'",
        allowed=f"known: {', '.join(known)}, or a number from 0 to {len(node) - 1}",
        hint=nearest(part, known),
    )
