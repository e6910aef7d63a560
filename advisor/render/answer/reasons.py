"""A reason, a fact and an answer in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from advisor.advice.types import KnownFact, Reason
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import clauses, says

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
AMOUNTS = ("data_rows", "data_tokens")
MANY_FILES = 2  # above this their names say nothing more
# Where a fact came from, where the sentence that says it needs no further word.
STATED = ("flag", "answers file", "answered", "asked", "stated", "estimated")


def reason_text(reason: Reason) -> str:
    """The sentence of a reason, with its two numbers where the sentence does not carry them
    itself.
    """
    if reason.needs is None or _says(reason.text, reason.needs):
        return reason.text
    unit = f" {reason.unit}" if reason.unit else ""
    numbers = f"needs {reason.needs:,.6g}{unit}" + (
        f", has {reason.has:,.6g}{unit}" if reason.has is not None else ""
    )
    return f"{reason.text.rstrip('.')} ({numbers})"


def _says(text: str, number: float) -> bool:
    """True where the text holds the number, as rounded as people write it."""
    return any(
        abs(float(found) - number) <= 0.02 * abs(number)
        for found in re.findall(r"[0-9]+(?:\.[0-9]+)?", text.replace(",", ""))
    )


def reason_origin(reason: Reason) -> str:
    """'because you chose a low budget · rule document/scenario-5 · source: ...' with the parts that
    are known.
    """
    seen = [known for known in reason.facts if not known.origin.startswith("concluded")]
    return " · ".join(
        [
            *([f"because {clauses(map(known_words, seen))}"] if seen else []),
            *([f"rule {reason.rule}"] if reason.rule else []),
            *([f"source: {_first_of(reason.source)}"] if reason.source else []),
        ]
    )


def _first_of(sources: str) -> str:
    """'TRL guide: LoRA Without Regret, and 2 more': `advise rules ID` lists them all."""
    first, *others = sources.split("; ")
    return f"{first}, and {len(others)} more" if others else first


def known_words(known: KnownFact) -> str:
    """'your examples are plain documents (read from data/)'; what a person stated needs no
    origin.
    """
    fact = load_facts().get(known.fact)
    text = known.text or (says(fact, known.value) if fact else answer_words(known.value))
    origin = {"probed": "found on this machine"}.get(known.origin, known.origin)
    files = origin.removeprefix("read from ").split(", ")
    if len(files) > MANY_FILES and origin.startswith("read from "):
        # Of amounts the rules look at the largest.
        of_files = "the largest of " if known.fact in AMOUNTS else ""
        origin = f"read from {of_files}your {number_name(len(files))} files"
    return text if known.origin in STATED else f"{text} ({origin})"


def number_name(count: int) -> str:
    """'six' for 6; numbers above twelve in digits."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def answer_words(value: Any, fact_id: str = "") -> str:
    """An answer's value as text: a choice by its label, lists by commas, true and false as yes and
    no.
    """
    fact = load_facts().get(fact_id)
    if fact is not None and isinstance(value, str) and value in fact.values:
        return fact.values[value].label
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {answer_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(answer_words(part, fact_id) for part in value) or "none"
    if fact_id == "signals" and value in load_facts():
        return says(load_facts()[value], True)
    return f"{value:,}" if isinstance(value, int) else str(value)


def capital(text: str) -> str:
    """The text with a capital letter first; names inside keep theirs."""
    return text[:1].upper() + text[1:]
