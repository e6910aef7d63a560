"""Advice -> Page: what the whole answer shows, in which order, as plain values: sections of text,
items and tables. The terminal decides about width and colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from advisor.advice.types import Advice
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.first import First, first_screen
from advisor.render.answer.needs import needs
from advisor.render.answer.reasons import (
    answer_words,
    flips,
    number_name,
    steps_section,
    stuck_section,
    unknown,
    warnings,
    why,
)
from advisor.render.answer.rivals import canonical, named_methods, rivals
from advisor.render.blocks import Item, Section, listed
from advisor.render.words import (
    device_name,
    example_rows,
    is_chosen,
    meaning_of,
    model_name,
)
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import inside_sentence, joined, name_of

# What stands beside the model, the machine and the data, and is not repeated as an answer.
SAID = ("model", "model_params_b", "gpu", "gpus", "gpu_memory_gib", "data_path", "data_kind",
        "data_rows", "data_tokens", "tasks")  # fmt: skip
FEW_FILES = 2  # that are listed one by one


def legend(advice: Advice) -> Section:
    """The names in the recommendation, one line each."""
    facts = {canonical(method_id): method for method_id, method in advice.methods.items()}
    items = []
    for name in dict.fromkeys(named_methods(advice.recommendation.composition)):
        method = facts.get(name, {})
        label = str(method.get("name", name))
        label = label if label.lower() == name else f"{label} ({name})"
        items.append(Item(text=f"{label}: {method.get('plain') or meaning_of(name)}"))
    items.append(Item(text="any other name: `advise rules NAME` explains it", tone="quiet"))
    return Section(title="What the names mean", blocks=listed(items))


def based_on(advice: Advice) -> Section:
    """The model, the machine, the data, what was stated besides, and the rules."""
    situation = advice.situation
    suggested = situation.suggestion is not None
    named = model_name(advice, otherwise="not named")
    model = f"Model: {named}{' (a suggestion: none was named)' if suggested else ''}"
    origin = situation.hardware.origin
    machine = f"Machine: {device_name(advice)}"
    items = [
        Item(text=model, detail=_model_detail(advice)),
        Item(text=machine if origin == "unknown" else f"{machine} ({origin})"),
        *(Item(text=text) for text in _data(advice)),
    ]
    if stated := _stated(advice):
        items.append(Item(text=f"You said: {'; '.join(stated)}"))
    items.append(Item(text=f"Rules: {', '.join(advice.layers)} (digest {advice.rules_digest})"))
    return Section(title="What this is based on", blocks=listed(items))


def _data(advice: Advice) -> Iterator[str]:
    """What the data are; many files together."""
    situation, rows = advice.situation, example_rows(advice)
    profiles = situation.tasks
    if situation.data is not None:
        data = situation.data
        kind = _kind_words(data.kind)
        yield f"Data: {data.path}: {data.rows:,} examples, {kind} ({data.format})"
    elif len(profiles) > FEW_FILES:
        kinds = joined(dict.fromkeys(_kind_words(one.kind) for one in profiles.values()))
        each = ", ".join(f"{name} {profile.rows:,}" for name, profile in profiles.items())
        files = f"your {number_name(len(profiles))} files"
        yield f"Data: {rows:,} examples in {files}, {kinds}: {each}"
    elif profiles:
        for name, one in profiles.items():
            yield f"Data of {name}: {one.path}: {one.rows:,} examples, {_kind_words(one.kind)}"
    else:
        kind = situation.answers.value("data_kind")
        tokens = situation.answers.value("data_tokens")
        stated = [f"{rows:,} examples"] if rows else []
        stated += [f"{tokens:,} tokens"] if tokens else []
        stated += [_kind_words(kind)] if kind else []
        yield f"Data: {', '.join(stated)} (stated)" if stated else "Data: not known"


def _stated(advice: Advice) -> list[str]:
    """The other answers: 'what the model should do: Answer customers'."""
    answers = {
        fact: answer for fact, answer in advice.situation.answers.known.items() if fact not in SAID
    }
    if set(advice.situation.answers.signals) <= set(answers):
        # The wizard keeps each signal's own answer beside the list.
        answers.pop("signals", None)
    return [
        f"{_answer_name(fact)}: {answer_words(answer.value, fact)}"
        for fact, answer in answers.items()
    ]


def _kind_words(kind: Any) -> str:
    return inside_sentence(answer_words(str(kind), "data_kind"))


def _answer_name(fact_id: str) -> str:
    """What an answer is about: 'what the model should do'; a list of signals by its own name."""
    fact = load_facts().get(fact_id)
    return name_of(fact) if fact else fact_id


def _model_detail(advice: Advice) -> str:
    situation = advice.situation
    parts: Iterable[str] = ()
    if situation.suggestion is not None:
        parts = (situation.suggestion.because, situation.suggestion.source)
    elif situation.model is not None:
        parts = (situation.model.note, situation.model.source)
    return " · ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The whole answer, ready to be shown."""

    first: First  # what is seen first, and where the terminal shows nothing else
    sections: tuple[Section, ...]


def page_of(advice: Advice, *, plan_path: str | None = None) -> Page:
    """Everything that is to be said about an Advice, in order. Empty sections are left out."""
    if advice.recommendation.composition.remedies == (OTHER_TOOL,):
        # What was compared, and what would change it, is about models that are trained here.
        sections = [why(advice), warnings(advice), based_on(advice), steps_section(advice)]
    else:
        sections = [
            stuck_section(advice),
            why(advice),
            needs(advice),
            rivals(advice),
            *([] if is_chosen(advice) else [flips(advice)]),
            unknown(advice),
            warnings(advice),
            legend(advice),
            based_on(advice),
            steps_section(advice, plan_path=plan_path),
        ]
    return Page(
        first=first_screen(advice, plan_path=plan_path),
        sections=tuple(section for section in sections if section.blocks),
    )
