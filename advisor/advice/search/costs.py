"""What compositions cost in a situation: each stage with settings that fit, under the strategy of
the GPUs that the estimates speak for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from advisor.advice.search.concessions import (
    MEMORY_LEFT,
    NO_CONCESSIONS,
    Concessions,
    on_part_of_data,
)
from advisor.advice.search.fit import ENOUGH, coarse_fit, combine_estimates, fit_stage
from advisor.advice.search.micro_batches import HARDLY_FASTER
from advisor.advice.search.settings import MICRO_BATCHES, StageCase
from advisor.advice.search.stage_cost import pace_of_row
from advisor.advice.search.strategies import (
    MUCH_FASTER,
    better_of,
    fewer_of,
    is_better,
    is_link_slow,
    sharded_if_better,
)
from advisor.advice.types import (
    ALONE,
    OFFLOADED,
    ON_EACH,
    SHARDED,
    Chosen,
    Fitted,
    StageSettings,
    Strategy,
    values_of,
)
from advisor.estimate.types import Estimate
from advisor.methods import objective, schemes, update
from advisor.methods.composition import Composition, compose
from advisor.methods.strategies import refused_by
from advisor.ruleset.model import Ruleset
from advisor.situation.types import Situation

OVER_BUDGET = "over_budget"
# One GPU may pack its rows where several have too few rows in a step for that: up to so many times
# faster, since half of the tokens of unpacked rows may be padding (docs/batching.md).
MOST_BY_PACKING = 2.0


class Costs:
    """What compositions cost in one situation; each stage is fitted once."""

    def __init__(self, ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> None:
        self.ruleset, self.situation, self.facts = ruleset, situation, facts
        self._priced: dict[tuple[Any, ...], Fitted] = {}
        self._stages: dict[tuple[Any, ...], tuple[StageSettings, Estimate]] = {}
        # A limit of money or time is judged by the fastest settings that fit, memory alone is not.
        self._memory_decides = facts.get("budget_usd") is None and facts.get("budget_hours") is None

    def stage(self, composition: Composition, objective: str) -> StageCase:
        """One stage of a composition here."""
        return StageCase(self.ruleset, self.situation, self.facts, composition, objective)

    def cost_of(
        self,
        composition: Composition,
        concessions: Concessions = NO_CONCESSIONS,
        *,
        coarse: bool = False,
    ) -> Fitted:
        """The stages of a composition with settings that fit, and what they cost together.

        Several GPUs share all stages in one way: one of them alone if it is as fast; else a whole
        model on each if it fits; else one model over all, over a slow link as a last resort.

        Args:
            coarse: Only whether it fits is asked for, which the smallest batch tells.
        """
        key = (composition.encoder, composition.chain, composition.scheme, concessions)
        coarse = coarse and self._memory_decides and (*key, False) not in self._priced
        if (*key, coarse) not in self._priced:
            if len(self.situation.hardware.gpus) > 1:
                found = self._on_several(composition, concessions, coarse=coarse)
            else:
                found = self.fit_under(ALONE, composition, concessions, coarse=coarse)
            if self._reads_part(composition, concessions, found.cost):
                found = on_part_of_data(found, self.facts)
            self._priced[*key, coarse] = found
        return self._priced[*key, coarse]

    def _reads_part(
        self, composition: Composition, concessions: Concessions, cost: Estimate
    ) -> bool:
        """Whether a part of the data is conceded to a limit that all of it would break."""
        is_module = update(composition.update or "lora").is_module
        if concessions.part != "all" and not (concessions.part == "modules" and is_module):
            return False
        one_file = len(self.situation.tasks) < 2  # `max_steps` counts for each task alike
        fit = coarse_fit(cost, self.facts, may_not_fit=concessions.may_not_fit)
        return one_file and fit == OVER_BUDGET

    def _on_several(
        self, composition: Composition, concessions: Concessions, *, coarse: bool
    ) -> Fitted:
        """Under the best strategy; one is estimated only if those before leave it open."""
        whole = self.fit_under(ON_EACH, composition, concessions, coarse=coarse)
        fits = whole.cost.fits in ENOUGH
        if fits and (coarse or whole.cost.step_s is None):
            return whole
        best = whole
        slack = HARDLY_FASTER if _is_packed(whole) else HARDLY_FASTER * MOST_BY_PACKING
        if not fits or self._fewer.may_be_within(slack, composition, whole):
            best = better_of(self._fewer.cost_of(composition, concessions, coarse=coarse), whole)
        if self.refuses_to_shard(composition) or not self._is_worth_sharding(composition, best):
            return best
        sharded = self.fit_under(SHARDED, composition, concessions, coarse=coarse)
        best = sharded_if_better(best, sharded)
        if best.cost.is_likely or not concessions.offload:
            return best
        offloaded = self.fit_under(OFFLOADED, composition, concessions, coarse=coarse)
        return offloaded if is_better(offloaded.cost, best.cost) else best

    def ways_of(
        self, composition: Composition, concessions: Concessions = NO_CONCESSIONS
    ) -> tuple[Fitted, ...]:
        """A composition under each strategy of several GPUs, the chosen one first."""
        if len(self.situation.hardware.gpus) < 2 or not composition.chain:
            return ()
        strategies = [ON_EACH]
        if not self.refuses_to_shard(composition):
            strategies.append(SHARDED)
        others = [self.fit_under(one, composition, concessions) for one in strategies]
        others += self._fewer.ways_of(composition, concessions) or [
            self._fewer.cost_of(composition, concessions)
        ]
        chosen = self.cost_of(composition, concessions)
        unique = {way.name: way for way in others}
        unique.pop(chosen.name, None)
        return (chosen, *unique.values())

    @cached_property
    def _fewer(self) -> Costs:
        """What compositions cost on one of several machines, or on one of several GPUs."""
        hardware = fewer_of(self.situation.hardware)
        return Costs(self.ruleset, replace(self.situation, hardware=hardware), self.facts)

    def refuses_to_shard(self, composition: Composition) -> bool:
        """Whether a stage is of a kind that cannot be sharded."""
        stages = (self.stage(composition, name) for name in composition.chain)
        return any(refused_by(SHARDED.name, stage.axes) for stage in stages)

    def _is_worth_sharding(self, composition: Composition, whole: Fitted) -> bool:
        """Whether a sharded model is to be estimated beside the best of those on single GPUs."""
        if not whole.cost.is_likely:
            return True
        if is_link_slow(self.situation.hardware):
            return False
        tight = whole.cost.fits != "fits" or whole.is_eased
        return tight or self.may_be_within(1 / MUCH_FASTER, composition, whole, SHARDED)

    def may_be_within(
        self,
        times: float,
        composition: Composition,
        other: Fitted,
        strategy: Strategy | None = None,
    ) -> bool:
        """Whether these GPUs may take so many times as long, by speeds without memory."""
        cards = max(1, len(self.situation.hardware.gpus))
        strategy = strategy or (ON_EACH if cards > 1 else ALONE)
        took, takes = 0.0, 0.0
        for stage in other.stages:
            each = min(MICRO_BATCHES[0], max(1, stage.rows_per_step // cards))
            plain = values_of(stage.settings) | {"sharding": strategy.name}
            plain |= {"micro_batch_size": each, "grad_accum": 1, "gradient_checkpointing": False}
            pace = pace_of_row(self.stage(composition, stage.objective), plain)
            if pace is None or stage.step_s is None:
                return False
            took += stage.step_s
            takes += pace * stage.rows_per_step / cards
        return takes <= times * took

    def fit_under(
        self,
        strategy: Strategy,
        composition: Composition,
        concessions: Concessions = NO_CONCESSIONS,
        *,
        coarse: bool = False,
    ) -> Fitted:
        """A composition under one strategy; stages of one module have it in one size."""
        best: Fitted | None = None
        before: Mapping[str, Chosen] = {}
        end = len(MEMORY_LEFT) - (not concessions.least_module)
        for level in MEMORY_LEFT[:end]:
            lead, module = self._shared_module(composition, level)
            if best is not None and module == before:
                break
            before = module
            stages = tuple(
                replace(
                    self.stage(composition, name),
                    strategy=strategy,
                    concessions=concessions,
                    memory_left=level if lead else MEMORY_LEFT[0],
                    module={} if objective(name).scores or name == lead else module,
                )
                for name in composition.chain
            )
            fitted = [self._fit_once(stage, lead, coarse=coarse) for stage in stages]
            found = Fitted(
                tuple(stage for stage, _ in fitted), combine_estimates([cost for _, cost in fitted])
            )
            if _has_one_module(composition, found) and (
                best is None or is_better(found.cost, best.cost)
            ):
                best = found
            if not lead or (best is not None and best.cost.fits in ENOUGH):
                break
        assert best is not None  # at the last level every stage has the same module
        return best

    def _shared_module(
        self, composition: Composition, memory_left: str
    ) -> tuple[str, Mapping[str, Chosen]]:
        """(the stage whose module all train, its keys); ("", {}) if they share none."""
        training = [name for name in composition.chain if not objective(name).scores]
        how = update(composition.update or "lora")
        if not how.size_key or len(training) < 2:
            return "", {}
        wanted = {name: self.stage(composition, name).settings(memory_left) for name in training}
        size = how.size_key
        lead = max(
            training, key=lambda name: wanted[name][size].value if size in wanted[name] else 0
        )
        because = f"one module goes through all stages, in the form that {lead} asks for"
        return lead, {
            name: replace(chosen, because=f"{because}: {chosen.because}")
            for name, chosen in wanted[lead].items()
            if name in how.keys
        }

    def _fit_once(
        self, stage: StageCase, lead: str, *, coarse: bool
    ) -> tuple[StageSettings, Estimate]:
        """The stage with settings that fit; a full search serves a coarse question, too."""
        composition, concessions = stage.composition, stage.concessions
        form = (composition.encoder, composition.scheme, lead if stage.module else "")
        given_up = (stage.memory_left, concessions.least_module, concessions.shorter)
        key = (stage.objective, *form, stage.strategy, *given_up)
        coarse = coarse and (*key, False) not in self._stages
        if (*key, coarse) not in self._stages:
            self._stages[*key, coarse] = fit_stage(stage, coarse=coarse)
        return self._stages[*key, coarse]

    def coarse_fits(self, chain: str, concessions: Concessions = NO_CONCESSIONS) -> dict[str, str]:
        """scheme -> the coarse fact that rules see."""
        return {one: self._coarse_fit(compose(chain, one), concessions) for one in schemes()}

    def _coarse_fit(self, composition: Composition, concessions: Concessions) -> str:
        """The coarse fact; `split` for a module whose base could be quantised instead."""
        stages, cost = self.cost_of(composition, concessions, coarse=True)
        fit = coarse_fit(cost, self.facts, may_not_fit=concessions.may_not_fit)
        if fit not in ("fits", "tight") or not update(composition.update or "lora").is_module:
            return fit
        offloads = any("offload" in stage.settings for stage in stages)
        is_slow = offloads or is_link_slow(self.situation.hardware)
        return "split" if is_slow and any(stage.is_sharded for stage in stages) else fit


def _is_packed(found: Fitted) -> bool:
    """Whether every stage packs its rows."""
    packed = (stage.settings.get("packing") for stage in found.stages)
    return all(one is not None and bool(one.value) for one in packed)


def _has_one_module(composition: Composition, found: Fitted) -> bool:
    """Whether all stages that train the same module have it in one size."""
    key = update(composition.update or "lora").size_key
    sizes = {
        stage.settings[key].value
        for stage in found.stages
        if key in stage.settings and not objective(stage.objective).scores
    }
    return len(sizes) < 2
