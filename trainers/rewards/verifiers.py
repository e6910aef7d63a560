"""Built-in verifiers: whether an answer is the expected one, contains a pattern, or is JSON that
fits a schema; and penalties, 0 for a good answer and -1 for the worst: for one that grows too long,
and one that repeats itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from advisor.ground.annotated import parse_json
from advisor.ground.errors import InputError, MachineNotReady

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
FENCED = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def same_answer(answer: str, expected: str) -> bool:
    """Whether the final answer of a text is the expected one.

    The final answer is what follows ####, is in the last \\boxed{}, is the last number if a number
    is expected, or all of the text. Numbers are compared by value; in texts, case, white space and
    a full stop at the end make no difference.
    """
    goal = final_answer(expected)
    goal_number = number(goal)
    if goal_number is not None:
        marked = final_answer(answer)
        own = number(marked)
        if own is None:
            found = NUMBER.findall(marked)
            own = number(found[-1]) if found else None
        return own is not None and own == goal_number
    return plain_text(final_answer(answer)) == plain_text(goal)


def final_answer(text: str) -> str:
    """The part of a text that is marked as its answer; without a mark, all of it."""
    text = text.split("</think>")[-1]
    boxed = BOXED.findall(text)
    if boxed:
        return str(boxed[-1]).strip()
    return text.rsplit("####", 1)[-1].strip()


def plain_text(text: str) -> str:
    """The text without case, extra white space and a full stop at the end."""
    return " ".join(text.split()).casefold().rstrip(".").strip()


def number(text: str) -> float | None:
    """The value of a text that is a number (thousands' commas, currencies and per cent are
    allowed); None for any other text.
    """
    stripped = text.strip().strip("$€£%").rstrip(".").replace(",", "")
    try:
        value = float(stripped)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def matches(answer: str, pattern: str, expected: str | None, *, whole: bool = False) -> bool:
    """Whether a text contains the pattern, in which {answer} stands for the expected answer.

    Args:
        whole: It has to match all of the text, white space around it aside; a dot matches line
            ends, too.
    """
    written = pattern.replace("{answer}", re.escape(expected or ""))
    found = (
        re.fullmatch(written, answer.strip(), re.DOTALL) if whole else re.search(written, answer)
    )
    return found is not None


def schema_validator(path: Path) -> Callable[[str], bool]:
    """A function that says whether a text is JSON that fits the schema in a file.

    Raises InputError for a file without a schema, and MachineNotReady without jsonschema.
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
        schema = parse_json(path.read_text("utf-8"))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise InputError(
            f"not a JSON schema: {str(error).splitlines()[0]}", where=str(path)
        ) from None
    checker = kind(schema)

    def valid(answer: str) -> bool:
        text = answer.split("</think>")[-1].strip()
        fenced = FENCED.match(text)
        try:
            value = parse_json(fenced.group(1) if fenced else text)
        except ValueError:
            return False
        return bool(checker.is_valid(value))

    return valid


# --------------------------------------------------------------------------- penalties


def overlong_penalty(tokens: int, *, limit: int, overlong: int) -> float:
    """0 for an answer that leaves `overlong` tokens of the limit unused, falling to -1 at it.

    Args:
        tokens: Of the answer.
        limit: The longest answer, at which it is cut (L_max).
        overlong: The last tokens before it, over which the penalty grows (L_cache).

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, equation 13.
    """
    return -min(1.0, max(0, tokens - (limit - overlong)) / overlong)


def repetition_penalty(text: str, *, ngram: int) -> float:
    """Minus the share of word sequences that occurred before in the text; case does not count.

    A text of fewer words than a sequence has repeats nothing. Without spaces between its words, as
    Chinese is written, a text is one word.

    Args:
        text: The answer.
        ngram: Words in a sequence.

    Source: Demystifying Long Chain-of-Thought Reasoning in LLMs, arXiv:2502.03373, appendix C.2, as
    in open-r1.
    """
    words = text.casefold().split()
    sequences = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return len(set(sequences)) / len(sequences) - 1.0 if sequences else 0.0
