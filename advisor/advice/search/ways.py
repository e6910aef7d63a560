"""The ways in which the GPUs can share a composition's work: one of them, a whole model on each, or
one model over all; each by its estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from advisor.advice.search.fit import fit_rank
from advisor.advice.search.micro_batches import HARDLY_FASTER
from advisor.advice.types import Candidate, StageSettings, Way
from advisor.estimate.types import Estimate
from advisor.ground.types import DDP, Hardware
from advisor.ground.units import format_duration, format_gib
from advisor.methods.strategies import Sharing, strategies

Priced = tuple[tuple[StageSettings, ...], Estimate]  # the stages with their settings, and the cost

# Two ways to share one stage are estimated by the same sums, so that errors cancel in part: speeds
# of published runs against ours differ by about this much within one trainer (docs/accuracy.md).
MUCH_FASTER = 1.2


def pace_s(priced: Priced) -> float | None:
    """Seconds of training, or where the rows are not known those of a row in each stage; None where
    the speed of the device is not known.

    Two ways of one composition compare by it: they read the same rows.
    """
    stages, cost = priced
    if cost.duration_s is not None:
        return cost.duration_s
    paces = [
        None if stage.step_s is None else stage.step_s / stage.rows_per_step for stage in stages
    ]
    return None if None in paces else sum(filter(None, paces))


def is_as_fast(one: Priced, other: Priced) -> bool:
    """Whether it takes hardly longer than the other; also where neither speed is known."""
    pace, limit = pace_s(one), pace_s(other)
    return pace is None or limit is None or pace <= HARDLY_FASTER * limit


def better_way(simpler: Priced, larger: Priced) -> Priced:
    """The one of two ways that fits better; of two that fit alike the faster one, and of two that
    are as fast the simpler one.
    """
    ranks = fit_rank(simpler[1]), fit_rank(larger[1])
    if ranks[0] != ranks[1]:
        return simpler if ranks[0] < ranks[1] else larger
    return simpler if is_as_fast(simpler, larger) else larger


def better_sharded(whole: Priced, sharded: Priced) -> Priced:
    """Whether to shard what may do without: only if that is as fast and leaves more room, or room
    for the usual settings; else if it is so much faster that an estimate tells them apart.
    """
    if not whole[1].is_likely:
        return sharded
    ranks = fit_rank(whole[1]), fit_rank(sharded[1])
    if ranks[1] > ranks[0]:
        return whole
    has_room = ranks[1] < ranks[0] or (_is_eased(whole) and not _is_eased(sharded))
    pace, limit = pace_s(sharded), pace_s(whole)
    much_faster = pace is not None and limit is not None and MUCH_FASTER * pace <= limit
    return sharded if much_faster or (has_room and is_as_fast(sharded, whole)) else whole


def _is_eased(priced: Priced) -> bool:
    return any(stage.is_eased for stage in priced[0])


def way_of(priced: Priced, *, is_chosen: bool) -> Way:
    """The way that the stages of a composition are shared in."""
    stages, cost = priced
    first = stages[0]
    strategy = first.settings.get("sharding")
    sharing = Sharing(None if strategy is None else strategy.value, "offload" in first.settings)
    return Way(
        sharing=sharing,
        gpus=first.gpus if strategy is not None else 1,
        machines=first.machines if strategy is not None else 1,
        cost=cost,
        pace_s=pace_s(priced),
        is_chosen=is_chosen,
    )


def speeds(ways: Sequence[Way]) -> str:
    """'ddp on 4 GPUs 9.1 h, one GPU 33 h, sharded over 4 GPUs 11 h': the chosen one first; empty
    where the speed of the device is not known.
    """
    chosen = next((way for way in ways if way.is_chosen), None)
    if chosen is None or chosen.pace_s is None:
        return ""
    others = [way for way in ways if not way.is_chosen]
    if chosen.cost.duration_s is not None:
        said = [f"{chosen.name} {format_duration(chosen.cost.duration_s)}"]
    else:
        said = [chosen.name]
    for way in others:
        if not way.cost.is_likely:
            said.append(f"{way.name} does not fit")
        elif way.cost.duration_s is not None:
            said.append(f"{way.name} {format_duration(way.cost.duration_s)}")
        elif way.pace_s is not None:
            said.append(f"{way.name} {way.pace_s / chosen.pace_s:.2g} times as long")
    return ", ".join(said)


def about_sharing(candidate: Candidate, hardware: Hardware) -> list[str]:
    """How several GPUs share a candidate's work, and how long each way would take; nothing for one
    device.
    """
    cards, stages = len(hardware.gpus), candidate.stages
    if cards < 2 or not stages:
        return []
    first = stages[0]
    if "sharding" not in first.settings:
        found = f"one of the {cards} GPUs is used, which is as fast or leaves more memory"
    elif first.gpus < cards:
        found = f"{first.gpus} of the {cards} GPUs are used: {how_shared(first)}"
    else:
        found = f"all {cards} GPUs are used: {how_shared(first)}"
    if times := speeds(candidate.ways):
        found += f" (expected: {times})"
    names = list(dict.fromkeys(gpu.name for gpu in hardware.gpus))
    if first.gpus > 1 and len(names) > 1:
        found += (
            f"; they are not alike ({', '.join(names)}): the smallest decides what fits, and the"
            " slowest sets the pace"
        )
    return [found, *_about_offloading(candidate), *_about_host(candidate, hardware)]


def how_shared(stage: StageSettings) -> str:
    """'each holds the whole model and its own rows (ddp)'."""
    strategy = stage.settings["sharding"].value
    if strategy == DDP:
        return f"each holds the whole model and its own rows ({DDP})"
    return f"they hold one model together, and each has its own rows ({strategy})"


def _about_offloading(candidate: Candidate) -> list[str]:
    host = candidate.estimate.host_bytes
    if host is None or not any("offload" in stage.settings for stage in candidate.stages):
        return []
    return [
        f"weights, gradients and optimizer lie in the computer's own memory, about"
        f" {format_gib(host)}: slower, and for what fits in no other way"
    ]


HOST_WORDS = {
    "loading": "while the base is loaded",
    "training": "throughout the training",
    "checkpoint": "while a checkpoint is written",
    "saving": "while the result is saved",
}


def _about_host(candidate: Candidate, hardware: Hardware) -> list[str]:
    """What a divided model needs of the machines' own memory, unless they are known to have it."""
    peak = candidate.estimate.host_peak
    if peak is None:
        return []
    there = hardware.host_memory_bytes if hardware.origin == "probed" else None
    if there is not None and peak.size_bytes <= there:
        return []
    each = "each machine" if hardware.machines > 1 else "the machine"
    has = (
        "make sure of it, since nothing says how much there is"
        if there is None
        else f"this one has {format_gib(there)}"
    )
    return [
        f"{each} needs about {format_gib(peak.size_bytes)} of its own memory"
        f" {HOST_WORDS[peak.name]}: {has}"
    ]


def strategy_comment(candidate: Candidate) -> str:
    """Why a plan's GPUs share the work as they do, for the line of `strategy`."""
    chosen = str(candidate.stages[0].settings["sharding"].value)
    times = speeds(candidate.ways)
    about = strategies()[chosen].about
    return f"{about}; expected: {times}" if times else about
