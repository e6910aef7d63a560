"""The page as HTML: the questions of rules/facts.yaml as native controls, in site/index.html.

There is no second list: a fact that gets an `order` is a question here, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from advisor.commands.page_answers import FIRST
from advisor.ground.files import text_of
from advisor.ground.resources import resource_root
from advisor.probe.catalogue import load_catalogue
from advisor.render.words import TYPED
from advisor.ruleset.facts import Fact, load_facts
from advisor.situation.catalogue import known_ids, suggested_models
from advisor.wizard.walk import questions, short_question

LISTS = {"model": "model-list", "teacher_model": "model-list", "gpu": "gpu-list"}  # by fact
DONT_KNOW = "I don\N{RIGHT SINGLE QUOTATION MARK}t know"
WITH_PARTS = {
    "model": "A model that is not in the list: its size",
    "gpu": "Several GPUs, or another size",
    "budget": "A limit in dollars or hours",
    "data_rows": "How long they are",
}
FILES = ("path", "map")  # types of answers that name files, which the static page cannot read
CHOSEN = ("choice", "flag")
YES_NO = {"true": ("Yes", ""), "false": ("No", "")}
EMPTY = ("input", "option", "meta", "link", "br")  # elements without an end


class Html(str):
    """Text that is HTML already."""


def tag(element: str, /, *inside: str, **attributes: str | None) -> Html:
    """An element around HTML and text, which is escaped; an attribute that is None is left out."""
    said = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    text = "".join(one if isinstance(one, Html) else escape(one) for one in inside)
    return Html(f"<{element}{said}>{text}" + ("" if element in EMPTY else f"</{element}>"))


def site_folder() -> Path:
    """The folder with index.html, style.css and page.js."""
    return resource_root() / "site"


@cache
def content() -> Mapping[str, Any]:
    """site/page.json: the example that the page opens with, the GPUs of its strip, its verdicts."""
    return dict(json.loads(text_of(site_folder() / "page.json")))


def page_html(home: str, opening: Mapping[str, Any], head: str = "") -> str:
    """The page.

    Args:
        home: "served" (by `advise ui`) or "static".
        opening: name of a request -> its document, for its example; shown until the page can ask
            for itself.
        head: More for its head.
    """
    is_served = home == "served"
    sizes = [one for one in suggested_models()["models"] if one["tasks"] == "any"]
    setup = {"home": home, **content(), "opening": opening}
    setup["typed"] = TYPED.pattern
    setup["sizes"] = [{key: one[key] for key in ("model", "params_b")} for one in sizes]
    gpus = ["none", *dict.fromkeys(one.name for one in load_catalogue().values())]
    facts = [fact for fact in questions(load_facts()) if is_served or fact.type not in FILES]
    asked = {fact.id: _question(fact, is_served) for fact in facts}
    page = text_of(site_folder() / "index.html")
    for place, text in {
        "questions": "".join(asked.pop(name) for name in FIRST if name in asked),
        "more": "".join(asked.values()),
        "lists": _list("model-list", known_ids()) + _list("gpu-list", gpus),
        "setup": json.dumps(setup, ensure_ascii=False).replace("<", "\\u003c"),
        "home": home,
        "head": head,
    }.items():
        page = page.replace(f"<!--{place}-->", text)
    return page


def _list(name: str, values: Iterable[str]) -> Html:
    return tag("datalist", *(tag("option", value=one) for one in values), id=name)


def _question(fact: Fact, is_served: bool) -> Html:
    ask, hint = short_question(fact), _hint(fact, is_served)
    below = [tag("p", hint, class_="hint", id=f"{fact.id}-hint")] if hint else []
    if fact.type not in CHOSEN:
        empty = "This machine" if fact.id == "gpu" and is_served else DONT_KNOW
        inside = [tag("label", ask, for_=fact.id), _input(fact, empty, hint), *below]
        return tag("div", *inside, *_parts(fact), class_="question", **_data(fact))
    values = {key: (one.label, one.help) for key, one in fact.values.items()} or YES_NO
    unknown = {} if fact.required else {"": (DONT_KNOW, fact.unknown)}
    pills = (_pill(fact.id, value, *words) for value, words in {**values, **unknown}.items())
    chosen = [tag("p", class_="hint chosen")] if fact.values else []
    inside = [tag("legend", ask), tag("div", *pills, class_="row"), *chosen, *below]
    return tag("fieldset", *inside, *_parts(fact), class_="question", **_data(fact))


def _data(fact: Fact) -> dict[str, str | None]:
    """What page.js reads of a fact; its key is the place in an answers file, dotted."""
    key = f"signals.{fact.id}" if fact.signal else fact.answer
    return {"data_fact": fact.id, "data_key": key, "data_type": fact.type}


def _hint(fact: Fact, is_served: bool) -> str:
    remark = _as_sentence(fact.ask.partition(" (")[2].removesuffix(")"))
    if fact.id == "gpu":
        nothing = "this machine is looked at" if is_served else "hardware rules nothing out"
        return f"A name, or none. Left empty: {nothing}."
    if fact.type == "map":
        remark = "NAME=FILE for each, with blanks between them"
    if fact.type in CHOSEN or not fact.unknown:
        return remark
    return f"{remark}{'. ' if remark else ''}Left empty: {fact.unknown}."


def _pill(name: str, value: str, label: str, help_: str) -> Html:
    radio = tag("input", type="radio", name=name, value=value, checked=None if value else "")
    return tag("label", radio, label, title=_as_sentence(help_) or None)


def _input(fact: Fact, empty: str, hint: str = "") -> Html:
    names = {"id": fact.id, "name": fact.id, "list": LISTS.get(fact.id), "placeholder": empty}
    names |= {"type": "text", "autocomplete": "off", "spellcheck": "false"}
    names["aria_describedby"] = f"{fact.id}-hint" if hint else None
    if fact.type != "number":
        return tag("div", tag("input", **names), class_="row")
    names |= {"type": "number", "step": "1" if fact.integer else "any", "inputmode": "decimal"}
    names["min"] = None if fact.min is None else f"{fact.min:g}"
    return tag("div", tag("input", **names), tag("small", fact.unit or ""), class_="row")


def _parts(fact: Fact) -> list[Html]:
    """The numbers that belong to a question: how many of the GPU, dollars and hours, a size."""
    if fact.id not in WITH_PARTS:
        return []
    head = str(fact.answer).partition(".")[0]
    numbers = (one for one in load_facts().values() if one.order is None and one.type == "number")
    parts = [
        tag("div", tag("label", _as_sentence(one.name), for_=one.id), _input(one, DONT_KNOW),
            **_data(one))
        for one in numbers
        if str(one.answer).startswith((f"{head}.", f"{head}_"))
    ]  # fmt: skip
    return [tag("details", tag("summary", WITH_PARTS[fact.id]), tag("div", *parts))]


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
