"""How the GPUs share a composition's work: one of them, a whole model on each, or one model over
all. What each strategy changes in a stage, whether it can be done, and which of two is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advisor.advice.search.micro_batches import HARDLY_FASTER, need_bytes
from advisor.advice.search.settings import DEFAULTS, StageCase, as_yaml
from advisor.advice.types import Candidate, Chosen, Fitted, FittedStage, values_of
from advisor.estimate.types import Estimate, Fits
from advisor.ground.types import DDP, Hardware
from advisor.ground.units import format_duration, format_gib
from advisor.methods.links import link_speeds
from advisor.methods.strategies import refused_by, strategies
from advisor.ruleset.phrases import inside_sentence, joined

# From the best to the worst; what may fit counts as too big once the estimate itself is above.
ORDER: tuple[Fits, ...] = ("fits", "unknown", "tight", "may_fit", "too_big")
# Two strategies of one stage are estimated by the same sums, so that errors cancel in part: speeds
# of published runs against ours differ by about this much within one trainer (docs/estimates.md).
MUCH_FASTER = 1.2
HOST_WORDS = {
    "loading": "while the base is loaded",
    "training": "throughout the training",
    "checkpoint": "while a checkpoint is written",
    "saving": "while the result is saved",
}


# --------------------------------------------------------------------------- of one stage


def under_strategy(case: StageCase, settings: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """The settings with the default, and why, for each that the strategy refuses."""
    found, strategy = dict(settings), case.strategy.name
    for one in refused_by(strategy, {**case.axes, **values_of(settings)}):
        if one.key in found and not found[one.key].is_own:
            shown = as_yaml(found[one.key].value)
            because = f"not {shown} under {strategy}: {inside_sentence(one.because)}"
            found[one.key] = Chosen(value=DEFAULTS[one.key], because=because)
    return found


def strategy_settings(case: StageCase) -> dict[str, Chosen]:
    """What goes into the plan's `launch`, beside the settings of the stage."""
    found, strategy = {}, case.strategy
    if strategy.name is not None:
        found["sharding"] = Chosen(value=strategy.name, because="how the GPUs share the work")
    if strategy.offload:
        because = "the parts are too large for the GPUs' own memory"
        found["offload"] = Chosen(value=True, because=because)
    return found


def knows_host(hardware: Hardware) -> bool:
    """Whether it is known how much memory the computer itself has."""
    return hardware.origin == "probed" and hardware.host_memory_bytes is not None


def why_not_under_strategy(case: StageCase, settings: Mapping[str, Chosen], cost: Estimate) -> str:
    """Why no run can share the stage in this way, or an empty string."""
    strategy = case.strategy
    refused = refused_by(strategy.name, {**case.axes, **values_of(settings)})
    if refused or not strategy.offload:
        return "; ".join(f"{strategy.name} does not go with it: {one.because}" for one in refused)
    # The computer's memory, if not known, is taken to be twice that of its GPUs; what a checkpoint
    # adds counts if it is.
    hardware = case.situation.hardware
    limit, known = hardware.host_memory_bytes, hardware.origin == "probed"
    peak = cost.host_peak.size_bytes if known and cost.host_peak else cost.host_bytes or 0
    if limit is None or peak <= limit:
        return ""
    there = "there are" if known else "such a machine is taken to have"
    return (
        f"offloading needs {format_gib(peak)} of each computer's own memory, and {there}"
        f" {format_gib(limit)}"
    )


# --------------------------------------------------------------------------- which is better


def is_link_slow(hardware: Hardware) -> bool:
    """Whether the GPUs' link is so slow that sharding is for what fits in no other way."""
    spec = hardware.gpus[0].spec if hardware.gpus else None
    if spec is None or hardware.machines > 1:
        return True
    reach = link_speeds(spec.link, hardware.interconnect)  # within the machine
    is_pair = len(hardware.gpus) == 2 and reach.pair_bytes_per_s > reach.bytes_per_s
    return reach.is_slow and not is_pair


def fit_rank(cost: Estimate) -> tuple[int, bool]:
    """How well it fits, the best first."""
    return ORDER.index(cost.fits), not cost.is_likely


def is_better(cost: Estimate, before: Estimate) -> bool:
    """Whether it fits better, or needs less if neither surely fits."""
    if fit_rank(cost) != fit_rank(before):
        return fit_rank(cost) < fit_rank(before)
    hard = cost.fits == "unknown" or not cost.is_likely
    return hard and need_bytes(cost) < need_bytes(before)


def is_as_fast(one: Fitted, other: Fitted) -> bool:
    """Whether it takes hardly longer than the other; also if neither speed is known."""
    pace, limit = one.pace_s, other.pace_s
    return pace is None or limit is None or pace <= HARDLY_FASTER * limit


def better_of(simpler: Fitted, larger: Fitted) -> Fitted:
    """The one that fits better; else the faster one; else the simpler one."""
    ranks = fit_rank(simpler.cost), fit_rank(larger.cost)
    if ranks[0] != ranks[1]:
        return simpler if ranks[0] < ranks[1] else larger
    return simpler if is_as_fast(simpler, larger) else larger


def sharded_if_better(whole: Fitted, sharded: Fitted) -> Fitted:
    """The sharded one if it is as fast and leaves more room, or room for the usual settings, or if
    it is so much faster that an estimate tells them apart; else the whole one.
    """
    ranks = fit_rank(whole.cost), fit_rank(sharded.cost)
    if not whole.cost.is_likely or (whole.cost.fits == "may_fit" and ranks[1] < ranks[0]):
        return sharded
    if ranks[1] > ranks[0]:
        return whole
    has_room = ranks[1] < ranks[0] or (whole.is_eased and not sharded.is_eased)
    pace, limit = sharded.pace_s, whole.pace_s
    much_faster = pace is not None and limit is not None and MUCH_FASTER * pace <= limit
    return sharded if much_faster or (has_room and is_as_fast(sharded, whole)) else whole


# --------------------------------------------------------------------------- in words


def speeds(ways: Sequence[Fitted]) -> str:
    """'ddp on 4 GPUs 9.1 h, one GPU 33 h', the chosen one first; empty: not known."""
    if not ways or ways[0].pace_s is None:
        return ""
    chosen, *others = ways
    hours = chosen.cost.duration_s
    parts = [chosen.name if hours is None else f"{chosen.name} {format_duration(hours)}"]
    for way in (way for way in others if way.cost.is_likely):
        if way.cost.duration_s is not None:
            # Why it was not taken, though faster.
            only = " (may fit)" if way.cost.fits == "may_fit" != chosen.cost.fits else ""
            parts.append(f"{way.name} {format_duration(way.cost.duration_s)}{only}")
        elif way.pace_s is not None:
            parts.append(f"{way.name} {way.pace_s / (chosen.pace_s or 1.0):.2g} times as long")
    if too_big := [way.name for way in others if not way.cost.is_likely]:
        parts.append(f"{joined(too_big)} {'does' if len(too_big) == 1 else 'do'} not fit")
    return ", ".join(parts)


def about_sharing(candidate: Candidate, hardware: Hardware) -> list[str]:
    """How several GPUs share a candidate's work, and how long each strategy would take."""
    cards, stages = len(hardware.gpus), candidate.stages
    if cards < 2 or not stages:
        return []
    first = stages[0]
    if "sharding" not in first.reasons:
        found = f"one of the {cards} GPUs is used, which is as fast or leaves more memory"
    elif first.gpus < cards:
        found = f"{first.gpus} of the {cards} GPUs are used: {_how_shared(first)}"
    else:
        found = f"all {cards} GPUs are used: {_how_shared(first)}"
    if times := speeds(candidate.ways):
        found += f" (expected: {times})"
    names = list(dict.fromkeys(gpu.name for gpu in hardware.gpus))
    if first.gpus > 1 and len(names) > 1:
        found += (
            f"; they are not alike ({', '.join(names)}): the smallest decides what fits, and the"
            " slowest sets the pace"
        )
    return [found, *_about_host(candidate, hardware)]


def _how_shared(stage: FittedStage) -> str:
    strategy = stage.reasons["sharding"].value
    if strategy == DDP:
        return f"each holds the whole model and its own rows ({DDP})"
    return f"they hold one model together, and each has its own rows ({strategy})"


def _about_host(candidate: Candidate, hardware: Hardware) -> list[str]:
    """What is offloaded, and what a divided model needs of the machines' own memory."""
    cost, found = candidate.estimate, []
    offloading = [stage for stage in candidate.stages if stage.offloads]
    if cost.host_bytes is not None and offloading:
        paces = [one.cost.step_s for one in offloading if one.cost.step_s is not None]
        pace = f" (about {max(paces):,.0f} s a step)" if paces else ""
        found.append(
            f"weights, gradients and optimizer lie in the computer's own memory, about"
            f" {format_gib(cost.host_bytes)}: slower{pace}, and for what fits in no other way"
        )
    there = hardware.host_memory_bytes if hardware.origin == "probed" else None
    if (peak := cost.host_peak) is None or (there is not None and peak.size_bytes <= there):
        return found
    each = "each machine" if hardware.machines > 1 else "the machine"
    has = (
        "make sure of it, since nothing says how much there is"
        if there is None
        else f"this one has {format_gib(there)}"
    )
    needs = f"about {format_gib(peak.size_bytes)} of its own memory {HOST_WORDS[peak.name]}"
    return [*found, f"{each} needs {needs}: {has}"]


def strategy_comment(candidate: Candidate) -> str:
    """Why a plan's GPUs share the work as they do, for the line of `strategy`."""
    about = strategies()[str(candidate.stages[0].reasons["sharding"].value)].about
    times = speeds(candidate.ways)
    return f"{about}; expected: {times}" if times else about
