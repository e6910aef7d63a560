"""Settings that fit: sequence length from the data, then the fastest batch and checkpointing that
the device holds.

Cost comes before judgement: this runs for every candidate, and the rules then see `fits`, never
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from advisor.advice.search.batch_keys import batch_settings, batch_values
from advisor.advice.search.lengths import room_for_answers, sequence_length, text_length
from advisor.advice.search.micro_batches import (
    MICRO_BATCHES,
    Found,
    Trial,
    fastest_that_fits,
    trials_of,
    usual_pace,
)
from advisor.advice.search.packing import (
    packed_settings,
    packing_suits,
    padding_of,
    unpacked,
    with_saving,
)
from advisor.advice.search.rows import ForRows, rows_given, settings_for_rows
from advisor.advice.search.settings import MEMORY_LEFT, StageCase, refusal
from advisor.advice.search.shorter import shorter_rows
from advisor.advice.search.stage_cost import Passes, pace_by, stage_estimate
from advisor.advice.search.strategies import (
    settings_under,
    sharing_axes,
    sharing_settings,
    why_not_offloaded,
    why_not_shared,
)
from advisor.advice.types import Chosen, StageSettings
from advisor.estimate.model.architecture import NO_SDPA
from advisor.estimate.model.stored import why_not_in_16_bit, why_not_loadable
from advisor.estimate.types import Estimate, Fits, HostMoment
from advisor.estimate.whole_time import together
from advisor.ground.types import DataProfile
from advisor.ground.units import format_gib
from advisor.methods import methods
from advisor.methods.kernels import AUTO
from advisor.methods.strategies import Sharing
from advisor.ruleset.phrases import inside_sentence

USUAL_BATCH = Chosen(value=16, because="usual")
BATCHING = ("packing", "group_by_length")  # what rules set by the fact `packing_suits`
# From the best to the worst; what may fit counts as too big once the estimate itself is above.
ORDER: tuple[Fits, ...] = ("fits", "unknown", "tight", "may_fit", "too_big")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ease:
    """What a stage gives up so that something fits."""

    memory_left: str = MEMORY_LEFT[0]  # the settings to begin with
    last_resort: bool = False  # nothing fits otherwise: the least settings of modules, too
    shorter: int = 0  # steps by which the rows are shorter

    def levels(self, *, is_module: bool) -> Sequence[str]:
        """The amounts of memory whose settings may be taken, the usual ones first."""
        end = len(MEMORY_LEFT) - (is_module and not self.last_resort)
        return MEMORY_LEFT[MEMORY_LEFT.index(self.memory_left) : end]


NO_EASE = Ease()


def fit_stage(
    case: StageCase,
    sharing: Sharing,
    shared: Mapping[str, Chosen] = MappingProxyType({}),
    ease: Ease = NO_EASE,
    may_pack: bool = True,
    coarse: bool = False,
) -> tuple[StageSettings, Estimate]:
    """One stage of a composition with settings that fit (or need least, where none does or nobody
    knows), and its estimate.

    Args:
        sharing: How several GPUs share the work, the same for all stages of a plan.
        shared: Keys of a module that goes on from another stage, which stand over the stage's own.
        ease: What is given up beforehand so that it fits.
        may_pack: Several rows may share a sequence, which may be longer than any row.
        coarse: Only whether it fits is asked for: where the smallest batch fits, its settings and
            estimate come back, and no faster one is looked for.
    """
    objective, update, quantization = case.objective, case.update, case.composition.quantization
    situation, model, profile = case.situation, case.situation.model, case.profile
    settings = {**case.settings(ease.memory_left), **shared}
    batch = settings.pop("effective_batch_size", USUAL_BATCH)
    context = model.context_tokens if model else None
    settings["seq_len"] = (
        text_length(context, on_cpu=case.on_cpu)
        if case.method.splits_documents
        else sequence_length(profile, context)
    )
    settings, left_out = shorter_rows(settings, case, steps=ease.shorter)
    settings |= room_for_answers(objective, settings, profile, context)
    open_attention = "attention" not in settings or settings["attention"].value == AUTO
    if model is not None and model.architecture in NO_SDPA and open_attention:
        because = f"transformers has no sdpa attention for {model.architecture} models"
        settings["attention"] = Chosen(value="eager", because=because)
    largest = max(case.profiles, key=lambda profile: profile.rows, default=None)
    followed = _for_rows(case, settings, batch, largest)
    settings, batch = {**settings, **followed.settings}, followed.batch
    axes = {**sharing_axes(situation, case.composition), "objective": objective}
    settings = {**settings_under(sharing, axes, settings), **sharing_settings(sharing)}
    suits, packing = packing_suits(case, settings, rows=int(batch.value))
    if packing is not None and not may_pack:
        suits = "uneven"
    usual = case.settings(ease.memory_left, suits)
    if suits != "unknown":
        settings |= {
            key: one for key, one in usual.items() if key in BATCHING and key not in shared
        }
    if "packing" not in settings:
        settings |= unpacked(objective, suits, on_cpu=case.on_cpu, fits=may_pack)
    if "packing" not in settings or not settings["packing"].value:
        packing = None
    if packing is not None:
        settings, batch = packed_settings(settings, batch, packing)
    no_recompute = refusal(objective, update, "gradient_checkpointing", True)
    trials = trials_of(
        int(batch.value),
        int(settings["seq_len"].value),
        cards=case.cards,
        on_cpu=case.on_cpu,
        allowed=_micro_batches(case),
        recompute=not no_recompute,
    )
    passes = _passes(case, settings)
    best: _Fitted | None = None
    for level in ease.levels(is_module=case.is_module):
        laid_over = settings
        if level != ease.memory_left:
            changed = {
                key: one
                for key, one in case.settings(level, suits).items()
                if key not in shared and (key not in usual or one.value != usual[key].value)
            }
            if not changed or best is None or settings_under(sharing, axes, changed) != changed:
                continue
            laid_over = {
                **best.settings,
                **_with_need(changed, best, first=methods().update(update).size_key),
            }
        found = _fastest(case, sharing, passes, trials, laid_over, coarse=coarse)
        # Of settings that are all too big the smallest need is kept: the shortest way out.
        if best is None or is_better(found.cost, best.found.cost):
            best = _Fitted(laid_over, found)
        if best.found.cost.fits in ("fits", "unknown"):
            break
    assert best is not None  # there is a level at least
    if packing is not None and best.found.cost.fits not in ("fits", "unknown"):
        other = fit_stage(case, sharing, shared, ease, may_pack=False, coarse=coarse)
        if fit_rank(other[1]) < fit_rank(best.found.cost):
            return other
    refused = ""
    if model is not None:
        refused = why_not_loadable(
            model.stored, trains_all=not case.is_module, quantization=quantization
        ) or why_not_in_16_bit(model.stored, quantization=quantization)
    found = best.found
    cost = replace(found.cost, least_bytes=_least_bytes(found))
    refused = refused or why_not_shared(sharing, axes, best.settings)
    if sharing.offload and not refused:
        refused = why_not_offloaded(cost, situation.hardware)
    if refused:
        cost = replace(cost, fits="too_big", refused=refused)
    most = max(trial.micro for trial in trials)
    batched = batch_settings(found, batch, no_recompute, most=most, packed=packing is not None)
    chosen = {**best.settings, **batched}
    per_step: float = chosen["micro_batch_size"].value * chosen["grad_accum"].value * case.cards
    if packing is not None:
        per_step = packing.rows
    chosen = followed.told(chosen, per_step)
    padding = padding_of(case, chosen)
    stage = StageSettings(
        objective=objective,
        update=update,
        quantization=quantization,
        settings=with_saving(chosen, padding),
        padding=padding,
        steps=cost.steps,
        told_steps=followed.steps(chosen, per_step) or cost.steps,
        duration_s=cost.duration_s,
        step_s=cost.step_s,
        gpus=case.cards,
        machines=situation.hardware.machines,
        is_eased=best.settings is not settings,
        left_out=left_out,
    )
    return stage, cost


def task_settings(case: StageCase) -> list[tuple[DataProfile, ForRows]]:
    """What follows from the rows of each data file of a stage, in the order of the tasks."""
    found = []
    for profile in case.profiles:
        own = replace(case, facts={**case.facts, "data_rows": profile.rows})
        settings = own.settings()
        batch = settings.pop("effective_batch_size", USUAL_BATCH)
        found.append((profile, _for_rows(own, settings, batch, profile)))
    return found


def _for_rows(
    case: StageCase,
    settings: Mapping[str, Chosen],
    batch: Chosen,
    profile: DataProfile | None,
) -> ForRows:
    """The batch, epochs and held-out share for the rows of a data file, or those stated."""
    if profile is None:
        rows, tokens = (case.situation.answers.value(name) for name in ("data_rows", "data_tokens"))
    else:
        rows = rows_given(profile, case.objective)
        tokens = profile.tokens.total if profile.tokens is not None else None
    return settings_for_rows(
        case.objective,
        settings,
        batch,
        rows=rows,
        tokens=tokens,
        classes=case.composition.encoder and not case.is_seq2seq,
        multiple=min(_micro_batches(case)) * case.cards,
    )


def _passes(case: StageCase, settings: Mapping[str, Chosen]) -> Passes:
    def one(found: Mapping[str, Chosen]) -> Passes:
        return Passes.of({key: chosen.value for key, chosen in found.items()})

    if len(case.profiles) < 2:
        return one(settings)
    tasks = [(profile.rows, one(follows.settings)) for profile, follows in task_settings(case)]
    rows = sum(count for count, _ in tasks) or 1
    return Passes(
        sum(count * each.over_trained for count, each in tasks) / rows,
        sum(count * each.held for count, each in tasks) / rows,
    )


class _Fitted(NamedTuple):
    """The best settings so far."""

    settings: Mapping[str, Chosen]
    found: Found


def _fastest(
    case: StageCase,
    sharing: Sharing,
    passes: Passes,
    trials: Sequence[Trial],
    settings: Mapping[str, Chosen],
    *,
    coarse: bool,
) -> Found:
    """The trial that these settings of the stage get."""
    plain = {key: chosen.value for key, chosen in settings.items()}
    pace = pace_by(case, sharing.strategy)

    def cost_of(trial: Trial) -> Estimate:
        return stage_estimate(case, {**plain, **batch_values(trial)}, sharing.strategy, passes)

    def pace_of(trial: Trial) -> float:
        found = pace({**plain, **batch_values(trial)})
        return usual_pace(trial, int(plain["seq_len"])) if found is None else found

    return fastest_that_fits(
        trials,
        cost_of=cost_of,
        pace_of=pace_of,
        on_cpu=case.on_cpu,
        trains_all=not case.is_module,
        coarse=coarse,
    )


def fit_rank(cost: Estimate) -> tuple[int, bool]:
    """How well it fits, the best first."""
    return ORDER.index(cost.fits), not cost.is_likely


def is_better(cost: Estimate, before: Estimate) -> bool:
    """Whether it fits better; of two that are above the memory, or of which that is not known,
    whether it needs less.
    """
    if fit_rank(cost) != fit_rank(before):
        return fit_rank(cost) < fit_rank(before)
    hard = cost.fits == "unknown" or not cost.is_likely
    return hard and _need(cost) < _need(before)


def _with_need(changed: Mapping[str, Chosen], before: _Fitted, *, first: str) -> dict[str, Chosen]:
    """Values for a memory that is short; the first new one says what the best settings so far
    would need.

    Args:
        first: The key that says how large the module is, which stands for all.
    """
    was = {key: before.settings[key].value for key in changed if key in before.settings}
    new = [key for key in changed if changed[key].value != was.get(key)]
    key = first if first in new else next(iter(new), None)
    cost = before.found.cost
    if key is None or cost.memory is None or cost.limit_bytes is None:
        return dict(changed)
    need, limit = _need(cost), cost.limit_bytes
    instead = f"{key} {was[key]}" if key in was else "without this it"
    because = (
        f"{instead} would need {format_gib(need)}, and there are"
        f" {format_gib(limit)}: {inside_sentence(changed[key].because)}"
    )
    return {**changed, key: replace(changed[key], because=because)}


def _need(cost: Estimate) -> int:
    return cost.memory.need_bytes if cost.memory else 0


def _least_bytes(found: Found) -> int | None:
    """The least that the stage needs; what was chosen may be that."""
    sizes = [one.memory.need_bytes for one in (found.least, found.cost) if one.memory is not None]
    return min(sizes, default=None)


def _micro_batches(case: StageCase) -> Sequence[int]:
    """The micro-batch sizes that the methods of a stage accept, largest first."""
    axes = (case.objective, case.update, "micro_batch_size")
    return [size for size in MICRO_BATCHES if not refusal(*axes, size)]


def combine_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for a chain: the worst fit, the highest memory, the sum of time and money."""
    worst = max(estimates, key=lambda cost: (fit_rank(cost), _need(cost)))
    hours = _sum(cost.duration_s for cost in estimates)
    usd = _sum(cost.cost_usd for cost in estimates)
    unknown = tuple(dict.fromkeys(reason for cost in estimates for reason in cost.unknown))
    times = together([cost.times for cost in estimates])
    least = max((cost.least_bytes or 0 for cost in estimates), default=0) or None
    host: dict[str, HostMoment] = {}
    for moment in (moment for cost in estimates for moment in cost.host):
        if moment.name not in host or moment.size_bytes > host[moment.name].size_bytes:
            host[moment.name] = moment
    return replace(
        worst, least_bytes=least, duration_s=hours, times=times, cost_usd=usd, unknown=unknown,
        host=tuple(host.values()),
    )  # fmt: skip


def _sum(amounts: Iterable[float | None]) -> float | None:
    """None where one of them is not known."""
    found = list(amounts)
    return None if None in found else sum(amount or 0.0 for amount in found)


def coarse_fit(cost: Estimate, facts: Mapping[str, Any], *, near: bool = False) -> str:
    """The fact the rules see: fits, tight, too_big, over_budget or unknown.

    What may fit is tight if the estimate itself is within the memory; if it is a little above, a
    try is worth it only where nothing else fits.

    Args:
        near: Nothing else fits.
    """
    fit = cost.fits
    if fit == "may_fit":
        fit = "tight" if cost.is_likely or (near and cost.is_near) else "too_big"
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    if fit != "too_big" and (
        (usd is not None and cost.cost_usd is not None and cost.cost_usd > usd)
        or (hours is not None and cost.duration_s is not None and cost.duration_s > hours * 3600)
    ):
        return "over_budget"
    return fit
