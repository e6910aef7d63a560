"""Advice -> Page: the sections of the whole answer, in order, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from advisor.advice.types import Advice
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.first import FirstScreen, first_screen, steps_section
from advisor.render.answer.needs import needs
from advisor.render.answer.rivals import canonical, named_methods, rivals
from advisor.render.answer.why import (
    answer_words,
    flips,
    number_name,
    obstacles,
    unknown,
    warnings,
    why,
)
from advisor.render.blocks import Item, Section, listed
from advisor.render.words import device_name, example_rows, is_chosen, meaning_of, model_name
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import inside_sentence, joined, name_of

# What stands beside the model, the machine and the data, and is not repeated as an answer.
SAID = ("model", "model_params_b", "gpu", "gpus", "gpu_memory_gib", "data_path", "data_kind",
        "data_rows", "data_tokens", "tasks")  # fmt: skip
FEW_FILES = 2  # that are listed one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The whole answer, ready to be shown."""

    first: FirstScreen  # what is seen first, and where the terminal shows nothing else
    sections: tuple[Section, ...]


def page_of(advice: Advice, *, plan_path: str | None = None) -> Page:
    """Everything that is to be said about an Advice, in order. Empty sections are left out."""
    if advice.recommendation.composition.remedies == (OTHER_TOOL,):
        # What was compared, and what would change it, is about models that are trained here.
        sections = [why(advice), warnings(advice), based_on(advice), steps_section(advice)]
    else:
        sections = [
            obstacles(advice),
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


def legend(advice: Advice) -> Section:
    """The names in the recommendation, one line each."""
    methods = {canonical(method_id): method for method_id, method in advice.methods.items()}
    items = []
    for name in dict.fromkeys(named_methods(advice.recommendation.composition)):
        method = methods.get(name, {})
        label = str(method.get("name", name))
        label = label if label.lower() == name else f"{label} ({name})"
        items.append(Item(text=f"{label}: {method.get('plain') or meaning_of(name)}"))
    items.append(Item(text="any other name: `advise rules NAME` explains it", tone="quiet"))
    return Section(title="What the names mean", blocks=listed(items))


def based_on(advice: Advice) -> Section:
    """The model, the machine, the data, what was stated besides, and the rules."""
    situation = advice.situation
    name, suggestion, model = model_name(advice, "not named"), situation.suggestion, situation.model
    detail = ("", "") if model is None else (model.note, model.source)
    if suggestion is not None:
        name += " (a suggestion: none was named)"
        detail = (suggestion.because, suggestion.source)
    origin = situation.hardware.origin
    machine = f"{device_name(advice)}{'' if origin == 'unknown' else f' ({origin})'}"
    stated = "; ".join(_stated(advice))
    items: list[str | Item] = [
        Item(text=f"Model: {name}", detail=" · ".join(filter(None, detail))),
        f"Machine: {machine}",
        *_data(advice),
        *([f"You said: {stated}"] if stated else []),
        f"Rules: {', '.join(advice.layers)} (digest {advice.rules_digest})",
    ]
    return Section(title="What this is based on", blocks=listed(items))


def _data(advice: Advice) -> Iterator[str]:
    situation, rows = advice.situation, example_rows(advice)
    files, data = situation.tasks, situation.data
    if data is not None:
        kind = _kind_words(data.kind)
        yield f"Data: {data.path}: {data.rows:,} examples, {kind} ({data.format})"
    elif len(files) > FEW_FILES:
        kinds = joined(dict.fromkeys(_kind_words(one.kind) for one in files.values()))
        each = ", ".join(f"{name} {profile.rows:,}" for name, profile in files.items())
        yield f"Data: {rows:,} examples in your {number_name(len(files))} files, {kinds}: {each}"
    elif files:
        for name, one in files.items():
            yield f"Data of {name}: {one.path}: {one.rows:,} examples, {_kind_words(one.kind)}"
    else:
        kind, tokens = (situation.answers.value(f"data_{name}") for name in ("kind", "tokens"))
        stated = [f"{rows:,} examples"] if rows else []
        stated += [f"{tokens:,} tokens"] if tokens else []
        stated += [_kind_words(kind)] if kind else []
        yield f"Data: {', '.join(stated)} (stated)" if stated else "Data: not known"


def _kind_words(kind: str) -> str:
    return inside_sentence(answer_words(kind, "data_kind"))


def _stated(advice: Advice) -> Iterator[str]:
    known, facts = advice.situation.answers.known, load_facts()
    answers = {fact_id: answer for fact_id, answer in known.items() if fact_id not in SAID}
    if set(advice.situation.answers.signals) <= set(answers):
        # The wizard keeps each signal's own answer beside the list.
        answers.pop("signals", None)
    for fact_id, answer in answers.items():
        name = name_of(facts[fact_id]) if fact_id in facts else fact_id  # signals by their own name
        yield f"{name}: {answer_words(answer.value, fact_id)}"
