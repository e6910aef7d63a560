"""Estimates for people: each term as a line with a bar against the card, then time.

Plain text that needs no colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.estimate.memory.bands import widening
from advisor.ground.units import format_duration, format_whole_time

BAR_WIDTH = 30
NAME_WIDTH = 36
FULL, REST = "#", "."
COUNTED = {"nvidia-smi": " for the whole process", "allocated": " allocated"}
HARDLY_LESS, WORTH_CACHE = 0.98, 0.02  # of the need: what is worth a number of its own
FITS = {
    "fits": "it fits",
    "tight": "it fits, with little to spare",
    "may_fit": "it may fit",
    "too_big": "it does not fit",
}


def estimate_text(document: Mapping[str, Any], *, title: str = "", width: int = 80) -> str:
    """One answer document (as `advisor.estimate.answers` gives it) as lines of at most
    `width` columns.

    Bars are drawn against `limit_gib`, the device's memory, where it is known, else against the
    need. Blocks that a counter shows and nothing needs have a line of their own.
    """
    limit_gib = document.get("limit_gib")
    lines = [title] if title else []
    if document.get("peak_gib") is None:
        lines += _wrapped(f"no estimate: {document.get('reason', 'unknown')}", width)
        return "\n".join([*lines, *_warnings(document, width)])
    need = float(document["need_gib"])
    scale = max(limit_gib or need, 1e-9)
    least = float(document["least_gib"])
    is_less = least < HARDLY_LESS * need
    given = f"at least {_gib(least)} with the smallest batch; " if is_less else ""
    head = (
        f"needs {given}{_gib(need)}{' as given' if given else ''}"
        f"{COUNTED.get(document.get('counter', ''), '')} (estimated, between"
        f" {_gib(document['need_low_gib'])} and {_gib(document['need_high_gib'])}"
        f"{_learned(document)}); its peak: {document['moment']}"
    )
    lines += _wrapped(head, width)
    name_width = min(NAME_WIDTH, max((len(term["name"]) for term in document["terms"]), default=4))
    bar_width = min(BAR_WIDTH, max(6, width - name_width - 16))

    def line(name: str, size_gib: float, what: str) -> str:
        # Two decimals in every line, so that the lines add up as printed.
        size = f"{size_gib:.2f} GiB" if abs(size_gib) >= 0.005 else f"{size_gib * 1024:.1f} MiB"
        return f"  {name[:name_width]:<{name_width}} {size:>10}  {what}".rstrip()

    for term in document["terms"]:
        lines.append(line(term["name"], term["gib"], _bar(float(term["gib"]) / scale, bar_width)))
    if limit_gib:
        lines.append(line("together", need, _bar(need / scale, bar_width)))
    lines += _wrapped(_shown_words(document, need), width)
    if limit_gib:
        verdict = f"{need / limit_gib:.0%} of the device's {_gib(limit_gib)}: {_verdict(document)}"
        lines += _wrapped(f"  {verdict}", width)
    elif document.get("fits") == "unknown":
        lines.append("  the device's memory is not known, nor whether it fits")
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


def _shown_words(document: Mapping[str, Any], need_gib: float) -> str:
    """What a counter shows, where that is more than what is needed."""
    cached = float(document["peak_gib"]) - need_gib
    if cached < WORTH_CACHE * need_gib:
        return ""
    counter = document.get("counter", "")
    who = "nvidia-smi" if counter == "nvidia-smi" else "the counter"
    if any(term["name"] == "driver and kernels" for term in document["terms"]):
        who = "a GPU monitor"  # no GPU of NVIDIA's
    return (
        f"  {who} shows up to {_gib(document['peak_gib'])}: PyTorch caches {_gib(cached)} of freed"
        " blocks, and returns them when memory is short"
    )


def _verdict(document: Mapping[str, Any]) -> str:
    """Whether it fits, and where it may not what would."""
    fits, instead = document["fits"], document.get("fits_with")
    said = FITS[fits]
    if fits == "may_fit":
        line = document.get("find_out")
        there = "on that machine `advise run PLAN --dry-run`"
        said += f"; {f'`{line}`' if line else there} finds out in about a minute"
        said += "" if line else " (`advise --plan PLAN` writes the plan)"
    if fits not in ("may_fit", "too_big"):
        return said
    if instead is not None:
        rows, accum = instead["micro_batch_size"], instead["grad_accum"]
        with_more = bool(instead["gradient_checkpointing"])
        if "name" in document:  # a stage of a plan takes no flags: its keys are edited
            again = ", gradient_checkpointing: true" if with_more else ""
            how = f"with micro_batch_size: {rows}, grad_accum: {accum}{again} it"
        else:
            again = " --gradient-checkpointing true" if with_more else ""
            how = f"--micro-batch-size {rows} --grad-accum {accum}{again}"
        surely = "fits" if instead["fits"] != "may_fit" else "may fit"
        return f"{said}; {how} needs {_gib(instead['need_gib'])} and {surely}"
    over = float(document["least_gib"]) - float(document["limit_gib"])
    if fits == "too_big" and over > 0:
        said += f"; even the smallest batch needs {_gib(over)} more than it has"
    return said


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
    return f"; corrected by {found['text']}" if found else ""


def _band(document: Mapping[str, Any]) -> str:
    low, high = document.get("step_low_s"), document.get("step_high_s")
    return f" (between {_seconds(low)} and {_seconds(high)})" if low and high else ""


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _gib(value: float) -> str:
    return f"{float(value):.2f} GiB" if float(value) < 10 else f"{float(value):.1f} GiB"


def _bar(share: float, width: int) -> str:
    """A bar of `width` cells; what does not fit is marked with '>'."""
    cells = round(min(1.0, max(0.0, share)) * width)
    return FULL * cells + REST * (width - cells) + (">" if share > 1 else "")


def _warnings(document: Mapping[str, Any], width: int) -> list[str]:
    found = [*document.get("warnings", ())]
    because = widening(document.get("band_because", ()))
    if because:
        found.append(f"the range is wider because {'; '.join(because)}")
    return [line for warning in found for line in _wrapped(f"! {warning}", width)]


def _wrapped(text: str, width: int) -> list[str]:
    # Flags such as --grad-accum stay whole, so that they can be copied.
    return textwrap.wrap(text, width=max(20, width), subsequent_indent="  ", break_on_hyphens=False)
