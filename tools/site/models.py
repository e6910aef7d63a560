"""A page for each widely used model: its methods on fifteen GPUs, readable without JavaScript.

Each row is the answer that the page itself gives to the same situation, which its link opens.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from advisor.advice.advise import with_choice
from advisor.api import Answers
from advisor.commands.page_html import Html, content, tag
from advisor.commands.session import Stated, advise_on
from advisor.estimate.types import Estimate
from advisor.ground.units import GIB, format_count, format_duration, format_gib, format_usd
from advisor.methods import schemes
from advisor.render.words import whole_usd
from advisor.situation.names import shape_meant

FOOT = "Numbers are estimates with the band that measured runs fell into. Prices are snapshots."
CELLS = (
    "In each cell: memory needed with its band, time and price of the whole run, and whether it"
    " fits. The GPU opens its answer."
)
ROWS = (
    "One GPU, the settings that the advisor would choose, and the lowest price on record to rent"
    " that GPU. Several GPUs, other data and other tasks: change the situation."
)

Cell = tuple[Html, str, str]  # what is shown of a method on a card, its need, and whether it fits
NOT_OFFERED: Cell = (tag("td", "not offered"), "", "")


@cache
def chosen() -> Mapping[str, Sequence[str]]:
    """The cards of a page, and the models that get one."""
    return dict(json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")))


def pages(models: Sequence[str], picture: str = "") -> Iterator[tuple[str, str]]:
    """File name and content of each page, and of the list of them; `picture` is an address."""
    files = {model: f"{model.replace('/', '--').lower()}.html" for model in models}
    with ProcessPoolExecutor() as workers:  # a second or more for each model
        made = workers.map(partial(page, picture=picture), models)
        yield from zip(files.values(), made, strict=True)
    links = (tag("li", tag("a", model, href=file)) for model, file in sorted(files.items()))
    lead = "What each method needs, on fifteen GPUs: memory with its band, time and price."
    listed = tag("section", tag("ul", *links, class_="strip"), aria_label="Models")
    title = f"Fine-tune a model: GPU memory, time and price of {len(models)} models"
    yield "index.html", _page(title, lead, picture, "Models", lead, listed)


def page(model: str, picture: str = "") -> str:
    """The page of a model."""
    situation = {**content()["example"], "model": model}
    rows = [_row(card, situation) for card in chosen()["cards"]]
    methods = {one.id: one for one in schemes().values() if any(one.id in row[3] for row in rows)}
    least, told = list[Html](), list[str]()
    for key, one in methods.items():
        fits = (row for row in rows if key in row[3] and row[3][key][2] == "fits")
        card, memory, _, cells = next(fits, ("", "", "", {}))
        need = cells[key][1] if card else ""
        words = f"{card} ({memory}), needs {need}" if card else "none of these alone"
        least.append(tag("li", tag("b", one.name), f": {words}"))
        told += [f"{one.name} {need} ({card})"] if card else []
    heads = [tag("th", one.name, scope="col", title=one.meaning) for one in methods.values()]
    body = (
        tag("tr",
            tag("th", tag("a", card, href=f"../index.html{to}"), tag("small", memory), scope="row"),
            *(cells.get(key, NOT_OFFERED)[0] for key in methods))
        for card, memory, to, cells in rows
    )  # fmt: skip
    table = tag("table", tag("tr", tag("th", "GPU", scope="col"), *heads), *body)
    change = "Change the situation: your GPU, data and limits"
    shape, _ = shape_meant(model)
    size = "" if shape is None else f"{format_count(shape.params)} parameters. "
    return _page(
        f"Fine-tune {model}: GPU memory, time and price",
        f"GPU memory, time and price to fine-tune {model}. {'; '.join(told)}.",
        picture,
        f"Fine-tune {model}",
        f"{size}What each method needs on {len(rows)} GPUs, for"
        f" {format_count(situation['data']['rows'])} examples of requests with good answers.",
        tag("section",
            tag("h2", "The smallest of these GPUs that holds it"), tag("ul", *least),
            tag("p", tag("a", change, class_="button", href=f"../index.html{_link(situation)}"))),
        tag("section",
            tag("h2", "Methods on each GPU"), tag("p", CELLS, class_="hint"),
            tag("div", table, class_="wide", tabindex="0", role="region", aria_label="Methods"),
            tag("p", ROWS, class_="hint")),
    )  # fmt: skip


def _page(title: str, said: str, picture: str, heading: str, lead: str, *main: Html) -> str:
    about = {"title": title, "description": said, "image": picture}
    above = [("../index.html", "Fine-tuning advisor"), ("index.html", "Models")]
    head = (
        tag("meta", charset="utf-8"),
        tag("title", title),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="description", content=said),
        *(tag("meta", property=f"og:{key}", content=one) for key, one in about.items() if one),
        tag("link", rel="icon", href="../static/icon.svg"),
        tag("link", rel="stylesheet", href="../static/style.css"),
    )
    body = (
        tag("nav", *(tag("a", text, href=to) for to, text in above), class_="row"),
        tag("header", tag("h1", heading), tag("p", lead)),
        tag("main", *main),
        tag("footer", FOOT, class_="hint"),
    )
    return f"<!doctype html>{tag('html', tag('head', *head), tag('body', *body), lang='en')}"


def _link(answers: Mapping[str, Any]) -> str:
    """The part of an address that carries answers."""
    text = base64.urlsafe_b64encode(json.dumps(answers).encode()).decode()
    return f"#a={text.rstrip('=')}"


def _row(card: str, situation: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Cell]]:
    """A card, its memory, the link to its answer, and its methods by id; one that is left out is
    not offered there.
    """
    answers = {**situation, "gpu": card}
    advice, ruleset = advise_on(Stated(answers=Answers.from_dict(answers)))
    best, cells = advice.recommendation, dict[str, Cell]()
    for one in (best, *advice.alternatives):
        scheme = one.composition.scheme
        if scheme is None or len(one.composition.chain) != 1 or scheme in cells:
            continue
        if one is not best and one.estimate.fits != "too_big":  # time and price of its run
            one = with_choice(advice, one, ruleset).recommendation
        if cell := _cell(one.estimate, one is best):
            cells[scheme] = cell
    memory = advice.situation.hardware.gpus[0].memory_total_bytes or 0
    return card, f"{memory / GIB:.0f} GiB", _link(answers), cells


def _cell(estimate: Estimate, is_best: bool) -> Cell | None:
    """A method on a card: what it needs, with time and price of the whole run."""
    word, kind = content()["verdicts"].get(estimate.fits, ("", ""))
    if estimate.refused:
        return tag("td", tag("span", "cannot train it", title=estimate.refused)), "", ""
    if (memory := estimate.memory) is None or not kind:
        return None
    ends = (memory.need_bytes, memory.need_low_bytes, memory.need_high_bytes)
    need, low, high = map(format_gib, ends)
    times, usd = estimate.times, whole_usd(estimate)
    took = [] if times is None else [format_duration(times.total_s)]
    took += [] if usd is None else [format_usd(usd)]
    more = [f"{low} to {high}", *([", ".join(took)] if kind != "no" else [])]
    verdict = tag("span", f"{word}{', recommended' * is_best}", class_=f"verdict {kind}")
    marked = tag("mark", need) if is_best else need
    return tag("td", tag("b", marked), *(tag("small", one) for one in more), verdict), need, kind
