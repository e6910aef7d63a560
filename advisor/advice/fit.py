"""Settings that fit: sequence length from the data, then the fastest batch and checkpointing that
the device holds.

Cost comes before judgement: this runs for every candidate, and the rules then see `fits`, never
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from advisor.advice.batch_keys import batch_settings, batch_values
from advisor.advice.batching import (
    packed_settings,
    packing_suits,
    padding_of,
    unpacked,
    with_saving,
)
from advisor.advice.facts_of_situation import device, model_facts
from advisor.advice.lengths import room_for_answers, sequence_length, text_length
from advisor.advice.micro_batches import (
    MICRO_BATCHES,
    Found,
    Trial,
    fastest_that_fits,
    trials_of,
    usual_pace,
)
from advisor.advice.settings import refusal, settings_by_rule
from advisor.advice.sharing import (
    settings_under,
    sharing_axes,
    sharing_settings,
    why_not_offloaded,
    why_not_shared,
)
from advisor.advice.shorter import shorter_rows
from advisor.advice.stage_cost import (
    Passes,
    pace_by,
    profile_of,
    profiles_of,
    stage_estimate,
)
from advisor.advice.steps import ForRows, rows_given, settings_for_rows
from advisor.advice.types import Chosen, StageSettings
from advisor.estimate.model.architecture import NO_SDPA
from advisor.estimate.model.stored import why_not_in_16_bit, why_not_loadable
from advisor.estimate.types import Estimate, Fits, HostMoment
from advisor.estimate.whole_time import together
from advisor.ground.types import DataProfile
from advisor.ground.units import format_gib
from advisor.methods import methods
from advisor.methods.composition import Composition
from advisor.methods.families import DECODER, ENCODER, SEQ2SEQ, kind_of_type
from advisor.methods.kernels import AUTO
from advisor.methods.strategies import Sharing
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import inside_sentence
from advisor.situation.types import Situation

USUAL_BATCH = Chosen(value=16, because="usual")
# What rules may set for each amount of memory (fact `memory_left`), the usual settings first.
MEMORY_LEFT = ("enough", "little", "least")
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


def kind_of_situation(situation: Situation) -> str:
    """encoder, seq2seq or decoder: what kind of model is trained."""
    return kind_of_type(situation.model.architecture if situation.model else None)


def stage_facts(
    situation: Situation, facts: Mapping[str, Any], composition: Composition
) -> dict[str, Any]:
    """What the table of settings sees beside the stage's own axes."""
    found = {**facts, "architecture": DECODER}
    if composition.encoder:
        kind = kind_of_situation(situation)
        found["architecture"] = SEQ2SEQ if kind == SEQ2SEQ else ENCODER
    if situation.model is not None:  # also of a suggested model: its size decides the learning rate
        found["params_b"] = situation.model.params / 1e9
        found |= model_facts(situation.model)
    return found


def stage_settings(
    ruleset: Ruleset,
    situation: Situation,
    facts: Mapping[str, Any],
    composition: Composition,
    objective: str,
    memory_left: str = MEMORY_LEFT[0],
    packing_suits: str = "unknown",
) -> dict[str, Chosen]:
    """What the rules set for one stage of a composition, before anything is fitted."""
    seen = {**stage_facts(situation, facts, composition), "memory_left": memory_left}
    if packing_suits != "unknown":
        seen["packing_suits"] = packing_suits
    return settings_by_rule(
        ruleset, seen, objective, composition.update or "lora", composition.quantization
    )


def fit_stage(
    ruleset: Ruleset,
    situation: Situation,
    facts: Mapping[str, Any],
    composition: Composition,
    objective: str,
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
    update, quantization = composition.update or "lora", composition.quantization
    by_rule = stage_settings(ruleset, situation, facts, composition, objective, ease.memory_left)
    settings = {**by_rule, **shared}
    batch = settings.pop("effective_batch_size", USUAL_BATCH)
    model = situation.model
    context = model.context_tokens if model else None
    settings["seq_len"] = (
        text_length(context, on_cpu=device(situation) == "cpu")
        if methods().objective(objective).splits_documents
        else sequence_length(profile_of(situation, objective), context)
    )
    settings, left_out = shorter_rows(
        settings, situation, objective, profile_of(situation, objective), steps=ease.shorter
    )
    settings |= room_for_answers(objective, settings, profile_of(situation, objective), context)
    if model is not None and model.architecture in NO_SDPA and _is_open(settings, "attention"):
        because = f"transformers has no sdpa attention for {model.architecture} models"
        settings["attention"] = Chosen(value="eager", because=because)
    largest = max(profiles_of(situation, objective), key=lambda profile: profile.rows, default=None)
    followed = _for_rows(situation, composition, objective, settings, batch, largest)
    settings, batch = {**settings, **followed.settings}, followed.batch
    axes = {**sharing_axes(situation, composition), "objective": objective}
    settings = {**settings_under(sharing, axes, settings), **sharing_settings(sharing)}
    suits, packing = packing_suits(
        situation,
        objective,
        settings,
        rows=int(batch.value),
        profiles=len(profiles_of(situation, objective)),
        profile=profile_of(situation, objective),
    )
    if suits == "gains" and packing is not None and not may_pack:
        suits = "uneven"
    if suits != "unknown":
        settings |= {
            key: one
            for key, one in stage_settings(
                ruleset, situation, facts, composition, objective, ease.memory_left, suits
            ).items()
            if key in BATCHING and key not in shared
        }
    if "packing" not in settings:
        on_cpu = device(situation) == "cpu"
        settings |= unpacked(objective, suits, on_cpu=on_cpu, fits=may_pack)
    packed = packing is not None and "packing" in settings and bool(settings["packing"].value)
    if packed and packing is not None:
        settings, batch = packed_settings(settings, batch, packing)
    no_recompute = refusal(objective, update, "gradient_checkpointing", True)
    trials = trials_of(
        int(batch.value),
        int(settings["seq_len"].value),
        cards=max(1, len(situation.hardware.gpus)),
        on_cpu=device(situation) == "cpu",
        allowed=_micro_batches(objective, update),
        recompute=not no_recompute,
    )
    passes = _passes(ruleset, situation, facts, composition, objective, settings)
    search = _Search(situation, objective, update, quantization, sharing.strategy, passes)
    best: _Fitted | None = None
    usual = stage_settings(
        ruleset, situation, facts, composition, objective, ease.memory_left, suits
    )
    for level in ease.levels(is_module=methods().update(update).is_module):
        laid_over = settings
        if level != ease.memory_left:
            tighter = stage_settings(
                ruleset, situation, facts, composition, objective, level, suits
            )
            changed = {
                key: one
                for key, one in tighter.items()
                if key not in shared and (key not in usual or one.value != usual[key].value)
            }
            if not changed or best is None or settings_under(sharing, axes, changed) != changed:
                continue
            laid_over = {
                **best.settings,
                **_with_need(changed, best, first=methods().update(update).size_key),
            }
        found = search.fastest(trials, laid_over, coarse=coarse)
        # Of settings that are all too big the smallest need is kept: the shortest way out.
        if best is None or is_better(found.cost, best.found.cost):
            best = _Fitted(laid_over, found)
        if best.found.cost.fits in ("fits", "unknown"):
            break
    assert best is not None  # there is a level at least
    if packed and best.found.cost.fits not in ("fits", "unknown"):
        other = fit_stage(
            ruleset,
            situation,
            facts,
            composition,
            objective,
            sharing,
            shared,
            ease,
            may_pack=False,
            coarse=coarse,
        )
        if fit_rank(other[1]) < fit_rank(best.found.cost):
            return other
    refused = (
        why_not_loadable(
            model.stored,
            trains_all=not methods().update(update).is_module,
            quantization=quantization,
        )
        or why_not_in_16_bit(model.stored, quantization=quantization)
        if model is not None
        else ""
    )
    found = best.found
    cost = replace(found.cost, least_bytes=_least_bytes(found))
    refused = refused or why_not_shared(sharing, axes, best.settings)
    if sharing.offload and not refused:
        refused = why_not_offloaded(cost, situation.hardware)
    if refused:
        cost = replace(cost, fits="too_big", refused=refused)
    chosen = {
        **best.settings,
        **batch_settings(
            found,
            batch,
            no_recompute,
            most=max(trial.micro for trial in trials),
            packed=packed,
        ),
    }
    per_step: float = int(followed.batch.value)
    if packed and packing is not None:
        per_step = packing.rows
    else:
        per_step = chosen["micro_batch_size"].value * chosen["grad_accum"].value
        per_step *= max(1, len(situation.hardware.gpus))
    chosen = followed.told(chosen, per_step)
    padding = padding_of(situation, objective, chosen, profile_of(situation, objective))
    return (
        StageSettings(
            objective=objective,
            update=update,
            quantization=quantization,
            settings=with_saving(chosen, padding),
            padding=padding,
            steps=cost.steps,
            told_steps=followed.steps(chosen, per_step) or cost.steps,
            duration_s=cost.duration_s,
            step_s=cost.step_s,
            gpus=max(1, len(situation.hardware.gpus)),
            machines=situation.hardware.machines,
            is_eased=best.settings is not settings,
            left_out=left_out,
        ),
        cost,
    )


def task_settings(
    ruleset: Ruleset,
    situation: Situation,
    facts: Mapping[str, Any],
    composition: Composition,
    objective: str,
) -> list[tuple[DataProfile, ForRows]]:
    """What follows from the rows of each data file of a stage, in the order of the tasks."""
    found = []
    for profile in profiles_of(situation, objective):
        own = {**facts, "data_rows": profile.rows}
        settings = stage_settings(ruleset, situation, own, composition, objective)
        batch = settings.pop("effective_batch_size", USUAL_BATCH)
        found.append(
            (profile, _for_rows(situation, composition, objective, settings, batch, profile))
        )
    return found


def _for_rows(
    situation: Situation,
    composition: Composition,
    objective: str,
    settings: Mapping[str, Chosen],
    batch: Chosen,
    profile: DataProfile | None,
) -> ForRows:
    """The batch, epochs and held-out share for the rows of a data file, or those stated."""
    if profile is None:
        rows, tokens = (situation.answers.value(name) for name in ("data_rows", "data_tokens"))
    else:
        rows = rows_given(profile, objective)
        tokens = profile.tokens.total if profile.tokens is not None else None
    smallest = min(_micro_batches(objective, composition.update or "lora"))
    return settings_for_rows(
        objective,
        settings,
        batch,
        rows=rows,
        tokens=tokens,
        classes=composition.encoder and kind_of_situation(situation) != SEQ2SEQ,
        multiple=smallest * max(1, len(situation.hardware.gpus)),
    )


def _passes(
    ruleset: Ruleset,
    situation: Situation,
    facts: Mapping[str, Any],
    composition: Composition,
    objective: str,
    settings: Mapping[str, Chosen],
) -> Passes:
    def one(found: Mapping[str, Chosen]) -> Passes:
        return Passes.of({key: chosen.value for key, chosen in found.items()})

    if len(profiles_of(situation, objective)) < 2:
        return one(settings)
    tasks = [
        (profile.rows, one(follows.settings))
        for profile, follows in task_settings(ruleset, situation, facts, composition, objective)
    ]
    rows = sum(count for count, _ in tasks) or 1
    return Passes(
        sum(count * each.over_trained for count, each in tasks) / rows,
        sum(count * each.held for count, each in tasks) / rows,
    )


def _is_open(settings: Mapping[str, Chosen], key: str) -> bool:
    """Whether the run is still to choose the value."""
    return key not in settings or settings[key].value == AUTO


class _Fitted(NamedTuple):
    """The best settings so far."""

    settings: Mapping[str, Chosen]
    found: Found


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the batch of one stage."""

    situation: Situation
    objective: str
    update: str
    quantization: str | None
    strategy: str | None
    passes: Passes

    def fastest(
        self, trials: Sequence[Trial], settings: Mapping[str, Chosen], *, coarse: bool
    ) -> Found:
        """The trial that these settings of the stage get."""
        axes = (self.situation, self.objective, self.update, self.quantization)
        plain = {key: chosen.value for key, chosen in settings.items()}
        pace = pace_by(*axes, self.strategy)

        def cost_of(trial: Trial) -> Estimate:
            values = {**plain, **batch_values(trial)}
            return stage_estimate(*axes, values, self.strategy, self.passes)

        def pace_of(trial: Trial) -> float:
            found = pace({**plain, **batch_values(trial)})
            return usual_pace(trial, int(plain["seq_len"])) if found is None else found

        on_cpu = device(self.situation) == "cpu"
        return fastest_that_fits(
            trials,
            cost_of=cost_of,
            pace_of=pace_of,
            on_cpu=on_cpu,
            trains_all=not methods().update(self.update).is_module,
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


def _micro_batches(objective: str, update: str) -> Sequence[int]:
    """The micro-batch sizes that the methods of a stage accept, largest first."""
    return [
        size for size in MICRO_BATCHES if not refusal(objective, update, "micro_batch_size", size)
    ]


def combine_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for a chain: the worst fit, the highest memory, the sum of time and money."""
    worst = max(
        estimates,
        key=lambda cost: (fit_rank(cost), _need(cost)),
    )
    hours = (
        None
        if any(cost.duration_s is None for cost in estimates)
        else sum(cost.duration_s or 0.0 for cost in estimates)
    )
    usd = (
        None
        if any(cost.cost_usd is None for cost in estimates)
        else sum(cost.cost_usd or 0.0 for cost in estimates)
    )
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
