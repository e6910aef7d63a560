"""Estimates for people as plain text: each term with a bar, then time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def estimates_text(documents: Sequence[Mapping[str, Any]], *, width: int = 80) -> str:
    """Several answers, one below the other, each under its name."""
    texts = []
    for place, document in enumerate(documents, 1):
        unnamed = f"spec {place}" if len(documents) > 1 else ""
        title = str(document.get("name") or unnamed)
        texts.append(estimate_text(document, title=title, width=width))
    return "\n\n".join(texts)


def estimate_text(document: Mapping[str, Any], *, title: str = "", width: int = 80) -> str:
    """One answer document (as `advisor.estimate.answers` gives it) as lines of at most `width`
    columns.

    Bars are drawn against `limit_gib`, the device's memory, if it is known, else against the need.
    Blocks that a counter shows and nothing needs have a line of their own.
    """

    def wrapped(texts: Iterable[str]) -> list[str]:
        # Flags such as --grad-accum stay whole, so that they can be copied.
        wrapper = textwrap.TextWrapper(max(20, width), "", "  ", break_on_hyphens=False)
        return [line for text in texts for line in wrapper.wrap(text)]

    lines = [title] if title else []
    if document.get("peak_gib") is None:
        lines += wrapped([f"no estimate: {document.get('reason', 'unknown')}"])
    else:
        lines += [*wrapped([_need(document)]), *_bars(document, width)]
        lines += wrapped(_verdict_and_time(document))
    warnings = [*document.get("warnings", ())]
    if because := widening(document.get("band_because", ())):
        warnings.append(f"the range is wider because {'; '.join(because)}")
    return "\n".join([*lines, *wrapped(f"! {warning}" for warning in warnings)])


def _gib(value: float) -> str:
    return f"{float(value):.2f} GiB" if float(value) < 10 else f"{float(value):.1f} GiB"


def _need(document: Mapping[str, Any]) -> str:
    need, least = float(document["need_gib"]), float(document["least_gib"])
    given = ""
    if least < HARDLY_LESS * need:
        given = f"at least {_gib(least)} with the smallest batch; "
    learned = f"; corrected by {document['learned']['text']}" if document.get("learned") else ""
    return (
        f"needs {given}{_gib(need)}{' as given' if given else ''}"
        f"{COUNTED.get(document.get('counter', ''), '')} (estimated, between"
        f" {_gib(document['need_low_gib'])} and {_gib(document['need_high_gib'])}{learned}); its"
        f" peak: {document['moment']}"
    )


def _bars(document: Mapping[str, Any], width: int) -> Iterator[str]:
    need, limit, terms = float(document["need_gib"]), document.get("limit_gib"), document["terms"]
    name_width = min(NAME_WIDTH, max((len(term["name"]) for term in terms), default=4))
    bar_width = min(BAR_WIDTH, max(6, width - name_width - 16))
    sizes = [(term["name"], float(term["gib"])) for term in terms]
    for name, size_gib in [*sizes, *([("together", need)] if limit else [])]:
        share = size_gib / max(limit or need, 1e-9)
        cells = round(min(1.0, max(0.0, share)) * bar_width)
        # What does not fit is marked with '>'.
        bar = FULL * cells + REST * (bar_width - cells) + (">" if share > 1 else "")
        # Two decimals in every line, so that the lines add up as printed.
        size = f"{size_gib:.2f} GiB" if abs(size_gib) >= 0.005 else f"{size_gib * 1024:.1f} MiB"
        yield f"  {name[:name_width]:<{name_width}} {size:>10}  {bar}".rstrip()


def _verdict_and_time(document: Mapping[str, Any]) -> Iterator[str]:
    need, limit = float(document["need_gib"]), document.get("limit_gib")
    cached = float(document["peak_gib"]) - need
    if cached >= WORTH_CACHE * need:
        who = "nvidia-smi" if document.get("counter", "") == "nvidia-smi" else "the counter"
        if any(term["name"] == "driver and kernels" for term in document["terms"]):
            who = "a GPU monitor"  # no GPU of NVIDIA's
        yield (
            f"  {who} shows up to {_gib(document['peak_gib'])}: PyTorch caches {_gib(cached)} of"
            " freed blocks, and returns them when memory is short"
        )
    if limit:
        yield f"  {need / limit:.0%} of the device's {_gib(limit)}: {_verdict(document)}"
    elif document.get("fits") == "unknown":
        yield "  the device's memory is not known, nor whether it fits"
    if document.get("tokens_per_s_per_gpu") is not None:
        low, high = document.get("step_low_s"), document.get("step_high_s")
        band = f" (between {_seconds(low)} and {_seconds(high)})" if low and high else ""
        speed = (
            f"speed {document['tokens_per_s_per_gpu']:,.0f} tokens/s on each device,"
            f" {document['step_s']:.3g} s a step{band}; {document.get('time_because', '')}"
        )
        yield speed.rstrip("; ")
    if (times := document.get("times")) is not None:
        yield format_whole_time(times)
    elif document.get("hours") is not None:
        whole = format_duration(document["hours"] * 3600)
        yield f"all steps {whole}; loading, and measuring before and after, come on top"


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _verdict(document: Mapping[str, Any]) -> str:
    fits, instead = document["fits"], document.get("fits_with")
    said = FITS[fits]
    if fits == "may_fit":
        line = document.get("find_out")
        there = "a dry run of a plan on that machine"
        said += f"; {f'`{line}`' if line else there} finds out in about a minute"
    if fits not in ("may_fit", "too_big"):
        return said
    if instead is not None:
        rows, accum = instead["micro_batch_size"], instead["grad_accum"]
        again = bool(instead["gradient_checkpointing"])
        how = f"--micro-batch-size {rows} --grad-accum {accum}"
        how += " --gradient-checkpointing true" if again else ""
        if "name" in document:  # a stage of a plan takes no flags: its keys are edited
            more = ", gradient_checkpointing: true" if again else ""
            how = f"with micro_batch_size: {rows}, grad_accum: {accum}{more} it"
        surely = "fits" if instead["fits"] != "may_fit" else "may fit"
        return f"{said}; {how} needs {_gib(instead['need_gib'])} and {surely}"
    over = float(document["least_gib"]) - float(document["limit_gib"])
    if fits == "too_big" and over > 0:
        said += f"; even the smallest batch needs {_gib(over)} more than it has"
    return said
