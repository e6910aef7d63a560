"""Settings that fit: sequence length from the data, then the fastest batch and checkpointing that
the device holds.

Cost comes before judgement: this runs for every candidate, and the rules then see `fits`, never
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from advisor.advice.facts import answers_are_checked, needs_scores
from advisor.advice.search.micro_batches import (
    BestTrial,
    StageCost,
    Trial,
    batch_settings,
    fastest_that_fits,
    least_trial,
    micro_batches_to_try,
    need_bytes,
    trials_of,
    usual_pace,
    with_general,
)
from advisor.advice.search.packing import (
    Packing,
    packing_suits,
    padding_of,
    with_packing,
    with_saving,
)
from advisor.advice.search.rows import RowsRead, rows_read, with_lengths
from advisor.advice.search.settings import BATCH, RATE, USUAL_BATCH, StageCase, refusals
from advisor.advice.search.strategies import (
    fit_rank,
    is_better,
    knows_host,
    strategy_settings,
    under_strategy,
    why_not_under_strategy,
)
from advisor.advice.types import OF_LAUNCH, Chosen, FittedStage, values_of
from advisor.estimate.model.architecture import NO_SDPA, why_not_in_16_bit, why_not_loadable
from advisor.estimate.run import STAGE_KEYS
from advisor.estimate.types import Estimate, HostMoment, Leanest
from advisor.estimate.whole_time import total_time
from advisor.ground.types import FSDP, AnswerSet, DataProfile, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.methods import methods
from advisor.methods.composition import compose
from advisor.methods.kernels import AUTO
from advisor.methods.optimizers import optimizer_words
from advisor.plan.model import Stage
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import inside_sentence
from advisor.situation.types import Situation

BATCHING = ("packing", "group_by_length")  # what rules set by the fact `packing_suits`
ENOUGH = ("fits", "unknown")  # nothing has to be given up
CLASSES = "classification"
CHECKED = "1 for the answer of the row, else 0: every row has one that can be checked"


def fit_stage(case: StageCase, *, may_pack: bool = True) -> FittedStage:
    """One stage with settings that fit, or need least if none does, and its estimate.

    Args:
        may_pack: Several rows may share a sequence, which may be longer than any row.
    """
    settings, (usual, suits), (left_out, read, packing) = _before_fitting(case, may_pack=may_pack)
    batch, seq_len = settings.pop(BATCH), int(settings["seq_len"].value)
    recompute = {"gradient_checkpointing": True}
    no_recompute = "".join(refusals(case.objective, case.update, recompute).values())
    micros = micro_batches_to_try(case, int(batch.value), seq_len)
    trials = trials_of(int(batch.value), micros, cards=case.cards, recompute=not no_recompute)
    fitted, best = _with_least_given_up(case, settings, (usual, suits), trials)
    if packing is not None and best.cost.fits not in ENOUGH:
        alone = fit_stage(case, may_pack=False)
        if fit_rank(alone.cost) < fit_rank(best.cost):
            return alone
    cost = _refused_if_impossible(case, fitted, best)
    if not case.is_module:
        cost = replace(cost, leanest=_leanest(case, settings, (usual, suits), trials))
    chosen = {
        **fitted,
        **batch_settings(
            best, batch, no_recompute=no_recompute, most=max(micros), packed=packing is not None
        ),
    }
    per_step: float = chosen["micro_batch_size"].value * chosen["grad_accum"].value * case.cards
    if packing is not None:
        per_step = packing.rows
    stage = _stage_with(case, chosen)
    read = replace(read, mixed=with_general(case, stage))
    chosen = read.with_steps(chosen, per_step)
    padding = padding_of(case, chosen)
    return FittedStage(
        stage=stage,
        reasons=with_saving(chosen, padding),
        cost=cost,
        padding=padding,
        told_steps=read.steps(chosen, per_step) or cost.steps,
        gpus=case.cards,
        machines=case.situation.hardware.machines,
        is_eased=fitted is not settings,
        left_out=left_out,
        engine=case.engine,
    )


def _before_fitting(
    case: StageCase, *, may_pack: bool = True
) -> tuple[dict[str, Chosen], tuple[dict[str, Chosen], str], tuple[str, RowsRead, Packing | None]]:
    """The settings by rules and data alone; (those of the rules, the fact `packing_suits`); (which
    rows are left out, what follows from their number, the packing).
    """
    usual = case.settings()
    settings, left_out = with_lengths(case, {BATCH: USUAL_BATCH, **usual, **case.module})
    settings = _with_attention(case, settings)
    read = rows_read(case, settings, max(case.profiles, key=lambda one: one.rows, default=None))
    settings = {**under_strategy(case, {**settings, **read.settings}), **strategy_settings(case)}
    suits, packing = packing_suits(case, settings)
    if packing is not None and not may_pack:
        suits, packing = "uneven", None
    if suits != "unknown":
        usual = case.settings(packing_suits=suits)
        settings |= {key: usual[key] for key in BATCHING if key in usual and key not in case.module}
    settings, packing = with_packing(case, settings, suits, packing, fits=may_pack)
    before = case.composition.chain[: case.composition.chain.index(case.objective)]
    is_scored = case.situation.reward_model or not needs_scores(case.objective, before)
    if answers_are_checked(case.situation) and not is_scored:
        settings["verifier"] = Chosen(value="exact", because=CHECKED)
    return settings, (usual, suits), (left_out, read, packing)


def _stage_with(case: StageCase, chosen: Mapping[str, Chosen]) -> Stage:
    """The stage of the plan; without a learning rate if nothing sets one."""
    values = {key: one.value for key, one in chosen.items() if key not in OF_LAUNCH}
    common = {key: value for key, value in values.items() if key in STAGE_KEYS}
    return Stage(
        name=case.objective,
        objective=case.objective,
        update=case.update,
        quantization=case.composition.quantization,
        options={key: value for key, value in values.items() if key not in STAGE_KEYS},
        **{RATE: 0.0, **common},
    )


def _with_attention(case: StageCase, settings: dict[str, Chosen]) -> dict[str, Chosen]:
    """The settings with eager attention for a model that transformers has no other for."""
    architecture = case.situation.model.architecture if case.situation.model else None
    is_open = "attention" not in settings or settings["attention"].value == AUTO
    if architecture not in NO_SDPA or not is_open:
        return settings
    because = f"transformers has no sdpa attention for {architecture} models"
    return {**settings, "attention": Chosen(value="eager", because=because)}


def _with_least_given_up(
    case: StageCase,
    settings: dict[str, Chosen],
    by_rule: tuple[Mapping[str, Chosen], str],
    trials: Sequence[Trial],
) -> tuple[dict[str, Chosen], BestTrial]:
    """The usual settings if they fit, else those for less memory; else what needs least."""
    usual, suits = by_rule
    size_key = methods().update(case.update).size_key
    fitted, best = settings, _fastest(case, settings, trials)
    for level in case.levels[1:]:
        if best.cost.fits in ENOUGH:
            break
        changed = _for_less(case, level, suits, usual)
        if not changed:
            continue
        less = {**fitted, **_with_need(changed, fitted, best.cost, first=size_key)}
        found = _fastest(case, less, trials)
        if is_better(found.cost, best.cost):
            fitted, best = less, found
    return fitted, best


def _leanest(
    case: StageCase,
    settings: Mapping[str, Chosen],
    by_rule: tuple[Mapping[str, Chosen], str],
    trials: Sequence[Trial],
) -> Leanest | None:
    """What every weight needs in the form that needs least, whatever fits here."""
    usual, suits = by_rule
    changed = _for_less(case, case.levels[-1], suits, usual)
    plain = values_of({**settings, **changed})
    stage = StageCost(case, plain)
    cost_of = cache(lambda trial: stage.estimate(trial.values))
    memory = cost_of(least_trial(trials, cost_of, trains_all=True)).memory
    if memory is None:
        return None
    words = optimizer_words(plain["optimizer"], plain.get("weights_dtype"))
    return Leanest(memory.need_bytes, words)


def _for_less(
    case: StageCase, level: str, suits: str, usual: Mapping[str, Chosen]
) -> dict[str, Chosen]:
    """What rules set otherwise for so much memory; nothing if the strategy does not take it."""
    changed = {
        key: one
        for key, one in case.settings(level, suits).items()
        if key not in case.module and (key not in usual or one.value != usual[key].value)
    }
    return changed if under_strategy(case, changed) == changed else {}


def _fastest(case: StageCase, settings: Mapping[str, Chosen], trials: Sequence[Trial]) -> BestTrial:
    plain = values_of(settings)
    stage = StageCost(case, plain)

    def pace_of(trial: Trial) -> float:
        found = stage.row_s(trial.values)
        return usual_pace(trial, int(plain["seq_len"])) if found is None else found

    return fastest_that_fits(
        trials,
        lambda trial: stage.estimate(trial.values),
        pace_of,
        on_cpu=case.on_cpu,
        trains_all=not case.is_module,
    )


def _with_need(
    changed: dict[str, Chosen], fitted: Mapping[str, Chosen], cost: Estimate, *, first: str
) -> dict[str, Chosen]:
    """Values for a memory that is short; one of them, `first` if it is new, says what the best
    settings so far would need.
    """
    was = {key: fitted[key].value for key in changed if key in fitted}
    new = [key for key in changed if changed[key].value != was.get(key)]
    if not new or cost.memory is None or cost.limit_bytes is None:
        return changed
    key = first if first in new else new[0]
    instead = f"{key} {was[key]}" if key in was else "without this it"
    because = (
        f"{instead} would need {format_gib(need_bytes(cost))}, and there are"
        f" {format_gib(cost.limit_bytes)}: {inside_sentence(changed[key].because)}"
    )
    return {**changed, key: replace(changed[key], because=because)}


def _refused_if_impossible(
    case: StageCase, settings: Mapping[str, Chosen], best: BestTrial
) -> Estimate:
    """The estimate, too big with a reason if no run can load or share the stage."""
    sizes = [one.memory.need_bytes for one in (best.least, best.cost) if one.memory is not None]
    cost, refused = replace(best.cost, least_bytes=min(sizes, default=None)), ""
    if (model := case.situation.model) is not None and case.engine is None:
        quantization = case.composition.quantization
        refused = why_not_loadable(
            model.stored,
            trains_all=not case.is_module,
            quantization=quantization,
            divided=case.strategy.name == FSDP and case.composition.update == "prefix",
        ) or why_not_in_16_bit(model.stored, quantization=quantization)
    refused = refused or why_not_under_strategy(case, settings, cost)
    if refused:
        return replace(cost, fits="too_big", refused=refused)
    # Nobody knows whether the computer holds what is offloaded to it and fits beside it.
    is_open = case.strategy.offload and not knows_host(case.situation.hardware)
    return replace(cost, fits="unknown") if is_open and cost.fits in ("fits", "tight") else cost


# --------------------------------------------------------------------------- of a chain


def combine_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for a chain: the worst fit, the highest memory, the sum of time and money."""
    worst = max(estimates, key=lambda cost: (fit_rank(cost), need_bytes(cost)))
    host: dict[str, HostMoment] = {}
    for moment in (moment for cost in estimates for moment in cost.host):
        if moment.name not in host or moment.size_bytes > host[moment.name].size_bytes:
            host[moment.name] = moment
    return replace(
        worst,
        least_bytes=max((cost.least_bytes or 0 for cost in estimates), default=0) or None,
        leanest=max(
            filter(None, (cost.leanest for cost in estimates)),
            key=attrgetter("need_bytes"),
            default=None,
        ),
        read=tuple(one for cost in estimates for one in cost.read),
        duration_s=_sum_if_known(cost.duration_s for cost in estimates),
        times=total_time([cost.times for cost in estimates]),
        cost_usd=_sum_if_known(cost.cost_usd for cost in estimates),
        unknown=tuple(dict.fromkeys(reason for cost in estimates for reason in cost.unknown)),
        host=tuple(host.values()),
    )


def _sum_if_known(amounts: Iterable[float | None]) -> float | None:
    found = list(amounts)
    return None if None in found else sum(amount or 0.0 for amount in found)


def coarse_fit(cost: Estimate, facts: Mapping[str, Any], *, may_not_fit: bool = False) -> str:
    """The fact the rules see: fits, tight, too_big, over_budget or unknown. If nothing else fits
    (`may_not_fit`), what is a little above the memory is worth a try.
    """
    fit: str = cost.fits
    if fit == "may_fit":
        fit = "tight" if cost.is_likely or (may_not_fit and cost.is_near) else "too_big"
    limits = {"budget_usd": (cost.cost_usd, 1), "budget_hours": (cost.duration_s, 3600)}
    is_over = any(
        amount is not None and (limit := facts.get(name)) is not None and amount > limit * unit
        for name, (amount, unit) in limits.items()
    )
    return "over_budget" if fit != "too_big" and is_over else fit


# --------------------------------------------------------------------------- of data alone

USUAL = {"device": "gpu", "memory_left": "enough"}
SHOWN = ("seq_len", "packing")


def suited_objective(data: DataProfile) -> str | None:
    """The objective that the data suit best, `classification` for texts with a label."""
    if CLASSES in data.objectives:
        return CLASSES
    return next((name for name in data.objectives if name in methods().objectives), None)


def settings_by_data(ruleset: Ruleset, data: DataProfile, objective: str) -> Mapping[str, Chosen]:
    """`seq_len` and `packing` on some GPU, with the plan's reasons; {} if not measured."""
    if data.tokens is None:
        return {}
    # Any encoder with a head, or any decoder.
    is_class, machine = objective == CLASSES, Hardware(kind="unknown", origin="unknown")
    model = ModelShape(
        id="any", origin="size", params=10**9, architecture="bert" if is_class else None
    )
    situation = Situation(answers=AnswerSet(known={}), hardware=machine, data=data, model=model)
    composition = compose("encoder:sft" if is_class else objective, "lora")
    facts = {**USUAL, "data_rows": data.rows}
    case = StageCase(ruleset, situation, facts, composition, composition.chain[0])
    settings, *_ = _before_fitting(case)
    because = f"{objective} takes each row by itself"
    settings.setdefault("packing", Chosen(value=False, because=because))
    return {key: settings[key] for key in SHOWN}
