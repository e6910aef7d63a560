"""A page for each widely used model: its methods on fifteen GPUs, readable without JavaScript.

Each row is the answer that the page itself gives to the same situation, which its link opens.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from advisor.advice.advise import with_choice
from advisor.advice.types import Advice, Candidate
from advisor.api import Answers
from advisor.commands.page_html import content
from advisor.commands.session import Stated, advise_on
from advisor.ground.units import GIB, format_count, format_duration, format_usd
from advisor.methods import schemes
from advisor.render.advice_json import advice_document
from advisor.ruleset.model import Ruleset
from advisor.situation.names import shape_meant

HERE = Path(__file__).parent
VERDICTS = {  # what an estimate says -> the word, its class in style.css
    "fits": ("fits", "fits"),
    "tight": ("fits, little to spare", "fits"),
    "no_gain": ("fits", "fits"),
    "may_fit": ("may fit", "maybe"),
    "too_big": ("too big", "no"),
}


class Cell(NamedTuple):
    """A method on a card."""

    need: str
    band: str
    took: str  # time and price of the whole run; why there is none
    verdict: str
    kind: str
    is_best: bool  # the advisor recommends it there


class Row(NamedTuple):
    """A card, with its methods by id; one that is left out is not told of there."""

    card: str
    memory: str
    link: str
    cells: Mapping[str, Cell]


@cache
def chosen() -> Mapping[str, Sequence[str]]:
    """The cards of a page, and the models that get one."""
    found: dict[str, list[str]] = json.loads((HERE / "models.json").read_text("utf-8"))
    return found


def pages(models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """File name and content of each page, and of the list of them."""
    with ProcessPoolExecutor() as workers:  # a second or more for each model
        yield from zip((file_name(one) for one in models), workers.map(page, models), strict=True)
    listed = [(file_name(model), model) for model in sorted(models, key=str.lower)]
    yield "index.html", _template("models.html.j2").render(listed=listed)


def page(model: str) -> str:
    """The page of a model."""
    return _template("model.html.j2").render(**about(model))


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def file_name(model: str) -> str:
    """The name of its page."""
    return f"{model.replace('/', '--').lower()}.html"


def about(model: str) -> dict[str, Any]:
    """What its page shows."""
    situation = {**content()["example"], "model": model}
    rows = [_row(card, situation) for card in chosen()["cards"]]
    methods = [one for one in schemes().values() if any(one.id in row.cells for row in rows)]
    least = [
        (one, next((row for row in rows if one.id in row.cells and _fits(row, one.id)), None))
        for one in methods
    ]
    told = [f"{one.name} {row.cells[one.id].need} ({row.card})" for one, row in least if row]
    shape, _ = shape_meant(model)
    return {
        "model": model,
        "params": None if shape is None else format_count(shape.params),
        "rows": rows,
        "methods": methods,
        "least": least,
        "description": f"GPU memory, time and price to fine-tune {model}. {'; '.join(told)}.",
        "examples": format_count(situation["data"]["rows"]),
        "link": link(situation),
    }


def _fits(row: Row, scheme: str) -> bool:
    return row.cells[scheme].kind == "fits"


def link(answers: Mapping[str, Any]) -> str:
    """The part of an address that carries answers."""
    text = base64.urlsafe_b64encode(json.dumps(answers).encode()).decode()
    return f"#a={text.rstrip('=')}"


def _row(card: str, situation: Mapping[str, Any]) -> Row:
    answers = {**situation, "gpu": card}
    advice, ruleset = advise_on(Stated(answers=Answers.from_dict(answers)))
    best = advice.recommendation
    cells: dict[str, Cell] = {}
    for one in (best, *advice.alternatives):
        scheme = one.composition.scheme
        if scheme is not None and len(one.composition.chain) == 1 and scheme not in cells:
            if one.estimate.refused:
                cells[scheme] = Cell("", "", one.estimate.refused, "cannot train it", "no", False)
            elif cell := _cell(_estimate(advice, one, ruleset), is_best=one is best):
                cells[scheme] = cell
    memory = advice.situation.hardware.gpus[0].memory_total_bytes or 0
    return Row(card, f"{memory / GIB:.0f} GiB", link(answers), cells)


def _estimate(advice: Advice, candidate: Candidate, ruleset: Ruleset) -> Mapping[str, Any]:
    """As the document has it where that method is chosen: with the time and price of its run."""
    if candidate is not advice.recommendation and candidate.estimate.fits != "too_big":
        advice = with_choice(advice, candidate, ruleset)
        candidate = advice.recommendation
    document = advice_document(advice, plan=None, missing=[])
    listed = [document["recommendation"], *document["alternatives"]]
    found: Mapping[str, Any] = next(
        one["estimate"] for one in listed if one["composition"] == str(candidate.composition)
    )
    return found


def _cell(estimate: Mapping[str, Any], *, is_best: bool) -> Cell | None:
    if estimate["need_gib"] is None or estimate["fits"] not in VERDICTS:
        return None
    word, kind = VERDICTS[estimate["fits"]]
    low, high = (_number(estimate[f"need_{end}_gib"]) for end in ("low", "high"))
    times, usd = estimate["times"], estimate["total_usd"]
    took = [] if times is None else [format_duration(times["total_hours"] * 3600)]
    took += [] if usd is None else [format_usd(usd)]
    need = f"{_number(estimate['need_gib'])} GiB"
    said = "" if kind == "no" else ", ".join(took)
    return Cell(need, f"{low} to {high}", said, word, kind, is_best)


def _number(gib: float) -> str:
    return f"{gib:.0f}" if gib >= 100 else f"{gib:.1f}"
