"""What pydantic models do with single keys, found by making them."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tools.other_tools.probe.kinds import INSTEAD
from tools.other_tools.probe.trials import VALUES, control, kinds_to_try, trial

# What a file of Axolotl cannot do without.
NEEDED: Mapping[str, Any] = {
    "base_model": "word/word", "datasets": [{"path": "word", "type": "alpaca"}],
    "learning_rate": 1e-4, "micro_batch_size": 1, "gradient_accumulation_steps": 1,
}  # fmt: skip
# How a message says of a key that it ends: "`x: true` is deprecated", not "`y` of x is deprecated".
ENDS = r"(?i)\b{key}\b[^.]{{0,30}}\b(is|has been) (deprecated|no longer supported)"


@dataclass
class Attempt:
    """A model made of some values.

    Attributes:
        made: The model; None if it was refused.
        blamed: The keys that pydantic names in its refusal.
        said: What was logged or raised on the way.
        ended: Whether the model refuses the values because something in them has ended.
    """

    made: Any
    blamed: set[str]
    said: list[str]
    ended: bool = False


def attempt(cls: type[BaseModel], values: Mapping[str, Any]) -> Attempt:
    """Make the model of these values and of what it cannot do without."""
    of_a_file = "base_model" in cls.model_fields
    needed = {
        name: NEEDED.get(name, VALUES[control_kind(field.annotation)])
        for name, field in cls.model_fields.items()
        if field.is_required() or (of_a_file and name in NEEDED)
    }
    with listening() as said:
        try:
            return Attempt(cls(**{**needed, **values}), set(), said)
        except ValidationError as error:
            places = [item["loc"] for item in error.errors()]
            said += [str(item["msg"]) for item in error.errors()]
            return Attempt(None, {str(place[0]) for place in places if place}, said)
        except DeprecationWarning as error:
            return Attempt(None, set(values), [*said, str(error)], ended=True)
        except Exception as error:  # its validators do not expect the value
            return Attempt(None, set(values), [*said, str(error)])


def control_kind(annotation: Any) -> str:
    """A kind of value for a required key."""
    return {str: "text", float: "number", int: "integer", bool: "flag"}.get(annotation, "list")


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is logged and warned meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(one.message) for one in caught]
    finally:
        logging.getLogger().removeHandler(handler)


def experience(cls: type[BaseModel], key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What trying a key showed: `trials`, and whether it is on its way out."""
    first = attempt(cls, {key: control(entry)})
    found = ending(first, key, entry, set(cls.model_fields))
    if first.made is None and key in first.blamed:
        return found
    trials = {}
    for kind in kinds_to_try(entry):
        tried = attempt(cls, {key: trial(kind, entry)})
        blamed = tried.blamed & {key, *entry.get("also", ())}
        # Refused for another key's sake, nothing is learnt of this one.
        if tried.made is not None or blamed:
            trials[kind] = not blamed
    return found | {"trials": trials}


def ending(tried: Attempt, key: str, entry: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """What the model's own code says of the key's end."""
    words = [text for text in tried.said if re.search(ENDS.format(key=key), text)]
    if not words:
        return {}
    instead = [name for text in words for name in INSTEAD.findall(text)]
    instead = [name for name in instead if name in known - {key}]
    found: dict[str, Any] = {"deprecated": True}
    if tried.ended:
        found["gone"] = True
    return found | ({"instead": instead[0]} if instead and "instead" not in entry else {})
