"""Facts inside sentences: what a value says, what a rule wants, what is not known.

The words are those of rules/facts.yaml: `phrase`, `denied`, `name`, and `short` of a value. A verb
stands there in two forms, `[is|were]`: the first says what is so, the second what would have to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from advisor.methods import methods, schemes
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Condition, Interval

_FORMS = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_SINGULAR = re.compile(r"(?<![\d.,])1 (\w+)s\b")


def inside_sentence(text: str) -> str:
    """The text as a part of a sentence: a small first letter, save where the first word is a name.

    'Requests with answers' -> 'requests with answers'; 'LoRA fits' and 'A' of a plan stay readable.
    """
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first[:1].isalpha() and not is_name(first) else text


def is_name(word: str) -> bool:
    """Whether a word keeps its letters as they are: vLLM, gpt2 and acme/own are no plain words."""
    return word[1:] != word[1:].lower() or re.search(r"[/\d]", word) is not None


def joined(parts: Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(parts)
    return f"{', '.join(items[:-1])} {last} {items[-1]}" if len(items) > 1 else "".join(items)


def clauses(parts: Iterable[str]) -> str:
    """Whole clauses after one another: 'you chose a low budget, and LoRA fits'."""
    items = list(parts)
    return f"{', '.join(items[:-1])}, and {items[-1]}" if len(items) > 1 else "".join(items)


def says(fact: Fact, value: Any, *, would: bool = False) -> str:
    """What a fact with this value says: 'you chose a low budget'; with `would`, after "if"."""
    return _filled(fact, [value_words(fact, value)], denied=value is False, would=would)


def name_of(fact: Fact) -> str:
    """What a sentence calls a fact: 'how much it may cost', 'whether a program can check them'."""
    if fact.type == "flag" and not fact.name:
        return f"whether {says(fact, True)}"
    if fact.name:
        return fact.name.replace("{scheme}", "the scheme")
    return f"the answer to “{fact.ask.split(' (')[0]}”"


def named_with_flag(fact: Fact) -> str:
    """The same with the flag that states it: 'how much it may cost (`--budget`)'."""
    flag = f"--signal {fact.id}" if fact.signal else fact.flag
    return f"{name_of(fact)} (`{flag}`)" if flag else name_of(fact)


def wants(fact: Fact, condition: Condition, *, would: bool = False) -> str:
    """What a rule wants of a fact: 'you have under 50 examples (or not known)'."""
    order = (True, False) if fact.type == "flag" else fact.values
    known = [value for value in order if value in condition.values]
    if fact.type == "flag":
        said = ", or ".join(says(fact, value, would=would) for value in known)
    elif condition.intervals:
        said = _filled(fact, [interval_words(one) for one in condition.intervals], would=would)
    else:
        others = [value for value in fact.values if value not in known and value != UNKNOWN]
        denied = bool(fact.denied) and 0 < len(others) < len(known)
        named = [value_words(fact, value) for value in (others if denied else known)]
        said = _filled(fact, named, denied=denied, would=would) if named else ""
    if not condition.unknown:
        return said
    return f"{said} (or not known)" if said else f"{name_of(fact)} is not known"


def value_words(fact: Fact, value: Any) -> str:
    """A value inside a sentence: a choice by its short form, a number as people write it."""
    if fact.type == "number" and isinstance(value, int | float):
        return number_words(value)
    known = fact.values.get(value) if isinstance(value, str) else None
    if known is not None and known.short:
        return known.short
    if known is not None and known.label != value:
        return inside_sentence(known.label)
    return method_words(str(value))


def method_words(name: str) -> str:
    """A scheme, an objective or a chain inside a sentence: 'continued pre-training'."""
    if name in schemes():
        return inside_sentence(schemes()[name].name)
    stages = name.removeprefix("encoder:").split(">")
    known = methods().objectives
    if not all(stage in known for stage in stages):
        update = methods().updates.get(name)
        return inside_sentence(update.name) if update else name
    said = ", then ".join(
        f"{'a ' if known[stage].scores else ''}{inside_sentence(known[stage].name)}"
        for stage in stages
    )
    return (
        f"{said} of an encoder or a sequence-to-sequence model"
        if name.startswith("encoder:")
        else said
    )


def number_words(value: float) -> str:
    """1500 -> '1,500', 8.19 -> '8.19', 0.59604992 -> '0.596'."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def interval_words(interval: Interval) -> str:
    """'at least 50 and under 500'."""
    if interval.low is not None and interval.low == interval.high:
        return number_words(interval.low)
    parts = []
    if interval.low is not None:
        parts.append(
            f"{'at least' if interval.low_included else 'over'} {number_words(interval.low)}"
        )
    if interval.high is not None:
        parts.append(
            f"{'at most' if interval.high_included else 'under'} {number_words(interval.high)}"
        )
    return " and ".join(parts)


def not_known(facts: Sequence[Fact], *, alone: bool = True) -> str:
    """That a person has not said something: 'you have not said what matters most'. `alone`: the
    sentence has just named it, so that "so" is enough for a flag.
    """
    if alone and all(fact.type == "flag" for fact in facts):
        return "you have not said so" if len(facts) == 1 else "you have said neither"
    return f"you have not said {joined(map(name_of, facts), 'or')}"


def _filled(fact: Fact, words: list[str], *, denied: bool = False, would: bool = False) -> str:
    template = fact.denied if denied else fact.phrase
    if not template:
        if fact.type != "flag" or not fact.ask:
            return "" if denied else f"{fact.id.replace('_', ' ')} is {joined(words, 'or')}"
        yes_no, you = "no" if denied else "yes", "answered"
        return f"you {you} {yes_no} to “{fact.ask.split(' (')[0]}”"
    clause = template.strip() == "{value}"
    text = template.replace("{scheme}", "the scheme")
    text = text.replace("{value}", (", or ".join(words) if clause else joined(words, "or")))
    text = _FORMS.sub(lambda found: found[2 if would else 1], text)
    return _SINGULAR.sub(r"1 \1", text) if fact.type == "number" else text
