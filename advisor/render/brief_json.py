"""`advise --json --brief`: the answer as a document of at most two kilobytes."""

from __future__ import annotations

import json
from typing import Any

from advisor.advice.types import Advice
from advisor.render.advice_json import engine_of, estimate_document, rounded
from advisor.render.answer.page import first_screen, telling_reasons
from advisor.render.next_steps import commands
from advisor.render.words import whole_seconds, whole_usd

MOST_BYTES = 2048
LONGEST = (240, 160, 100, 60)  # characters of a text, the most that fits


def brief_document(advice: Advice, *, exit_code: int, plan_path: str | None) -> dict[str, Any]:
    """The answer, its first reasons, four numbers and what to type next. Hours and dollars are of
    the whole time, as on the page, on the first card to rent if none was stated.

    Texts are cut, and commands left out from the end, until it is short enough; `advise --json`
    has them all.
    """
    ours = advice.recommendation
    screen = first_screen(advice, plan_path=plan_path)
    because = list(telling_reasons(advice))
    estimate = estimate_document(ours.estimate)
    steps = commands(advice, plan_path=plan_path)
    numbers = {key: estimate[key] for key in ("need_gib", "fits")}
    hours, usd = whole_seconds(ours.estimate), whole_usd(ours.estimate)
    if hours is None and advice.rent:  # as the page: on the first card to rent
        hours, usd = advice.rent[0].seconds, advice.rent[0].usd
    numbers |= {"hours": hours and rounded(hours / 3600), "usd": rounded(usd)}
    document: dict[str, Any] = {}
    for most in (*LONGEST, *LONGEST[-1:] * len(steps)):
        document = {
            "schema_version": 1,
            "brief": True,
            "composition": str(ours.composition),
            "headline": _cut(screen.answer, 2 * most),
            "why": [_cut(text, most) for text in because[:3]],
            "engine": engine_of(advice)["id"],
            "estimate": numbers,
            "strength": advice.certainty.strength,
            "commands": steps,
            "plan_file": plan_path,
            "exit": exit_code,
        }
        if len(json.dumps(document, ensure_ascii=False, indent=1).encode()) < MOST_BYTES:
            break
        if most == LONGEST[-1]:
            steps = steps[:-1]
    return document


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
