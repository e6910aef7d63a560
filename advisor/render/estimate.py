"""Estimates for people: each term as a line with a bar against the card, then time.

Plain text that needs no colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.units import format_duration, format_whole_time

BAR_WIDTH = 30
FULL, REST = "#", "."
NVIDIA_SAYS = ", as nvidia-smi shows it"
COUNTED = {"nvidia-smi": f" of the whole process{NVIDIA_SAYS}", "allocated": " allocated"}
FITS = {
    "fits": "it fits",
    "tight": "it fits, with little to spare",
    "may_fit": "it may fit",
    "too_big": "it does not fit",
}


def estimate_text(document: Mapping[str, Any], *, title: str = "", width: int = 80) -> str:
    """One answer document (as `advisor.estimate.specs.answer` gives it) as lines of at most `width`
    columns.

    Bars are drawn against `limit_gib`, the device's memory, where it is known, else against the
    peak.
    """
    limit_gib = document.get("limit_gib")
    lines = [title] if title else []
    if document.get("peak_gib") is None:
        lines += _wrapped(f"no estimate: {document.get('reason', 'unknown')}", width)
        return "\n".join([*lines, *_warnings(document, width)])
    peak = float(document["peak_gib"])
    scale = max(limit_gib or peak, 1e-9)
    counted = COUNTED.get(document.get("counter", ""), "")
    if any(term["name"] == "driver and kernels" for term in document["terms"]):
        counted = counted.replace(NVIDIA_SAYS, "")  # no card of NVIDIA's
    head = (
        f"peak {_gib(peak)}{counted} (between {_gib(document['low_gib'])} and"
        f" {_gib(document['high_gib'])}, by formula{_learned(document)}), at: {document['moment']}"
    )
    lines += _wrapped(head, width)
    name_width = min(28, max((len(term["name"]) for term in document["terms"]), default=4))
    for term in document["terms"]:
        bar = _bar(float(term["gib"]) / scale, min(BAR_WIDTH, max(6, width - name_width - 16)))
        lines.append(
            f"  {term['name'][:name_width]:<{name_width}} {_gib(term['gib']):>10}  {bar}".rstrip()
        )
    if limit_gib:
        share = float(document.get("need_gib", peak)) / limit_gib
        verdict = f"{share:.0%} of the {_gib(limit_gib)} there are: {FITS[document['fits']]}"
        lines.append(
            f"  {'together':<{name_width}} {_gib(peak):>10} "
            f" {_bar(peak / scale, min(BAR_WIDTH, max(6, width - name_width - 16)))}"
        )
        lines.append(f"  {verdict}")
    if document.get("tokens_per_s_per_gpu") is not None:
        speed = (
            f"speed {document['tokens_per_s_per_gpu']:,.0f} tokens/s on each device,"
            f" {document['step_s']:.3g} s a step{_band(document)};"
            f" {document.get('time_because', '')}"
        )
        lines += _wrapped(speed.rstrip("; "), width)
    if document.get("times") is not None:
        times = document["times"]
        whole = format_whole_time(
            times["load_s"], times["before_s"], times["train_s"], times["after_s"],
            prepare_s=times["prepare_s"], evaluate_s=times["evaluate_s"], save_s=times["save_s"],
        )  # fmt: skip
        lines += _wrapped(whole, width)
    elif document.get("hours") is not None:
        whole = format_duration(document["hours"] * 3600)
        lines.append(f"all steps {whole}; loading, and measuring before and after, come on top")
    return "\n".join([*lines, *_warnings(document, width)])


def estimates_text(documents: Sequence[Mapping[str, Any]], *, width: int = 80) -> str:
    """Several answers, one below the other, each under its name."""
    titles = [
        str(document.get("name") or (f"spec {place}" if len(documents) > 1 else ""))
        for place, document in enumerate(documents, 1)
    ]
    return "\n\n".join(
        estimate_text(document, title=title, width=width)
        for document, title in zip(documents, titles, strict=True)
    )


def _learned(document: Mapping[str, Any]) -> str:
    found = document.get("learned")
    return f" and {found['text']}" if found else ""


def _band(document: Mapping[str, Any]) -> str:
    low, high = document.get("step_low_s"), document.get("step_high_s")
    return f" (between {low:.3g} and {high:.3g})" if low and high else ""


def _gib(value: float) -> str:
    return f"{float(value):.2f} GiB" if float(value) < 10 else f"{float(value):.1f} GiB"


def _bar(share: float, width: int) -> str:
    """A bar of `width` cells; what does not fit is marked with '>'."""
    cells = round(min(1.0, max(0.0, share)) * width)
    return FULL * cells + REST * (width - cells) + (">" if share > 1 else "")


def _warnings(document: Mapping[str, Any], width: int) -> list[str]:
    return [
        line for warning in document.get("warnings", ()) for line in _wrapped(f"! {warning}", width)
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width=max(20, width), subsequent_indent="  ", break_long_words=True
    ) or [""]
