"""What compositions cost in a situation: each stage with settings that fit, under the strategy of
the GPUs that the estimates speak for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from advisor.advice.search.fit import ENOUGH, coarse_fit, combine_estimates, fit_stage
from advisor.advice.search.micro_batches import HARDLY_FASTER, StageCost
from advisor.advice.search.settings import MICRO_BATCHES, StageCase
from advisor.advice.search.strategies import (
    MUCH_FASTER,
    better_of,
    is_better,
    is_link_slow,
    sharded_if_better,
)
from advisor.advice.types import (
    ALONE,
    MEMORY_LEFT,
    NO_CONCESSIONS,
    OFFLOADED,
    ON_EACH,
    SHARDED,
    Chosen,
    Concessions,
    Fitted,
    FittedStage,
    Strategy,
    values_of,
)
from advisor.estimate.types import Estimate
from advisor.methods import objective, update
from advisor.methods.composition import Composition
from advisor.methods.strategies import refused_by
from advisor.ruleset.model import Ruleset
from advisor.situation.types import Situation

if TYPE_CHECKING:
    from advisor.methods.engines import Engine

OVER_BUDGET = "over_budget"
# One GPU may pack its rows where several have too few rows in a step for that: up to so many times
# faster, since half of the tokens of unpacked rows may be padding (docs/gpu.md).
MOST_BY_PACKING = 2.0
# A base in 4 bit has to save so much of the GPU's memory to be worth its lost speed and quality.
LEAST_SAVING = 0.1
OF_4_BIT = 4.5  # bits of a weight in nf4, with its scales


class Costs:
    """What compositions cost in one situation; each stage is fitted once."""

    def __init__(self, ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> None:
        self.ruleset, self.situation, self.facts = ruleset, situation, facts
        self._priced: dict[tuple[Any, ...], Fitted] = {}
        self._stages: dict[tuple[Any, ...], FittedStage] = {}

    def stage(self, composition: Composition, objective: str) -> StageCase:
        """One stage of a composition here."""
        return StageCase(self.ruleset, self.situation, self.facts, composition, objective)

    def cost_of(
        self, composition: Composition, concessions: Concessions = NO_CONCESSIONS
    ) -> Fitted:
        """The stages of a composition with settings that fit, and what they cost together.

        Several GPUs share all stages in one way: one of them alone if it is as fast; else a whole
        model on each if it fits; else one model over all, over a slow link as a last resort.
        """
        key = (composition.encoder, composition.chain, composition.scheme, concessions)
        if key not in self._priced:
            if len(self.situation.hardware.gpus) > 1:
                found = self._on_several(composition, concessions)
            else:
                found = self.fit_under(ALONE, composition, concessions)
            leaves_ours = self._leaves_ours(composition)
            if leaves_ours or (concessions.elsewhere and not found.cost.is_likely):
                found = self._elsewhere(composition, concessions, None if leaves_ours else found)
            if self._reads_part(composition, concessions, found.cost):
                from advisor.advice.search.part_of_data import on_part_of_data  # seldom

                found = on_part_of_data(found, self.facts)
            self._priced[key] = found
        return self._priced[key]

    @property
    def may_go_elsewhere(self) -> bool:
        """Whether rules/tools/engines.yaml may name an engine: it is about mixtures and several
        GPUs.
        """
        model = self.situation.model
        several = len(self.situation.hardware.gpus) > 1
        return model is not None and (several or bool(model.experts))

    def _elsewhere(
        self, composition: Composition, concessions: Concessions, ours: Fitted | None
    ) -> Fitted:
        from advisor.advice.search.elsewhere import fitted_elsewhere  # most answers are ours

        def fit_under(strategy: Strategy, engine: Engine) -> Fitted:
            return self.fit_under(strategy, composition, concessions, engine)

        found = None
        if not composition.encoder:
            offload = concessions.offload
            found = fitted_elsewhere(composition, self.situation, fit_under, ours, offload=offload)
        return found or ours or self.fit_under(ALONE, composition, concessions)

    def _leaves_ours(self, composition: Composition) -> bool:
        """Whether the bundled trainers are not taken on this device, whatever fits."""
        hardware = self.situation.hardware
        on_apple = hardware.kind == "mps" and composition.quantization is not None
        return on_apple or hardware.not_supported is not None

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

    def _on_several(self, composition: Composition, concessions: Concessions) -> Fitted:
        """Under the best strategy; one is estimated only if those before leave it open."""
        whole = self.fit_under(ON_EACH, composition, concessions)
        if whole.cost.fits in ENOUGH and whole.cost.step_s is None:
            return whole
        best, slack = whole, HARDLY_FASTER
        if not all(one.stage.packing for one in whole.stages):
            slack *= MOST_BY_PACKING
        if whole.cost.fits not in ENOUGH or self._fewer.may_be_within(slack, composition, whole):
            best = better_of(self._fewer.cost_of(composition, concessions), whole)
        if self.refuses_to_shard(composition) or not self._is_worth_sharding(composition, best):
            return best
        best = sharded_if_better(best, self.fit_under(SHARDED, composition, concessions))
        if best.cost.is_likely or not concessions.offload:
            return best
        offloaded = self.fit_under(OFFLOADED, composition, concessions)
        return offloaded if is_better(offloaded.cost, best.cost) else best

    def ways_of(
        self, composition: Composition, concessions: Concessions = NO_CONCESSIONS
    ) -> tuple[Fitted, ...]:
        """A composition under each strategy of several GPUs, the chosen one first."""
        chosen = self.cost_of(composition, concessions) if composition.chain else None
        if len(self.situation.hardware.gpus) < 2 or chosen is None:
            return ()
        if chosen.stages[0].engine is not None:
            return (chosen,)
        strategies = [ON_EACH]
        if not self.refuses_to_shard(composition):
            strategies.append(SHARDED)
        others = [self.fit_under(one, composition, concessions) for one in strategies]
        others += self._fewer.ways_of(composition, concessions) or [
            self._fewer.cost_of(composition, concessions)
        ]
        unique = {way.name: way for way in others}
        unique.pop(chosen.name, None)
        return (chosen, *unique.values())

    @cached_property
    def _fewer(self) -> Costs:
        """What compositions cost on one of several machines, or on the GPU with the most memory."""
        hardware = self.situation.hardware
        gpus = hardware.gpus[: len(hardware.gpus) // hardware.machines]
        if hardware.machines == 1:
            gpus = (max(gpus, key=lambda gpu: gpu.memory_total_bytes or 0),)
        fewer = replace(hardware, gpus=gpus, machines=1)
        return Costs(self.ruleset, replace(self.situation, hardware=fewer), self.facts)

    def refuses_to_shard(self, composition: Composition) -> bool:
        """Whether a stage is of a kind that cannot be sharded."""
        stages = (self.stage(composition, name) for name in composition.chain)
        return any(refused_by(SHARDED.name, stage.axes) for stage in stages)

    def _is_worth_sharding(self, composition: Composition, best: Fitted) -> bool:
        """Whether a sharded model is to be estimated beside the best of those on single GPUs."""
        if not best.cost.is_likely:
            return True
        if is_link_slow(self.situation.hardware):
            return False
        tight = best.cost.fits != "fits" or best.is_eased
        return tight or self.may_be_within(1 / MUCH_FASTER, composition, best, SHARDED)

    def may_be_within(
        self,
        times: float,
        composition: Composition,
        other: Fitted,
        strategy: Strategy | None = None,
    ) -> bool:
        """Whether these GPUs may take so many times as long, by speeds without memory."""
        cards, took, takes = max(1, len(self.situation.hardware.gpus)), 0.0, 0.0
        sharding = (strategy or (ON_EACH if cards > 1 else ALONE)).name
        for stage in other.stages:
            each = min(MICRO_BATCHES[0], max(1, stage.rows_per_step // cards))
            plain = values_of(stage.reasons) | {"sharding": sharding}
            batch = {"micro_batch_size": each, "grad_accum": 1, "gradient_checkpointing": False}
            pace = StageCost(self.stage(composition, stage.stage.objective), plain).row_s(batch)
            if pace is None or stage.cost.step_s is None:
                return False
            took += stage.cost.step_s
            takes += pace * stage.rows_per_step / cards
        return takes <= times * took

    def fit_under(
        self,
        strategy: Strategy,
        composition: Composition,
        concessions: Concessions = NO_CONCESSIONS,
        engine: Engine | None = None,
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
                    engine=engine,
                )
                for name in composition.chain
            )
            fitted = tuple(self._fit_once(stage, lead) for stage in stages)
            found = Fitted(fitted, combine_estimates([one.cost for one in fitted]))
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

    def _fit_once(self, stage: StageCase, lead: str) -> FittedStage:
        composition, concessions = stage.composition, stage.concessions
        form = (composition.encoder, composition.scheme, lead if stage.module else "")
        given_up = (concessions.least_module, concessions.shorter, concessions.smallest_batch)
        engine = stage.engine and stage.engine.id
        key = (stage.objective, *form, stage.strategy, engine, stage.memory_left, *given_up)
        if key not in self._stages:
            self._stages[key] = fit_stage(stage)
        return self._stages[key]

    def coarse_fit(
        self, composition: Composition, concessions: Concessions = NO_CONCESSIONS
    ) -> str:
        """The coarse fact; `split` for a module whose base could be quantised instead."""
        stages, cost = self.cost_of(composition, concessions)
        fit = coarse_fit(cost, self.facts, may_not_fit=concessions.may_not_fit)
        offloads = any(stage.offloads for stage in stages)
        if not update(composition.update or "lora").is_module:
            return fit
        if fit not in ("fits", "tight"):
            return "split" if offloads and fit == "unknown" else fit
        if fit == "fits" and self._attempts_need_more(composition, cost):
            fit = "tight"
        if composition.quantization and self._saves_little(composition, concessions, cost):
            return "no_gain"
        is_slow = offloads or is_link_slow(self.situation.hardware)
        return "split" if is_slow and any(stage.is_sharded for stage in stages) else fit

    def _attempts_need_more(self, composition: Composition, cost: Estimate) -> bool:
        """Whether one GPU does not hold the engine that generates answers, with weights of its own,
        beside the training.
        """
        model, limit = self.situation.model, cost.limit_bytes
        if len(self.situation.hardware.gpus) != 1 or model is None or limit is None:
            return False
        generates = any(objective(name).generates for name in composition.chain)
        bits = OF_4_BIT if composition.quantization else 16
        return generates and (cost.least_bytes or 0) + model.params * bits / 8 > limit

    def _saves_little(
        self, composition: Composition, concessions: Concessions, cost: Estimate
    ) -> bool:
        """Whether the same on a base in 16 bit fits, and needs hardly more of the GPU's memory."""
        plain = replace(composition, quantization=None)
        if self.coarse_fit(plain, concessions) not in ("fits", "tight"):
            return False
        whole = self.cost_of(plain, concessions).cost
        saved = (whole.least_bytes or 0) - (cost.least_bytes or 0)
        return saved < LEAST_SAVING * (cost.limit_bytes or 0)


def _has_one_module(composition: Composition, found: Fitted) -> bool:
    key = update(composition.update or "lora").size_key
    sizes = {
        stage.reasons[key].value
        for stage in found.stages
        if key in stage.reasons and not objective(stage.stage.objective).scores
    }
    return len(sizes) < 2
