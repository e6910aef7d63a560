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

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from advisor.advice.advise import with_choice
from advisor.advice.types import Advice, Candidate
from advisor.api import Answers
from advisor.commands.page_html import content
from advisor.commands.session import Stated, advise_on
from advisor.ground.units import GIB, format_count, format_duration, format_usd
from advisor.methods import schemes
from advisor.render.advice_json import estimate_document
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


@cache
def chosen() -> Mapping[str, Sequence[str]]:
    """The cards of a page, and the models that get one."""
    found: dict[str, list[str]] = json.loads((HERE / "models.json").read_text("utf-8"))
    return found


def pages(models: Sequence[str], picture: str = "") -> Iterator[tuple[str, str]]:
    """File name and content of each page, and of the list of them; `picture` is an address."""
    files = {model: f"{model.replace('/', '--').lower()}.html" for model in models}
    with ProcessPoolExecutor() as workers:  # a second or more for each model
        made = workers.map(partial(page, picture=picture), models)
        yield from zip(files.values(), made, strict=True)
    yield (
        "index.html",
        _rendered(
            title=f"Fine-tune a model: GPU memory, time and price of {len(models)} models",
            description="What fine-tuning needs on fifteen GPUs: memory with its band, time and"
            f" price, for each of {len(models)} models.",
            heading="Models",
            lead="What each method needs, on fifteen GPUs.",
            listed=sorted((file, model) for model, file in files.items()),
            rows=[],
            picture=picture,
        ),
    )


def page(model: str, picture: str = "") -> str:
    """The page of a model."""
    situation = {**content()["example"], "model": model}
    rows = [_row(card, situation) for card in chosen()["cards"]]
    methods = [one for one in schemes().values() if any(one.id in row["cells"] for row in rows)]
    least = [(one, next((row for row in rows if _fits(row, one.id)), None)) for one in methods]
    told = [
        f"{one.name} {row['cells'][one.id]['need']} ({row['card']})" for one, row in least if row
    ]
    shape, _ = shape_meant(model)
    size = "" if shape is None else f"{format_count(shape.params)} parameters. "
    return _rendered(
        title=f"Fine-tune {model}: GPU memory, time and price",
        description=f"GPU memory, time and price to fine-tune {model}. {'; '.join(told)}.",
        heading=f"Fine-tune {model}",
        lead=f"{size}What each method needs on {len(rows)} GPUs, for"
        f" {format_count(situation['data']['rows'])} examples of requests with good answers.",
        rows=rows,
        methods=methods,
        least=least,
        link=_link(situation),
        picture=picture,
    )


def _rendered(**values: Any) -> str:
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("models.html.j2").render(values)


def _fits(row: Mapping[str, Any], scheme: str) -> bool:
    return bool(row["cells"].get(scheme, {}).get("kind") == "fits")


def _link(answers: Mapping[str, Any]) -> str:
    """The part of an address that carries answers."""
    text = base64.urlsafe_b64encode(json.dumps(answers).encode()).decode()
    return f"#a={text.rstrip('=')}"


def _row(card: str, situation: Mapping[str, Any]) -> dict[str, Any]:
    """A card, with its methods by id; one that is left out is not offered there."""
    answers = {**situation, "gpu": card}
    advice, ruleset = advise_on(Stated(answers=Answers.from_dict(answers)))
    best = advice.recommendation
    cells: dict[str, Any] = {}
    for one in (best, *advice.alternatives):
        scheme = one.composition.scheme
        if scheme is not None and len(one.composition.chain) == 1 and scheme not in cells:
            if one.estimate.refused:
                cells[scheme] = {"refused": one.estimate.refused}
            elif cell := _cell(_estimate(advice, one, ruleset)):
                cells[scheme] = {**cell, "is_best": one is best}
    memory = advice.situation.hardware.gpus[0].memory_total_bytes or 0
    return {
        "card": card,
        "memory": f"{memory / GIB:.0f} GiB",
        "link": _link(answers),
        "cells": cells,
    }


def _estimate(advice: Advice, candidate: Candidate, ruleset: Ruleset) -> Mapping[str, Any]:
    """As the document has it where that method is chosen: with the time and price of its run."""
    if candidate is not advice.recommendation and candidate.estimate.fits != "too_big":
        candidate = with_choice(advice, candidate, ruleset).recommendation
    return estimate_document(candidate.estimate)


def _cell(estimate: Mapping[str, Any]) -> dict[str, Any] | None:
    """A method on a card: what it needs, with time and price of the whole run."""
    if estimate["need_gib"] is None or estimate["fits"] not in VERDICTS:
        return None
    word, kind = VERDICTS[estimate["fits"]]
    need, low, high = (
        f"{gib:.0f}" if gib >= 100 else f"{gib:.1f}"
        for gib in (estimate[f"need_{part}gib"] for part in ("", "low_", "high_"))
    )
    times, usd = estimate["times"], estimate["total_usd"]
    took = [] if times is None else [format_duration(times["total_hours"] * 3600)]
    took += [] if usd is None else [format_usd(usd)]
    return {
        "refused": "", "need": f"{need} GiB", "band": f"{low} to {high}", "verdict": word,
        "took": "" if kind == "no" else ", ".join(took), "kind": kind,
    }  # fmt: skip
