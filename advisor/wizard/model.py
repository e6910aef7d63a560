"""The question which model to start from: a typed name becomes a model that exists, or the person
chooses what to do with it.
"""

from __future__ import annotations

from typing import Any

from advisor.ruleset.facts import load_facts
from advisor.situation.model_choice import Meant
from advisor.wizard.checks import Checks
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.typed import number_of, typed
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

AGAIN, KEEP = "again", "keep"  # what to do with a name, beside choosing a model


def ask_model(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The model as the hub or the file system writes it. A name that may mean several, or that
    nothing knows, is asked about at once; nothing is accepted here that fails later for its name.
    """
    message = f"{question.number}. {question.fact.ask}"
    suggests = question.fact.id == "model"
    while True:
        reply = typed(
            question,
            ui,
            message,
            lambda text: _meant(text, ui, checks),
            empty="I don't know; one is suggested" if suggests else "I don't know",
        )
        if not isinstance(reply, tuple):
            return reply
        name, meant = reply
        if meant.id is not None:
            if meant.note:
                ui.say(f"  {meant.note}", tone="quiet")
            return _answer(question, meant.id)
        chosen = ui.choose(_question(name, meant), _options(name, meant, suggests=suggests))
        if chosen is DONT_KNOW:
            return DONT_KNOW
        if chosen == KEEP:
            return _answer(question, name, _size(question, ui, name) if suggests else None)
        if chosen != AGAIN:
            return _answer(question, chosen)


def _meant(text: str, ui: Ui, checks: Checks) -> tuple[str, Meant]:
    """Raises ValueError for a folder that is no model: there is nothing to choose, but to correct
    it.
    """
    if "/" in text:
        ui.say(f"Looking for {text} …", tone="quiet")  # the hub may take some seconds
    meant = checks.models(text)
    if meant.wrong:
        raise ValueError(meant.note)
    return text, meant


def _question(name: str, meant: Meant) -> str:
    if meant.near and not meant.misspelt and not meant.note:
        return f"Which model is meant by {name}?"
    what = f"{meant.note}." if meant.note else f"No model called {name} is known here."
    return what + (" Did you mean one of these?" if meant.near else " What now?")


def _options(name: str, meant: Meant, *, suggests: bool) -> list[Option]:
    kept = (
        "it is looked up again before it is trained"
        if "/" in name
        else "for advice alone: training needs a model of the hub or a folder"
    )
    return [
        *(Option(value=model.id, label=model.id, help=model.about) for model in meant.near),
        Option(value=AGAIN, label="Type another name"),
        Option(value=KEEP, label=f"Keep {name}", help=kept),
        Option(
            value=DONT_KNOW, label="I don't know", help="a model is suggested" if suggests else ""
        ),
    ]


def _size(question: Question, ui: Ui, name: str) -> Any:
    """Billions of parameters of a model that nothing here knows; None where its name says so, or
    nobody does.
    """
    from advisor.situation.model_names import size_of

    if size_of(name, None).params is not None:
        return None
    fact = load_facts()["model_params_b"]
    reply = typed(
        Question(fact=fact, number=question.number),
        ui,
        "How many billion parameters does it have? (8 for a model of 8B)",
        lambda text: number_of(text.lower().removesuffix("b"), fact),
    )
    return None if reply in (DONT_KNOW, BACK) else reply


def _answer(question: Question, name: str, params_b: Any = None) -> Reply:
    if question.fact.id != "model":
        return name
    return Several(values={"model": name, "model_params_b": params_b})
