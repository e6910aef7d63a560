"""What is tried of each key: a value of every kind, to see what the tool's classes refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# advisor/other_tools/tables/keys.py (TRIED) says what the kinds are.
VALUES: Mapping[str, Any] = {
    "flag": True, "integer": 7, "number": 2.5, "text": "word", "digits": "3", "list": ["word"],
    "map": {"word": 1}, "null": None, "other": "no_such_choice",
}  # fmt: skip
WORD = "word"  # for a key that has to be there


def kinds_to_try(entry: Mapping[str, Any]) -> list[str]:
    """The kinds of value that are not among the key's types, and a text that is no choice."""
    types = set(entry["types"])
    if "any" in types:
        return []
    if "text" in types and (entry.get("open") or not entry.get("choices")):
        types |= {"text", "digits", "other"}
    if not entry.get("choices") or entry.get("open"):
        types.add("other")
    if any(name[:1].isupper() for name in types):
        types.add("map")  # a map of another class's keys
    return [kind for kind in VALUES if kind not in types]


def trial(kind: str, entry: Mapping[str, Any]) -> Any:
    """The value of a kind to try: of numbers as texts one that would be right as a number."""
    value = control(entry)
    if kind == "digits" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return VALUES[kind]


def control(entry: Mapping[str, Any]) -> Any:
    """A value that the key is meant for and that is not its default. If a class refuses this one,
    it is for what else it holds, and nothing is learnt from trials.
    """
    default = entry.get("default")
    for choice in entry.get("choices", ()):
        if choice != default:
            return choice
    kind = next(name for name in (*entry["types"], "any") if name != "null")
    if kind == "flag":
        return default is not True
    if kind in ("integer", "number") and default:
        return 2 * default
    if kind == "list" and set(entry.get("of", ())) & {"integer", "number"}:
        return [1]
    return VALUES.get(kind, {})


def pretend_gpu() -> None:
    """Let transformers take this machine for one with a GPU that computes in bfloat16: what it
    refuses on another is no matter of the keys.
    """
    import transformers.training_args as module

    for name in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
        if hasattr(module, name):
            setattr(module, name, lambda *_: True)
