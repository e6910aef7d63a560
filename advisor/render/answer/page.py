"""Advice -> Page: what is shown, in which order, once for every form it is shown in (terminal,
HTML).

A page is plain values: sections of text, items and tables. The renderers decide about width, colour
and markup only, so that the terminal and the page to forward can never say different things.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from advisor.advice.types import Advice
from advisor.ground.units import format_duration, format_gib, format_usd
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.based_on import based_on, legend
from advisor.render.answer.first import First, first_screen
from advisor.render.answer.needs import needs
from advisor.render.answer.reasons import (
    flips,
    limit_words,
    steps_section,
    stuck_section,
    unknown,
    warnings,
    why,
)
from advisor.render.answer.rivals import rivals
from advisor.render.blocks import Section
from advisor.render.words import (
    is_chosen,
    less_than_planned,
    size_is_unknown,
    whole_seconds,
    whole_usd,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The whole answer, ready to be shown."""

    composition: str
    first: First  # what is seen first, and where the terminal shows nothing else
    in_short: str  # one line for the foot of a page to forward
    sections: tuple[Section, ...] = field(default=())


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
        composition=str(advice.recommendation.composition),
        first=first_screen(advice, plan_path=plan_path),
        in_short=in_short(advice),
        sections=tuple(section for section in sections if section.blocks),
    )


def in_short(advice: Advice) -> str:
    """'In short: sft+qlora · 9.1 of 24.0 GiB · 84 min · $0.60', with what is known."""
    stuck = advice.nothing_fits
    if stuck is not None:
        return (
            f"In short: nothing fits; the nearest is {stuck.nearest.composition}:"
            f" {limit_words(stuck.nearest)}"
        )
    estimate = advice.recommendation.estimate
    parts = [str(advice.recommendation.composition)]
    if estimate.memory is not None:
        limit = (
            f" of {format_gib(estimate.limit_bytes)}" if estimate.limit_bytes is not None else ""
        )
        least = less_than_planned(estimate)
        needs = "" if least is None else f"at least {format_gib(least)}, as planned "
        sure = ", which may fit" if estimate.fits == "may_fit" else ""
        parts.append(f"{needs}{format_gib(estimate.memory.need_bytes)}{limit}{sure}")
    parts += [format_duration(whole_s)] if (whole_s := whole_seconds(estimate)) is not None else []
    parts += [format_usd(usd)] if (usd := whole_usd(estimate)) else []
    if size_is_unknown(advice) and advice.recommendation.composition.chain:
        parts.append("whether it fits is not known: say --model-params-b")
    return "In short: " + " · ".join(parts)
