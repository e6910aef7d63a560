"""What an answer is based on, and what its names mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from advisor.advice.types import Advice
from advisor.render.answer.reasons import answer_words, capital
from advisor.render.answer.rivals import canonical
from advisor.render.blocks import Item, Items, Section
from advisor.render.words import device_name, example_rows, meaning_of, model_name
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import inside_sentence, name_of


def legend(advice: Advice) -> Section:
    """Every name used above in one line: the guide's methods in its order, then the rest in the
    order they appear.
    """
    facts = {canonical(method_id): method for method_id, method in advice.methods.items()}
    used = dict.fromkeys(facts)
    for candidate in (advice.recommendation, *advice.alternatives):
        composition = candidate.composition
        used.update(
            dict.fromkeys(
                [
                    *composition.chain,
                    *([composition.scheme] if composition.scheme else []),
                    *composition.remedies,
                ]
            )
        )
    items = []
    for name in used:
        method = facts.get(name, {})
        label = str(method.get("name", name))
        label = label if label.lower() == name else f"{label} ({name})"
        told = [
            f"{label_} {method[key]}"
            for key, label_ in (("ideal", "ideal use case:"), ("data", "data:"))
            if method.get(key)
        ]
        items.append(
            Item(
                text=f"{label}: {method.get('plain') or meaning_of(name)}",
                detail=f"the guide: {'; '.join(told)}" if told else "",
            )
        )
    return Section(title="What the names mean", blocks=(Items(items=tuple(items)),))


def based_on(advice: Advice) -> Section:
    situation, rows = advice.situation, example_rows(advice)
    suggested = situation.suggestion is not None
    named = model_name(advice, otherwise="not named")
    items = [
        Item(
            text=f"Model: {named}{' (a suggestion: none was named)' if suggested else ''}",
            detail=_model_detail(advice),
        )
    ]
    origin = situation.hardware.origin
    machine = f"Machine: {device_name(advice)}"
    items.append(Item(text=machine if origin == "unknown" else f"{machine} ({origin})"))
    if situation.data is not None:
        items.append(
            Item(
                text=(
                    f"Data: {situation.data.path}: {situation.data.rows:,} examples,"
                    f" {_kind_words(situation.data.kind)} ({situation.data.format})"
                )
            )
        )
    elif not situation.tasks:
        kind = situation.answers.value("data_kind")
        stated = ", ".join(
            [*([f"{rows:,} examples"] if rows else []), *([_kind_words(kind)] if kind else [])]
        )
        items.append(Item(text=f"Data: {f'{stated} (stated)' if stated else 'not known'}"))
    items += [
        Item(
            text=(
                f"Data of {name}: {profile.path}: {profile.rows:,} examples,"
                f" {_kind_words(profile.kind)}"
            )
        )
        for name, profile in situation.tasks.items()
    ]
    stated_answers = {
        fact: answer
        for fact, answer in situation.answers.known.items()
        if fact not in ("data_path", "model")
    }
    if set(situation.answers.signals) <= set(
        stated_answers
    ):  # the wizard keeps each signal's own answer beside the list
        stated_answers.pop("signals", None)
    items += [
        Item(text=f"{_answer_name(fact)}: {answer_words(answer.value, fact)} ({answer.origin})")
        for fact, answer in stated_answers.items()
    ]
    items.append(Item(text=f"Rules: {', '.join(advice.layers)} (digest {advice.rules_digest})"))
    return Section(title="What this is based on", blocks=(Items(items=tuple(items)),))


def _kind_words(kind: Any) -> str:
    return inside_sentence(answer_words(str(kind), "data_kind"))


def _answer_name(fact_id: str) -> str:
    """What an answer is about: 'What the model should do'; a list of signals by its own name."""
    fact = load_facts().get(fact_id)
    return capital(name_of(fact) if fact else fact_id)


def _model_detail(advice: Advice) -> str:
    situation = advice.situation
    parts: Iterable[str] = ()
    if situation.suggestion is not None:
        parts = (situation.suggestion.because, situation.suggestion.source)
    elif situation.model is not None:
        parts = (situation.model.note, situation.model.source)
    return " · ".join(part for part in parts if part)
