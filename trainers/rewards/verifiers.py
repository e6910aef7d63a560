"""Built-in verifiers: whether an answer is the wanted one, holds a pattern, or is JSON of a
form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from advisor.ground.errors import InputError, MachineNotReady

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
FENCED = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def same_answer(said: str, wanted: str) -> bool:
    """Whether what is said ends in the wanted answer.

    The final answer of a text is what stands after ####, in the last \\boxed{}, the last number
    where a number is wanted, or all of it. Numbers are compared by value; of texts, case, white
    space and a full stop at the end make no difference.
    """
    goal = final_answer(wanted)
    goal_number = number(goal)
    if goal_number is not None:
        marked = final_answer(said)
        own = number(marked)
        if own is None:
            found = NUMBER.findall(marked)
            own = number(found[-1]) if found else None
        return own is not None and own == goal_number
    return plain_text(final_answer(said)) == plain_text(goal)


def final_answer(text: str) -> str:
    """The part of a text that is its answer, where it is marked; else all of it."""
    text = text.split("</think>")[-1]
    boxed = BOXED.findall(text)
    if boxed:
        return str(boxed[-1]).strip()
    return text.rsplit("####", 1)[-1].strip()


def plain_text(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".").strip()


def number(text: str) -> float | None:
    """The value of a text that is a number, with or without thousands' commas, a unit of money or
    per cent; None for any other.
    """
    stripped = text.strip().strip("$€£%").rstrip(".").replace(",", "")
    try:
        value = float(stripped)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def matches(said: str, pattern: str, wanted: str | None) -> bool:
    """Whether the pattern is found in a text; {answer} in it stands for the wanted answer."""
    return re.search(pattern.replace("{answer}", re.escape(wanted or "")), said) is not None


def schema_validator(path: Path) -> Callable[[str], bool]:
    """Tells whether a text is JSON that fits the schema in a file.

    Raises InputError for a file that holds none.
    """
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError:
        raise MachineNotReady(
            "verifier json_schema needs jsonschema, which is not installed",
            hint="pip install jsonschema",
        ) from None
    try:
        schema = json.loads(path.read_text("utf-8"))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise InputError(f"{path}: no JSON schema: {str(error).splitlines()[0]}") from None
    checker = kind(schema)

    def valid(said: str) -> bool:
        text = said.split("</think>")[-1].strip()
        fenced = FENCED.match(text)
        try:
            value = json.loads(fenced.group(1) if fenced else text)
        except ValueError:
            return False
        return bool(checker.is_valid(value))

    return valid
