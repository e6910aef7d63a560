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
from advisor.ruleset.facts import Fact, load_facts
from advisor.situation.catalogue import known_ids, suggested_models
from advisor.wizard.walk import questions

LISTS = {
    "model": "model-list",
    "teacher_model": "model-list",
    "gpu": "gpu-list",
}  # fact -> its datalist
SERVED = "served"  # the home of `advise ui`; the other one is "static"
DONT_KNOW = "I don\N{RIGHT SINGLE QUOTATION MARK}t know"
WITH_PARTS = {"gpu": "Several GPUs, or another size", "budget": "A limit in dollars or hours"}
FILES = ("path", "map")  # types of answers that name files, which the static page cannot read
YES_NO = {"true": "Yes", "false": "No"}


def site_folder() -> Path:
    """The folder with index.html, style.css and page.js."""
    return resource_root() / "site"


def page_html(
    home: str, scripts: Iterable[str], policy: str, opening: Mapping[str, Any] | None = None
) -> str:
    """The page.

    Args:
        home: "served" or "static".
        scripts: Addresses of scripts before page.js; one of them brings `window.advise`.
        policy: Its Content-Security-Policy.
        opening: name of a request -> its document, for its example; shown
            until the page can ask for itself.
    """
    setup = {
        "home": home,
        **content(),
        "sizes": [
            {"model": one["model"], "params_b": one["params_b"]}
            for one in suggested_models()["models"]
            if one["tasks"] == "any"
        ],
        "opening": opening,
    }
    facts = questions(load_facts())
    is_served = home == SERVED
    asked = [fact for fact in facts if is_served or fact.type not in FILES]
    first = sorted((one for one in asked if one.id in FIRST), key=lambda one: FIRST.index(one.id))
    parts = {
        "questions": "".join(_question(fact, is_served) for fact in first),
        "more": "".join(_question(fact, is_served) for fact in asked if fact.id not in FIRST),
        "lists": _datalist("model-list", known_ids())
        + _datalist(
            "gpu-list", ["none", *dict.fromkeys(one.name for one in load_catalogue().values())]
        ),
        "setup": json.dumps(setup, ensure_ascii=False).replace("<", "\\u003c"),
        "scripts": "".join(f'<script src="{escape(one)}" defer></script>' for one in scripts),
        "home": home,
        "policy": escape(policy),
    }
    page = text_of(site_folder() / "index.html")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


@cache
def content() -> Mapping[str, Any]:
    """site/page.json: the answers that the page opens with, and the GPUs of its strip."""
    found: dict[str, Any] = json.loads(text_of(site_folder() / "page.json"))
    return found


# --------------------------------------------------------------------------- one question


def _question(fact: Fact, is_served: bool) -> str:
    name = escape(fact.id)
    head = (
        f'class="question" data-fact="{name}" data-key="{escape(_key(fact))}"'
        f' data-type="{fact.type}"'
    )
    hint = escape(_hint(fact, is_served))
    below = f'<p class="hint" id="{name}-hint">{hint}</p>' if hint else ""
    ask = escape(fact.ask.split(" (")[0])
    if fact.type in ("choice", "flag"):
        values = {key: one.label for key, one in fact.values.items()} or YES_NO
        helps = {key: one.help for key, one in fact.values.items()}
        pills = "".join(
            _pill(name, key, label, helps.get(key, "")) for key, label in values.items()
        )
        if not fact.required:
            pills += _pill(name, "", DONT_KNOW, fact.unknown)
        chosen = '<p class="hint chosen"></p>' if fact.values else ""
        inside = (
            f'<legend>{ask}</legend><div class="pills">{pills}</div>{chosen}{below}{_parts(fact)}'
        )
        return f"<fieldset {head}>{inside}</fieldset>"
    control = _input(fact, name, described=bool(hint), is_served=is_served)
    return f'<div {head}><label for="{name}">{ask}</label>{control}{below}{_parts(fact)}</div>'


def _key(fact: Fact) -> str:
    """Its place in an answers file, dotted."""
    return f"signals.{fact.id}" if fact.signal else str(fact.answer)


def _hint(fact: Fact, is_served: bool) -> str:
    remark = _as_sentence(fact.ask.partition(" (")[2].removesuffix(")"))
    if fact.id == "gpu":
        nothing = "this machine is looked at" if is_served else "hardware rules nothing out"
        return f"A name, or none. Left empty: {nothing}."
    if fact.type == "map":
        remark = "NAME=FILE for each, with blanks between them"
    if fact.type in ("text", "path", "map", "number") and fact.unknown:
        remark = f"{remark}. " if remark else ""
        return f"{remark}Left empty: {fact.unknown}."
    return remark


def _pill(name: str, value: str, label: str, help_: str) -> str:
    checked = "" if value else " checked"
    title = f' title="{escape(_as_sentence(help_))}"' if help_ else ""
    return (
        f'<label class="pill"{title}><input type="radio" name="{name}" value="{escape(value)}"'
        f"{checked}><span>{escape(label)}</span></label>"
    )


def _input(fact: Fact, name: str, *, described: bool = False, is_served: bool = False) -> str:
    words = ['autocomplete="off"', 'spellcheck="false"']
    if described:
        words.append(f'aria-describedby="{name}-hint"')
    if fact.id in LISTS:
        words.append(f'list="{LISTS[fact.id]}"')
    unit = ""
    if fact.type == "number":
        step = "1" if fact.integer else "any"
        words += ['type="number"', f'step="{step}"', 'inputmode="decimal"']
        words += [f'{key}="{getattr(fact, key):g}"' for key in ("min",) if fact.min is not None]
        unit = f'<span class="unit">{escape(fact.unit)}</span>' if fact.unit else ""
    else:
        words.append('type="text"')
    empty = "This machine" if fact.id == "gpu" and is_served else DONT_KNOW
    words.append(f'placeholder="{escape(empty)}"')
    return f'<span class="entry"><input id="{name}" name="{name}" {" ".join(words)}>{unit}</span>'


def _parts(fact: Fact) -> str:
    """The numbers that belong to a question: how many of the GPU, dollars and hours."""
    head = (fact.answer or "").partition(".")[0]
    found = [
        _part(one)
        for one in load_facts().values()
        if fact.id in WITH_PARTS
        and one.order is None
        and one.type == "number"
        and (one.answer or "").startswith(f"{head}.")
    ]
    if not found:
        return ""
    return (
        f"<details><summary>{WITH_PARTS[fact.id]}</summary>"
        f'<div class="parts">{"".join(found)}</div></details>'
    )


def _part(fact: Fact) -> str:
    name, label = escape(fact.id), escape(_as_sentence(fact.name))
    return (
        f'<span data-fact="{name}" data-key="{escape(_key(fact))}" data-type="number">'
        f'<label for="{name}">{label}</label>{_input(fact, name)}</span>'
    )


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _datalist(name: str, values: Iterable[str]) -> str:
    options = "".join(f'<option value="{escape(one)}">' for one in values)
    return f'<datalist id="{name}">{options}</datalist>'
