"""What would change the answer, what is not known, and the warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from advisor.advice.advise import MAY_NOT_FIT, NO_MODEL, PART_OF_DATA
from advisor.advice.types import Advice
from advisor.methods.composition import Composition
from advisor.render.answer.reasons import answer_words, capital
from advisor.render.blocks import Item, Items, Section
from advisor.render.words import sentence
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import joined, named_with_flag, says

# To be read after what may be wrong: hints, then how a name was understood.
# What may end a run that takes the next command as it stands, the most telling first.
FIRST = tuple(
    re.compile(text)
    for text in (
        r"may mean .*: name one of",
        r": unknown model,|not a model we know by that name",
        r"never run on",
    )
)
HINTS = re.compile(r"^all \d+ GPUs are used|^generating the answers takes")
NOTES = re.compile(r"\bread as \S|(?<!by that name; )\btaken as \S|\bshape guessed|^shape of ")
SAID_ELSEWHERE = re.compile(f"^{NO_MODEL}|^{MAY_NOT_FIT}|{PART_OF_DATA}")


def flips(advice: Advice) -> Section:
    title = "What would change the answer" if advice.fits else "What would fit"
    return Section(
        title=title,
        blocks=(
            (
                Items(
                    items=tuple(
                        Item(text=flip_text(flip.change, flip.to, flip.text))
                        for flip in advice.flips
                    )
                ),
            )
            if advice.flips
            else ()
        ),
    )


def flip_text(change: Mapping[str, Any], to: Composition, text: str) -> str:
    """'If you chose a high budget: sft+full'; without a sentence of its own the answers that
    change.
    """
    if not text:
        text = f"if {joined(_changed_words(name, value) for name, value in change.items())}"
    return sentence(text) if str(to) in text else f"{sentence(text).rstrip('.')}: {to}"


def _changed_words(name: str, value: Any) -> str:
    facts = {fact.answer or fact.id: fact for fact in load_facts().values()}
    fact = facts.get(name) or load_facts().get(name)
    return says(fact, value, would=True) if fact else f"{name} were {answer_words(value)}"


def unknown(advice: Advice) -> Section:
    facts = {
        name: fact for fact in load_facts().values() for name in (fact.id, fact.answer or fact.id)
    }
    items = []
    for name in advice.unknown:
        fact = facts.get(name)
        asked = capital(named_with_flag(fact)) if fact else name
        items.append(Item(text=asked + (f": {fact.unknown}" if fact and fact.unknown else "")))
    return Section(title="What is not known", blocks=(Items(items=tuple(items)),) if items else ())


def told_warnings(advice: Advice) -> tuple[str, ...]:
    """What may end the run first, then the other warnings in their order, then hints, then how
    names were understood.

    Without what stands elsewhere on the page: that the model is a suggestion, what is known of its
    shape, that it may not fit, that a part of the data is used.
    """
    model = advice.situation.model
    note = "" if model is None else model.note
    told = [
        text
        for text in dict.fromkeys(advice.warnings)
        if text != note and not SAID_ELSEWHERE.search(text)
    ]
    told.sort(
        key=lambda text: (
            bool(NOTES.search(text)),
            bool(HINTS.search(text)),
            next((rank for rank, first in enumerate(FIRST) if first.search(text)), len(FIRST)),
        )
    )
    return tuple(text for text in told if not any(text in one and text != one for one in told))


def warnings(advice: Advice) -> Section:
    items = tuple(Item(text=sentence(warning), tone="warning") for warning in told_warnings(advice))
    return Section(title="Warnings", blocks=(Items(items=items),) if items else ())
