"""What a training needs: memory, data, time and money, each with its band."""

from __future__ import annotations

from collections.abc import Callable

from advisor.advice.types import Advice, Candidate
from advisor.estimate.types import Estimate, MemoryEstimate, Moment
from advisor.ground.types import Hardware
from advisor.ground.units import (
    format_duration,
    format_gib,
    format_parts,
    format_usd,
    gib,
    shown_bytes,
)
from advisor.render.blocks import Item, Section, listed
from advisor.render.words import (
    because_unknown,
    less_than_planned,
    sentence,
    size_is_unknown,
    stays_at_home,
    whole_usd,
)

WORTH_SAYING = 0.15  # of what is computed: padding that is saved
LARGE_TERM = 0.05  # of what is needed: a term that has a name of its own
WORTH_CACHE = 0.02  # of what is needed: blocks that are kept beside it


def memory_line(advice: Advice) -> str:
    """'19.3 GiB (15.8 to 22.7 GiB); the GPU has 24.0 GiB: it fits', with what is known."""
    memory = advice.recommendation.estimate.memory
    if memory is None:
        why = ", since the size of the model is not: --model-params-b says it"
        why = why if size_is_unknown(advice) else ""
        return sentence(f"not known{why}{_against(advice)}")
    low, high = format_gib(memory.need_low_bytes), format_gib(memory.need_high_bytes)
    return f"{format_gib(memory.need_bytes)} ({low} to {high}){_against(advice)}"


def time_line(advice: Advice) -> str:
    """'36 min (27 min to 52 min), of which training 34 min; within your limit of 8 h'."""
    estimate = advice.recommendation.estimate
    if estimate.duration_s is None:
        return sentence(f"not known{because_unknown(advice)}")
    hours, times = advice.facts.get("budget_hours"), estimate.times
    limit = None if hours is None else float(hours) * 3600
    if times is None:
        verdict = _verdict(estimate.duration_s, estimate.duration_s, limit, format_duration)
        return f"{format_duration(estimate.duration_s)} of training{verdict}"
    low, high = format_duration(times.low_s), format_duration(times.high_s)
    band = "" if low == high else f" ({low} to {high})"
    whole, training = format_duration(times.total_s), format_duration(times.train_s)
    part = "" if training == whole else f", of which training {training}"
    verdict = _verdict(times.total_s, times.high_s, limit, format_duration)
    return f"{whole}{band}{part}{verdict}"


def time_and_cost(advice: Advice) -> tuple[str, str]:
    """Both lines; what is missing for both is said once."""
    time, cost = time_line(advice), cost_line(advice)
    return time, "Not known either." if cost == time else cost


def _verdict(amount: float, high: float, limit: float | None, shown: Callable[[float], str]) -> str:
    """'; within your limit of 8 h', or how an amount or its band passes the limit."""
    if limit is None:
        return ""
    verb = "within" if high <= limit else "may pass" if amount <= limit else "above"
    return f"; {verb} your limit of {shown(limit)}"


def cost_line(advice: Advice) -> str:
    """'$0.41 ($0.31 to $0.59): RTX 4090 at $0.74/h (runpod, 2026-09-25); your limit is $20'.

    The time is the whole one, and the band is its: money is time by a price.
    """
    estimate, hardware = advice.recommendation.estimate, advice.situation.hardware
    own = hardware.origin == "probed"
    if not estimate.cost_usd:
        if estimate.cost_usd is not None or (own and not hardware.gpus):
            return "Electricity alone: it runs on your own computer"
        why = because_unknown(advice) or ": no price is known for this GPU"
        return sentence(f"not known{why}")
    usd, times = whole_usd(estimate) or estimate.cost_usd, estimate.times
    note = f": {estimate.cost_note}" if estimate.cost_note else ""
    band, high_usd = "", usd
    if times is not None and times.low_s < times.high_s:
        low_usd, high_usd = (usd * end / times.total_s for end in (times.low_s, times.high_s))
        ends = [format_usd(end) for end in (low_usd, high_usd)]
        band = "" if ends[0] == format_usd(usd) else f" ({' to '.join(ends)})"
    limit = advice.facts.get("budget_usd")
    said = _verdict(usd, high_usd, float(limit) if limit else None, format_usd)
    if own:
        return f"Electricity alone; renting the same would be {format_usd(usd)}{band}{note}{said}"
    return f"{format_usd(usd)}{band}{note}{said}"


def remedy_cost(advice: Advice) -> str:
    """What an answer costs that trains nothing."""
    elsewhere = "" if stays_at_home(advice) else " or a provider's price per request"
    return f"Nothing to train; you pay electricity{elsewhere}"


def needs(advice: Advice) -> Section:
    """Memory with its terms, data, time with its parts, and cost."""
    recommendation = advice.recommendation
    estimate = recommendation.estimate
    if not recommendation.composition.chain:
        of_remedy = [Item(text=f"Cost: {remedy_cost(advice)}")]
        return Section(title="What it needs", blocks=listed(of_remedy if advice.fits else ()))
    time, cost = time_and_cost(advice)
    held = _memory_detail(estimate, advice.situation.hardware)
    items = [
        Item(text=f"Memory: {memory_line(advice)}", detail=held),
        *(Item(text=f"Data: {text}") for text in part_words(recommendation)),
        Item(text=f"Time: {time}", detail=_time_detail(estimate)),
    ]
    if estimate.learned is not None:
        said = f"Corrected by {estimate.learned.sentence}"
        of = "runs of this model and method on this device (docs/learning.md)"
        items.append(Item(text=said, detail=of))
    items += [Item(text=text) for text in padding_words(recommendation)[:1]]
    items.append(Item(text=f"Cost: {cost}"))
    return Section(title="What it needs", blocks=listed(items))


def _memory_detail(estimate: Estimate, hardware: Hardware) -> str:
    """What holds the memory, and the least that the same training could do with."""
    if estimate.memory is None:
        return ""
    needed, least = estimate.memory.needed, less_than_planned(estimate)
    parts = [f"{needed.name}: {terms}"] if (terms := term_words(needed)) else []
    if least is not None:
        parts.append(f"at least {format_gib(least)} with the smallest batch")
    if kept := _kept_free(hardware):
        parts.append(kept)
    return "; ".join(parts) + (_cache_words(estimate.memory) if terms else "")


def _time_detail(estimate: Estimate) -> str:
    """The parts of the time, and what a first run downloads besides."""
    if estimate.times is None:
        return ""
    times = estimate.times
    parts = {
        "load": times.load_s,
        "tokenising": times.prepare_s,
        "measuring before": times.before_s,
        "training": times.train_s,
        "held-out loss": times.evaluate_s,
        "checkpoints": times.save_s,
        "after": times.after_s,
    }
    if not times.download_s:
        return format_parts(parts)
    return (
        f"{format_parts(parts)}; downloading the model first, if it is not on this machine yet,"
        f" takes about {format_duration(times.download_s)} at 250 Mbit/s"
    )


def padding_words(candidate: Candidate) -> list[str]:
    """What packing or grouping of the rows saves, where it is worth saying."""
    said = []
    for stage in candidate.stages:
        padding = stage.padding
        if padding is None or padding.at_random - padding.now < WORTH_SAYING:
            continue
        how, now = "short rows share a sequence", "none"
        if not padding.packed:
            how = "rows of similar length share a batch"
            now = f"about {padding.now:.0%} of what is computed"
        said.append(f"Padding: {now}, since {how} (about {padding.at_random:.0%} otherwise)")
    return said


def part_words(candidate: Candidate) -> list[str]:
    """Which part of the data is used, and what all of it would take."""
    parts = dict.fromkeys(stage.part for stage in candidate.stages if stage.part is not None)
    return [
        f"{part.text}; all of it would take {part.whole}, your limit is {part.limit}"
        for part in parts
    ]


def shown_terms(moment: Moment) -> list[tuple[str, float]]:
    """The large terms of a moment and the rest as one, so that they add up as they are printed."""
    total = moment.total_bytes
    named = LARGE_TERM * total
    large = [one for one in moment.terms if one.size_bytes < 0 or one.size_bytes >= named]
    sizes = [(term.name, float(term.size_bytes)) for term in large]
    if len(large) < sum(1 for term in moment.terms if term.size_bytes):
        # As shown, so that the line adds up to the total above it.
        other = shown_bytes(total) - sum(shown_bytes(term.size_bytes) for term in large)
        sizes += [("other", other)] if gib(other) >= 0.01 else []
    return sizes


def term_words(moment: Moment) -> str:
    """'weights 15.3 GiB + activations 1.1 GiB + other 1.8 GiB'."""
    return "".join(
        f" {'+' if size > 0 else '-'} {name} {format_gib(abs(size))}"
        for name, size in shown_terms(moment)
    ).removeprefix(" + ")


def _cache_words(memory: MemoryEstimate) -> str:
    """What a counter shows beyond the need."""
    cached = memory.peak_bytes - memory.need_bytes
    if cached < WORTH_CACHE * memory.need_bytes:
        return ""
    return (
        f"; a GPU monitor may show {format_gib(cached)} more: freed blocks that PyTorch caches,"
        " and returns when memory is short"
    )


def _against(advice: Advice) -> str:
    """'; the GPU has 24.0 GiB: it fits', and whether it is split over several GPUs."""
    estimate = advice.recommendation.estimate
    split = any(stage.is_sharded for stage in advice.recommendation.stages)
    parted = ", split over the GPUs" if split else ""
    words = {
        "fits": f"it fits{parted}",
        "tight": f"it fits{parted}, with little to spare",
        "may_fit": f"it may fit{parted or ': --dry-run measures it in about a minute'}",
        "too_big": "it does not fit",
        "unknown": "whether it fits is not known",
    }[estimate.fits]
    if advice.situation.hardware.kind == "unknown":
        return "; whether it fits is not known: `--gpu` says which GPU"
    if estimate.limit_bytes is None:
        return f"; {words}"
    cards = len(advice.situation.hardware.gpus)
    place = "this computer" if not cards else "the GPU" if cards == 1 else "each GPU"
    gives = "can give" if _kept_free(advice.situation.hardware) else "has"
    return f"; {place} {gives} {format_gib(estimate.limit_bytes)}: {words}"


def _kept_free(hardware: Hardware) -> str:
    """What of the device's memory stays free, and why; nothing where all of it counts."""
    kept = next((gpu for gpu in hardware.gpus if gpu.kept_free_bytes), None)
    if kept is not None:
        return f"{format_gib(kept.kept_free_bytes)} stays free, because {kept.kept_free_because}"
    if not hardware.gpus and hardware.ram_kept_free_bytes:
        return f"{format_gib(hardware.ram_kept_free_bytes)} stays free for the system"
    return ""
