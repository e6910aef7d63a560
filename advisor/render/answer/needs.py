"""What a training needs: memory, data, time and money, each with its band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from advisor.advice.types import Advice, Candidate
from advisor.estimate.types import Estimate, MemoryEstimate, Moment, Reading
from advisor.ground.types import PRIVATE, Hardware
from advisor.ground.units import (
    TIME_PARTS,
    format_count,
    format_duration,
    format_gib,
    format_parts,
    format_usd,
    gib,
    shown_bytes,
)
from advisor.render.blocks import Item, Section, listed, tabled
from advisor.render.words import (
    because_unknown,
    device_name,
    example_rows,
    less_than_planned,
    sentence,
    size_is_unknown,
    stays_at_home,
    whole_seconds,
    whole_usd,
)

if TYPE_CHECKING:
    from advisor.advice.rent import Rent

WORTH_SAYING = 0.15  # of what is computed: padding that is saved
LARGE_TERM = 0.05  # of what is needed: a term that has a name of its own
FEWEST_ROWS = 50  # that are told as a way to keep a limit: fewer teach nothing
WORTH_CACHE = 0.02  # of what is needed: blocks that are kept beside it


def memory_line(advice: Advice) -> str:
    """'19.3 GiB (15.8 to 22.7 GiB); the GPU has 24.0 GiB: it fits', with what is known."""
    memory, verdict = advice.recommendation.estimate.memory, _fit_words(advice)
    if memory is None:
        why = ", since the size of the model is not: --model-params-b says it"
        return sentence(f"not known{why if size_is_unknown(advice) else ''}{verdict}")
    low, high = format_gib(memory.need_low_bytes), format_gib(memory.need_high_bytes)
    return f"{format_gib(memory.need_bytes)} ({low} to {high}){verdict}"


def _fit_words(advice: Advice) -> str:
    """'; the GPU has 24.0 GiB: it fits', and whether it is split over several GPUs."""
    estimate, hardware = advice.recommendation.estimate, advice.situation.hardware
    split = any(stage.is_sharded for stage in advice.recommendation.stages)
    parted = ", split over the GPUs" if split else ""
    unknown = "whether it fits is not known"
    if any(stage.offloads for stage in advice.recommendation.stages):
        unknown += ", since the computer's own memory is not"
    ours = advice.recommendation.engine is None
    measured = ": --dry-run measures it in about a minute" if ours else ""
    words = {
        "fits": f"it fits{parted}",
        "tight": f"it fits{parted}, with little to spare",
        "may_fit": f"it may fit{parted or measured}",
        "too_big": "it does not fit",
        "unknown": unknown,
    }
    if hardware.kind == "unknown":
        rents = "" if advice.rent else ", `--data-tokens` prices the cards to rent"
        if advice.rent is None:
            rents = ", `--budget` lists cards to rent"
        return f"; {words['unknown']}: `--gpu` says which GPU{rents}"
    if estimate.limit_bytes is None:
        return f"; {words[estimate.fits]}"
    count = len(hardware.gpus)
    place = "this computer" if not count else "the GPU" if count == 1 else "each GPU"
    gives = "can give" if _kept_free(hardware) else "has"
    return f"; {place} {gives} {format_gib(estimate.limit_bytes)}: {words[estimate.fits]}"


def _kept_free(hardware: Hardware) -> str:
    """What of the device's memory stays free, and why; '' if all of it counts."""
    kept = next((gpu for gpu in hardware.gpus if gpu.kept_free_bytes), None)
    if kept is not None:
        return f"{format_gib(kept.kept_free_bytes)} stays free, because {kept.kept_free_because}"
    if not hardware.gpus and hardware.ram_kept_free_bytes:
        return f"{format_gib(hardware.ram_kept_free_bytes)} stays free for the system"
    return ""


def time_and_cost(advice: Advice) -> tuple[str, str]:
    """Both lines; what is missing for both is said once."""
    time, cost = time_line(advice), cost_line(advice)
    return time, "Not known either." if cost == time else cost


def time_line(advice: Advice) -> str:
    """'36 min (27 min to 52 min): 2 passes over 4,936 rows; within your limit of 8 h'."""
    estimate, hours = advice.recommendation.estimate, advice.facts.get("budget_hours")
    times, trained_s = estimate.times, estimate.duration_s
    if trained_s is None:
        return sentence(f"not known{because_unknown(advice)}")
    limit = None if hours is None else float(hours) * 3600
    if times is None:
        verdict = _limit_words(trained_s, trained_s, limit, format_duration)
        if estimate.assumed:
            verdict = _if_above(advice, trained_s, limit, format_duration)
        verdict = f"{_read_words(advice)}{verdict}{_assumed_words(estimate)}"
        return f"{format_duration(trained_s)} of training{verdict}"
    low, high, whole, training = map(
        format_duration, (times.low_s, times.high_s, times.total_s, times.train_s)
    )
    band = "" if low == high else f" ({low} to {high})"
    if estimate.assumed:
        above = _if_above(advice, times.total_s, limit, format_duration)
        return f"{whole}{_read_words(advice)}{_assumed_words(estimate)}{above}"
    part = "" if training == whole else f", of which training {training}"
    verdict = _limit_words(times.total_s, times.high_s, limit, format_duration)
    return f"{whole}{band}{_read_words(advice) or part}{verdict}"


def _read_words(advice: Advice) -> str:
    """': 2 passes over 4,750 rows and 475 general ones', so that one can check the time."""
    read, ours = advice.recommendation.estimate.read, advice.recommendation
    if any(stage.part for stage in ours.stages):  # that part is told beside the data
        return ""
    told = [f"{one.stage} {_passes(one)}" if len(read) > 1 else _passes(one) for one in read]
    return f": {'; '.join(told)}" if told else ""


def _passes(read: Reading) -> str:
    """'2 passes over 4,750 rows and 475 general ones'."""
    over, general = f"{read.rows:,} row{'' if read.rows == 1 else 's'}", "ones"
    if read.tokens is not None:
        over, general = f"{format_count(read.tokens)} tokens", "rows"
    more = f" and {read.general:,} general {general}" if read.general else ""
    return f"{read.passes:.3g} pass{'' if read.passes == 1 else 'es'} over {over}{more}"


def _assumed_words(estimate: Estimate) -> str:
    """'; assumed: 1,000 rows, 300 tokens a row, one RTX 3090', what nobody stated."""
    words = [
        f"one {one.value}" if one.what == "gpu" else f"{one.value:,} {one.what}"
        for one in estimate.assumed
    ]
    return f"; assumed: {', '.join(words)}" if words else ""


def _limit_words(
    amount: float, high: float, limit: float | None, shown: Callable[[float], str]
) -> str:
    """'; within your limit of 8 h', or how an amount or its band passes the limit."""
    if limit is None:
        return ""
    verb = "within" if high <= limit else "may pass" if amount <= limit else "above"
    return f"; {verb} your limit of {shown(limit)}"


def _if_above(
    advice: Advice, amount: float, limit: float | None, shown: Callable[[float], str]
) -> str:
    """That an assumed amount passes a limit, and with how many rows it would not."""
    if limit is None or amount <= limit:
        return ""
    estimate, rows = advice.recommendation.estimate, example_rows(advice)
    trained = (estimate.duration_s or 0.0) / (whole_seconds(estimate) or 1.0)  # its share
    most = float(f"{(rows or 0) * (1 - (1 - limit / amount) / trained):.2g}") if trained else 0.0
    fewer = f" (about {most:,.0f} rows, read as often, would keep it)"
    return f"; above your limit of {shown(limit)}{fewer if most >= FEWEST_ROWS else ''}"


def cost_line(advice: Advice) -> str:
    """'$0.41 ($0.31 to $0.59): RTX 4090 at $0.74/h (runpod, 2026-09-25); your limit is $20'.

    The time is the whole one, and the band is its: money is time by a price.
    """
    estimate, hardware = advice.recommendation.estimate, advice.situation.hardware
    is_own = hardware.origin == "probed"
    # Nobody rents out a laptop, or a Mac; a card that nobody named may be rented.
    known = is_own or advice.situation.like is not None
    at_home = any(gpu.kept_free_bytes and (known or gpu.spec) for gpu in hardware.gpus)
    if not estimate.cost_usd:
        if estimate.cost_usd is not None or at_home or (is_own and not hardware.gpus):
            return "Electricity alone: it runs on your own computer"
        because = because_unknown(advice) if estimate.duration_s is None else ""
        return sentence(f"not known{because or ': no price is known for this GPU'}")
    usd, times = whole_usd(estimate) or estimate.cost_usd, estimate.times
    shown, high_usd = format_usd(usd), usd
    if times is not None and times.low_s < times.high_s and not estimate.assumed:
        low_usd, high_usd = (usd * end / times.total_s for end in (times.low_s, times.high_s))
        if format_usd(low_usd) != format_usd(usd):
            shown += f" ({format_usd(low_usd)} to {format_usd(high_usd)})"
    stated = advice.facts.get("budget_usd")
    limit = float(stated) if stated else None
    note = f": {estimate.cost_note}" if estimate.cost_note else ""
    verdict = _limit_words(usd, high_usd, limit, format_usd)
    verdict = _if_above(advice, usd, limit, format_usd) if estimate.assumed else verdict
    renting = "Electricity alone; renting the same would be " if is_own else ""
    return f"{renting}{shown}{note}{verdict}"


def rent_lines(advice: Advice) -> list[str]:
    """'2 x A40: $3.09, 3 h 31 min (2 h 21 min to 5 h 32 min); runpod', each way to rent."""
    lines = []
    for method, way in _rents(advice):
        provider = way.card.price_note.partition(",")[0]
        band = f"({format_duration(way.low_s)} to {format_duration(way.high_s)})"
        took = f"{format_usd(way.usd)}, {format_duration(way.seconds)} {band}"
        lines.append(f"{_cards(way)}{method}: {took}; {provider}{_passed(way)}")
    return [*lines, *_paid_besides(advice)]


def _rents(advice: Advice) -> Iterator[tuple[str, Rent]]:
    """(' with sft+qlora' behind the card if it is another method, the way), each way to rent."""
    yield from (("", way) for way in advice.rent or ())
    if advice.rent_instead is not None:
        method, way = advice.rent_instead
        yield f" with {method}", way


def _paid_besides(advice: Advice) -> list[str]:
    """What a rented machine costs beside the training: it starts empty; and what was assumed."""
    if not advice.rent:
        return []
    first, took = advice.rent[0], ""
    if first.download_s:
        usd = format_usd(first.usd * first.download_s / first.seconds)
        took = f" (about {format_duration(first.download_s)} at 250 Mbit/s, {usd} on the first)"
    what = f"the model's download{took} and setting up the machine are paid besides"
    assumed = _assumed_words(advice.recommendation.estimate).removeprefix("; ")
    return [*map(sentence, filter(None, (assumed, what)))]


def _cards(way: Rent) -> str:
    return f"{way.count} x {way.card.name}" if way.count > 1 else way.card.name


def _passed(way: Rent) -> str:
    """'; above your limit of $5', for each limit that even the nearest way does not keep."""
    limits = {"usd": (way.limit_usd, format_usd), "hours": (way.limit_s, format_duration)}
    said = [
        f"above your limit of {shown(limit)}"
        for name, (limit, shown) in limits.items()
        if limit is not None and not way.within[name]
    ]
    return "".join(f"; {one}" for one in said)


def rent(advice: Advice) -> Section:
    """The cheapest ways to rent a card, where a limit was stated and no card."""
    columns = ("Card", "An hour", "Time", "In all", "Memory", "Price from")
    rows = [
        (
            f"{_cards(way)}{method}",
            format_usd((way.card.price_usd_per_h or 0.0) * way.count),
            f"{format_duration(way.seconds)} ({format_duration(way.low_s)} to"
            f" {format_duration(way.high_s)})",
            f"{format_usd(way.usd)}{_passed(way)}",
            format_gib(way.need_bytes),
            way.card.price_note.partition(";")[0],
        )
        for method, way in _rents(advice)
    ]
    blocks = (*tabled(columns, rows), *listed(_paid_besides(advice)))
    return Section(title="Which card to rent", blocks=blocks)


def privacy_lines(advice: Advice) -> list[str]:
    """What leaves this machine, and what the rows hold, for who says that privacy comes first; else
    nothing.
    """
    if advice.facts.get("priority") != "privacy":
        return []
    return [_who_sees(advice), *_personal_data(advice)]


def _personal_data(advice: Advice) -> Iterator[str]:
    found = [
        finding.text.partition(", such as")[0]
        for data in (advice.situation.data, *advice.situation.tasks.values())
        if data is not None
        for finding in data.findings
        if finding.id.startswith(PRIVATE)
    ]
    risk = "A model may" if advice.recommendation.composition.chain else "Answers may"
    if found:
        yield f"{'; '.join(found)}. {risk} repeat them; names and addresses are not looked for"


def _who_sees(advice: Advice) -> str:
    hardware, model = advice.situation.hardware, advice.situation.model
    if not advice.recommendation.composition.chain:
        return "Nothing leaves this machine; the models and programs named here are downloaded"
    is_here = model is not None and model.origin == "folder"
    download = "" if is_here else "; the model's files are downloaded"
    # `--gpu none` is this machine, too.
    if hardware.origin == "probed" or (hardware.origin == "stated" and hardware.kind == "cpu"):
        return f"Nothing leaves this machine{download}"
    if advice.rent:
        return f"Rows and model go to the provider of the GPU that you rent{download}"
    gpu = device_name(advice).replace("one ", "the ", 1) if hardware.gpus else "a GPU"
    where = f"the machine with {gpu}; if it is rented, to its provider"
    return f"Rows and model go to {where}{download}"


def remedy_cost(advice: Advice) -> str:
    """What an answer costs that trains nothing."""
    elsewhere = "" if stays_at_home(advice) else " or a provider's price per request"
    return f"Nothing to train; you pay electricity{elsewhere}"


def needs(advice: Advice) -> Section:
    """Memory with its terms, data, time with its parts, and cost."""
    recommendation, title = advice.recommendation, "What it needs"
    estimate, learned = recommendation.estimate, recommendation.estimate.learned
    if not recommendation.composition.chain:
        costs = [f"Cost: {remedy_cost(advice)}"] if advice.fits else []
        costs += map("Privacy: {}".format, privacy_lines(advice))
        return Section(title=title, blocks=listed(costs))
    time, cost = time_and_cost(advice)
    held = _memory_detail(estimate, advice.situation.hardware)
    whole = "Data: {0.text}; all of it would take {0.whole}, your limit is {0.limit}"
    items: list[str | Item] = [
        Item(text=f"Memory: {memory_line(advice)}", detail=held),
        *map(whole.format, dict.fromkeys(one.part for one in recommendation.stages if one.part)),
        Item(text=f"Time: {time}", detail=_time_detail(estimate)),
    ]
    if learned is not None:
        runs = "runs of this model and method on this device (docs/estimates.md#learning-from-runs)"
        items.append(Item(text=f"Corrected by {learned.sentence}", detail=runs))
    items += [*padding_words(recommendation)[:1], f"Cost: {cost}"]
    items += map("Privacy: {}".format, privacy_lines(advice))
    return Section(title=title, blocks=listed(items))


def _memory_detail(estimate: Estimate, hardware: Hardware) -> str:
    if estimate.memory is None:
        return ""
    needed, least = estimate.memory.needed, less_than_planned(estimate)
    terms = term_words(needed)
    parts = [
        f"{needed.name}: {terms}" if terms else "",
        "" if least is None else f"at least {format_gib(least)} with the smallest batch",
        _kept_free(hardware),
    ]
    return "; ".join(filter(None, parts)) + (_cache_words(estimate.memory) if terms else "")


def _cache_words(memory: MemoryEstimate) -> str:
    cached = memory.peak_bytes - memory.need_bytes
    if cached < WORTH_CACHE * memory.need_bytes:
        return ""
    return (
        f"; a GPU monitor may show {format_gib(cached)} more: freed blocks that PyTorch caches,"
        " and returns when memory is short"
    )


def _time_detail(estimate: Estimate) -> str:
    times = estimate.times
    if times is None:
        return ""
    parts = format_parts({part: getattr(times, part) for part in TIME_PARTS})
    held = (one.held_out for one in estimate.read if one.held_out)
    if rows := max(held, default=0):
        parts += f"; {rows:,} rows are held out for the evaluation"
    if not times.download_s:
        return parts
    return (
        f"{parts}; downloading the model first, if it is not on this machine yet, takes about"
        f" {format_duration(times.download_s)} at 250 Mbit/s"
    )


def padding_words(candidate: Candidate) -> list[str]:
    """What packing or grouping of the rows saves, if it is worth saying."""
    said = []
    for padding in (stage.padding for stage in candidate.stages):
        if padding is None or padding.at_random - padding.now < WORTH_SAYING:
            continue
        how, now = "short rows share a sequence", "none"
        if not padding.packed:
            how = "rows of similar length share a batch"
            now = f"about {padding.now:.0%} of what is computed"
        said.append(f"Padding: {now}, since {how} (about {padding.at_random:.0%} otherwise)")
    return said


def term_words(moment: Moment) -> str:
    """'weights 15.3 GiB + other 1.8 GiB', which adds up as it is printed."""
    total = moment.total_bytes
    sizes = [
        (term.name, float(term.size_bytes))
        for term in moment.terms
        if term.size_bytes < 0 or term.size_bytes >= LARGE_TERM * total
    ]
    if len(sizes) < sum(1 for term in moment.terms if term.size_bytes):
        other = shown_bytes(total) - sum(shown_bytes(size) for _, size in sizes)
        sizes += [("other", other)] if gib(other) >= 0.01 else []
    return "".join(
        f" {'+' if size > 0 else '-'} {name} {format_gib(abs(size))}" for name, size in sizes
    ).removeprefix(" + ")
