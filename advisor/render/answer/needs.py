"""What a training needs: memory, data, time and money, each with its band."""

from __future__ import annotations

from advisor.advice.explain import unknown_words
from advisor.advice.types import Advice, Candidate
from advisor.estimate.types import MemoryEstimate, Moment
from advisor.ground.units import format_duration, format_gib, format_usd, gib, shown_bytes
from advisor.render.blocks import Item, Items, Section
from advisor.render.words import memory_words, whole_time_words

WORTH_SAYING = 0.15  # of what is computed: padding that is saved
LARGE_TERM = 0.05  # of what is needed: a term that has a name of its own
WORTH_CACHE = 0.02  # of what is needed: blocks that are kept beside it


def needs(advice: Advice) -> Section:
    recommendation, blocks = advice.recommendation, []
    estimate = recommendation.estimate
    items: list[Item] = []
    if not recommendation.composition.chain:
        return Section(title="What it needs", blocks=())
    if estimate.memory is not None:
        needed = estimate.memory.needed
        terms = term_words(needed)
        items.append(
            Item(
                text=f"Memory: {memory_words(recommendation)}, estimated{_against(advice)}",
                detail=f"{needed.name}: {terms}{_cache_words(estimate.memory)}" if terms else "",
            )
        )
    else:
        items.append(Item(text=f"Memory: not known{_against(advice)}"))
    items += [Item(text=f"Data: {text}") for text in _part_words(recommendation)]
    if estimate.times is not None:
        once = estimate.times.download_s
        items.append(
            Item(
                text=f"Time: {whole_time_words(estimate.times)}, estimated",
                detail=(
                    f"downloading the model, if it is not on this machine yet, takes about"
                    f" {format_duration(once)} more at 250 Mbit/s"
                    if once
                    else ""
                ),
            )
        )
    elif estimate.duration_s is not None:
        whole = format_duration(estimate.duration_s)
        items.append(Item(text=f"Time: {whole} of training, estimated"))
    if estimate.learned is not None:
        items.append(
            Item(
                text=f"Corrected by {estimate.learned.sentence}",
                detail=f"closest run: {estimate.learned.closest} (docs/learning.md)",
            )
        )
    items += [Item(text=text) for text in padding_words(recommendation)[:1]]
    if estimate.cost_usd == 0:
        items.append(Item(text="Cost: electricity alone", detail=estimate.cost_note))
    elif estimate.cost_usd is not None:
        items.append(
            Item(
                text=f"Cost: {format_usd(estimate.cost_usd)}, estimated", detail=estimate.cost_note
            )
        )
    items += [
        Item(text=f"The estimate is incomplete: {unknown_words(unknown)}")
        for unknown in estimate.unknown
    ]
    blocks.append(Items(items=tuple(items)))
    return Section(title="What it needs", blocks=tuple(blocks))


def padding_words(candidate: Candidate) -> list[str]:
    """What packing or grouping of the rows saves, where it is worth saying."""
    said = []
    for stage in candidate.stages:
        padding = stage.padding
        if padding is None or padding.at_random - padding.now < WORTH_SAYING:
            continue
        how = (
            "short rows share a sequence"
            if padding.packed
            else "rows of similar length share a batch"
        )
        now = "none" if padding.packed else f"about {padding.now:.0%} of what is computed"
        said.append(f"Padding: {now}, since {how} (about {padding.at_random:.0%} otherwise)")
    return said


def _part_words(candidate: Candidate) -> list[str]:
    """Which part of the data is used, and what all of it would take."""
    return [
        f"{part.text}; all of it would take {part.whole}, and the limit is {part.limit}"
        for part in dict.fromkeys(
            stage.part for stage in candidate.stages if stage.part is not None
        )
    ]


def term_words(moment: Moment) -> str:
    """'weights 15.3 GiB + activations 10.8 GiB + other 0.90 GiB - learned from runs 0.50 GiB'."""
    total = moment.total_bytes
    large = [
        term
        for term in moment.terms
        if term.size_bytes < 0 or term.size_bytes >= LARGE_TERM * total
    ]
    sizes = [(term.name, float(term.size_bytes)) for term in large]
    if len(large) < sum(1 for term in moment.terms if term.size_bytes):
        # As shown, so that the line adds up to the total above it.
        other = shown_bytes(total) - sum(shown_bytes(term.size_bytes) for term in large)
        sizes += [("other", other)] if gib(other) >= 0.01 else []
    return "".join(
        f" {'+' if size > 0 else '-'} {name} {format_gib(abs(size))}" for name, size in sizes
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
    estimate = advice.recommendation.estimate
    words = {
        "fits": "it fits",
        "tight": "tight: it fits, with little to spare",
        "may_fit": "it may fit: the line with --dry-run below finds out in about a minute",
        "too_big": "it does not fit",
        "unknown": "whether it fits is not known",
    }[estimate.fits]
    if estimate.limit_bytes is None:
        return f"; {words}"
    cards = len(advice.situation.hardware.gpus)
    place = "this computer has" if not cards else "the GPU has" if cards == 1 else "each GPU has"
    hardware = advice.situation.hardware
    kept = next((gpu for gpu in hardware.gpus if gpu.kept_free_bytes), None)
    less = ""
    if kept is not None:
        less = f" ({format_gib(kept.kept_free_bytes)} stays free, because {kept.kept_free_because})"
    elif not cards and hardware.ram_kept_free_bytes:
        less = f" ({format_gib(hardware.ram_kept_free_bytes)} stays free for the system)"
    return f"; {place} {format_gib(estimate.limit_bytes)}{less}: {words}"
