"""One question as one value: the situation, what rules see of it, the rules, and what things cost.

Built once at the start of `advise`, and again for every what-if, so that facts and costs are made
in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from advisor.advice.decide import (
    MEMORY_EASINGS,
    NO_EASING,
    SMALLER_MODEL,
    Decision,
    Easing,
    conclude,
    conclude_early,
)
from advisor.advice.explain import Sizes
from advisor.advice.facts_of_situation import (
    device,
    situation_facts,
    suggestion_counts,
    with_suggested_model,
)
from advisor.advice.search.concessions import part_of
from advisor.advice.search.fit import (
    Ease,
    coarse_fit,
    combine_estimates,
    fit_stage,
    is_better,
)
from advisor.advice.search.micro_batches import HARDLY_FASTER, MICRO_BATCHES
from advisor.advice.search.settings import StageCase
from advisor.advice.search.stage_cost import pace_by
from advisor.advice.search.strategies import is_link_slow, sharing_axes
from advisor.advice.search.ways import MUCH_FASTER, Priced, better_sharded, better_way, way_of
from advisor.advice.types import Chosen, StageSettings, Way
from advisor.estimate.types import Estimate
from advisor.ground.types import Answer, Answers, Hardware
from advisor.methods import objective, schemes, update
from advisor.methods.composition import Composition, compose
from advisor.methods.strategies import ALONE, OFFLOADED, ON_EACH, SHARDED, Sharing, refused_by
from advisor.ruleset.model import Ruleset
from advisor.situation.types import Situation, Suggested, suggesting

CPU_SUGGESTED_PARAMS = 700_000_000  # what a processor trains in hours rather than days
NONE_FITS = "; by the upper end of the estimate not even this one, the smallest, is sure to fit"
OVER_BUDGET = "over_budget"
# One GPU may pack its rows where several have too few rows in a step for that: up to so many times
# faster, since half of the tokens of unpacked rows may be padding (docs/batching.md).
MOST_BY_PACKING = 2.0


class Costs:
    """What compositions cost in one situation.

    Stages are fitted once each, however many chains share them.
    """

    def __init__(self, ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> None:
        self.ruleset, self.situation, self.facts = ruleset, situation, facts
        self._priced: dict[tuple[Any, ...], Priced] = {}
        self._coarse: dict[tuple[Any, ...], Priced] = {}
        self._known: dict[tuple[Any, ...], tuple[StageSettings, Estimate]] = {}
        # A limit of money or time is judged by the fastest settings that fit, memory alone is not.
        self._memory_decides = facts.get("budget_usd") is None and facts.get("budget_hours") is None

    def stage(self, composition: Composition, objective: str) -> StageCase:
        """One stage of a composition here."""
        return StageCase(self.ruleset, self.situation, self.facts, composition, objective)

    def cost_of(
        self, composition: Composition, easing: Easing = NO_EASING, *, coarse: bool = False
    ) -> Priced:
        """The stages of a composition with settings that fit, and what they cost together.

        Several GPUs share all stages of a plan in one way: one of them alone if it is as fast; else
        a whole model on each if it fits there; else one model over all. Over a slow link that is
        for what fits in no other way.

        Args:
            coarse: Only whether it fits is asked for, which the smallest batch tells.
        """
        key = (composition.encoder, composition.chain, composition.scheme, easing)
        if coarse and self._memory_decides and key not in self._priced:
            if key not in self._coarse:
                self._coarse[key] = self._cost_of(composition, easing, coarse=True)
            return self._coarse[key]
        if key not in self._priced:
            self._priced[key] = self._cost_of(composition, easing, coarse=False)
        return self._priced[key]

    def _cost_of(self, composition: Composition, easing: Easing, *, coarse: bool) -> Priced:
        if len(self.situation.hardware.gpus) < 2:
            stages, cost = self.cost_with_sharing(composition, ALONE, easing, coarse=coarse)
        else:
            stages, cost = self._on_several(composition, easing, coarse=coarse)
        is_module = update(composition.update or "lora").is_module
        may_be_part = easing.part == "all" or (easing.part == "modules" and is_module)
        one_file = len(self.situation.tasks) < 2  # `max_steps` counts for each task alike
        fit = coarse_fit(cost, self.facts, near=easing.near)
        if may_be_part and one_file and fit == OVER_BUDGET:
            return part_of(stages, cost, self.facts)
        return stages, cost

    def _on_several(self, composition: Composition, easing: Easing, *, coarse: bool) -> Priced:
        """The way of sharing that the estimates speak for: each further one is estimated only where
        those before leave it open.
        """
        whole = self.cost_with_sharing(composition, ON_EACH, easing, coarse=coarse)
        fits = whole[1].fits in ("fits", "unknown")
        if fits and (coarse or whole[1].step_s is None):
            return whole
        best = whole
        slack = HARDLY_FASTER if _is_packed(whole) else HARDLY_FASTER * MOST_BY_PACKING
        if not fits or self._fewer.could_be(composition, whole, slack):
            best = better_way(self._fewer.cost_of(composition, easing, coarse=coarse), whole)
        if self.refuses_to_shard(composition) or not self._is_worth_sharding(composition, best):
            return best
        sharded = self.cost_with_sharing(composition, SHARDED, easing, coarse=coarse)
        best = better_sharded(best, sharded)
        if best[1].is_likely or not easing.offload:
            return best
        offloaded = self.cost_with_sharing(composition, OFFLOADED, easing, coarse=coarse)
        return offloaded if is_better(offloaded[1], best[1]) else best

    def ways_of(self, composition: Composition, easing: Easing) -> tuple[Way, ...]:
        """The ways of sharing that there are for a composition, with the chosen one first; none for
        one device.
        """
        hardware = self.situation.hardware
        if len(hardware.gpus) < 2 or not composition.chain:
            return ()
        chosen = way_of(self.cost_of(composition, easing), is_chosen=True)
        found = [self.cost_with_sharing(composition, ON_EACH, easing)]
        if not self.refuses_to_shard(composition):
            found.append(self.cost_with_sharing(composition, SHARDED, easing))
        others = [way_of(priced, is_chosen=False) for priced in found]
        others += self._fewer.ways_of(composition, easing) or [
            way_of(self._fewer.cost_of(composition, easing), is_chosen=False)
        ]
        unique = {way.name: replace(way, is_chosen=False) for way in others}
        unique.pop(chosen.name, None)
        return (chosen, *unique.values())

    @cached_property
    def _fewer(self) -> Costs:
        """What compositions cost on one of several machines, or on one of several GPUs."""
        hardware = fewer_of(self.situation.hardware)
        return Costs(self.ruleset, replace(self.situation, hardware=hardware), self.facts)

    def refuses_to_shard(self, composition: Composition) -> bool:
        """Whether a stage is of a kind that cannot be sharded."""
        axes = sharing_axes(self.situation, composition)
        return any(
            refused_by(SHARDED.strategy, {**axes, "objective": name}) for name in composition.chain
        )

    def _is_worth_sharding(self, composition: Composition, whole: Priced) -> bool:
        """Whether a sharded model is to be estimated beside the best of those on single GPUs."""
        if not whole[1].is_likely:
            return True
        if is_link_slow(self.situation.hardware):
            return False
        tight = whole[1].fits != "fits" or any(stage.is_eased for stage in whole[0])
        return tight or self.could_be(composition, whole, 1 / MUCH_FASTER, SHARDED)

    def could_be(
        self,
        composition: Composition,
        other: Priced,
        times: float,
        sharing: Sharing | None = None,
    ) -> bool:
        """Whether these GPUs could do the steps of another way in so many times its duration, as
        far as speeds tell without memory: with all rows of a GPU at once.
        """
        cards = max(1, len(self.situation.hardware.gpus))
        strategy = (sharing or (ON_EACH if cards > 1 else ALONE)).strategy
        took, takes = 0.0, 0.0
        for stage in other[0]:
            each = min(MICRO_BATCHES[0], max(1, stage.rows_per_step // cards))
            plain = {key: chosen.value for key, chosen in stage.settings.items()}
            plain |= {"micro_batch_size": each, "grad_accum": 1, "gradient_checkpointing": False}
            pace = pace_by(self.stage(composition, stage.objective), strategy)(plain)
            if pace is None or stage.step_s is None:
                return False
            took += stage.step_s
            takes += pace * stage.rows_per_step / cards
        return takes <= times * took

    def cost_with_sharing(
        self,
        composition: Composition,
        sharing: Sharing,
        easing: Easing = NO_EASING,
        *,
        coarse: bool = False,
    ) -> Priced:
        """The same under one way of sharing the work.

        Where memory is short a stage takes a smaller module: then all stages that train it do.
        """
        best: Priced | None = None
        before: Mapping[str, Chosen] = {}
        usual = Ease(last_resort=easing.last_resort, shorter=easing.shorter)
        for level in usual.levels(is_module=True):
            lead, module = self._shared_module(composition, level)
            if best is not None and module == before:
                break
            before = module
            ease = replace(usual, memory_left=level) if lead else usual
            found = [
                self._stage(composition, name, sharing, lead, module, ease, coarse=coarse)
                for name in composition.chain
            ]
            stages = tuple(stage for stage, _ in found)
            cost = combine_estimates([cost for _, cost in found])
            if _has_one_module(composition, stages) and (best is None or is_better(cost, best[1])):
                best = stages, cost
            if not lead or (best is not None and best[1].fits in ("fits", "unknown")):
                break
        assert best is not None  # at the last level every stage has the same module
        return best

    def _shared_module(
        self, composition: Composition, memory_left: str
    ) -> tuple[str, Mapping[str, Chosen]]:
        """Stages that train one module in turn have one form of it: the largest that any of them
        asks for, and whose it is.
        """
        sharing = [name for name in composition.chain if not objective(name).scores]
        how = update(composition.update or "lora")
        if not how.size_key or len(sharing) < 2:
            return "", {}
        wanted = {name: self.stage(composition, name).settings(memory_left) for name in sharing}
        size = how.size_key
        lead = max(
            sharing, key=lambda name: wanted[name][size].value if size in wanted[name] else 0
        )
        because = f"one module goes through all stages, in the form that {lead} asks for"
        return lead, {
            name: replace(chosen, because=f"{because}: {chosen.because}")
            for name, chosen in wanted[lead].items()
            if name in how.keys
        }

    def _stage(
        self,
        composition: Composition,
        name: str,
        sharing: Sharing,
        lead: str,
        shared: Mapping[str, Chosen],
        ease: Ease,
        *,
        coarse: bool,
    ) -> tuple[StageSettings, Estimate]:
        shared = {} if objective(name).scores or name == lead else shared
        form = f"{composition.encoder}+{composition.scheme}+{lead if shared else ''}"
        key = (name, form, sharing, ease)
        if coarse and (found := self._known.get((*key, False))) is not None:
            return found
        if (*key, coarse) not in self._known:
            case = self.stage(composition, name)
            self._known[*key, coarse] = fit_stage(case, sharing, shared, ease, coarse=coarse)
        return self._known[*key, coarse]

    def coarse_fits(
        self,
        chain: str,
        *,
        per_task: bool,
        facts: Mapping[str, Any] | None = None,
        easing: Easing = NO_EASING,
    ) -> dict[str, str]:
        """scheme -> the coarse fact that rules see.

        That a model fits which nobody named is a known fact once hardware and data are known; that
        it does not is always one, since the plan would run into it.

        Args:
            facts: What is known, where that is more than the costs were reckoned with.
        """
        found = {
            scheme: self._coarse_fit(compose(chain, scheme, per_task=per_task), easing)
            for scheme in schemes()
        }
        known = self.facts if facts is None else facts
        if self.situation.suggestion is None or suggestion_counts(self.situation, known):
            return found
        return {
            scheme: fit if fit in ("too_big", "over_budget") else "unknown"
            for scheme, fit in found.items()
        }

    def _coarse_fit(self, composition: Composition, easing: Easing) -> str:
        """The coarse fact. A module whose base is split over a slow link says so: the base can be
        quantised instead, and each GPU then holds all of it.
        """
        stages, cost = self.cost_of(composition, easing, coarse=True)
        fit = coarse_fit(cost, self.facts, near=easing.near)
        is_split = any(stage.is_sharded for stage in stages) and (
            is_link_slow(self.situation.hardware)
            or any("offload" in stage.settings for stage in stages)
        )
        is_module = update(composition.update or "lora").is_module
        return "split" if fit in ("fits", "tight") and is_module and is_split else fit


def _is_worth_a_part(found: Decision, on_part: Decision) -> bool:
    """Whether a part of the data is trained on, rather than what stays within the limit.

    A module is worth it where training all weights would be cheaper, since a model without a module
    writes answers faster; one that can be merged, where an extra layer or a prefix would be: more
    money would lead there anyway.
    """
    if SMALLER_MODEL in (found.facts["scheme"], on_part.facts["scheme"]):
        return found.nothing_fits and not on_part.nothing_fits
    now, then = (
        update(one.candidate(str(one.facts["scheme"])).update or "lora") for one in (found, on_part)
    )
    if not now.is_module:
        return then.is_module
    return then.merges and not now.merges and now.size_key != ""


def _is_packed(priced: Priced) -> bool:
    """Whether every stage packs its rows."""
    packed = (stage.settings.get("packing") for stage in priced[0])
    return all(one is not None and bool(one.value) for one in packed)


def _has_one_module(composition: Composition, stages: tuple[StageSettings, ...]) -> bool:
    """Whether all stages that train the same module have it in one size."""
    key = update(composition.update or "lora").size_key
    sizes = {
        stage.settings[key].value
        for stage in stages
        if key in stage.settings and not objective(stage.objective).scores
    }
    return len(sizes) < 2


@dataclass(frozen=True, eq=False)
class Case:
    """A situation under a set of rules."""

    ruleset: Ruleset
    situation: Situation
    facts: Mapping[str, Any]  # what is known before anything is concluded or estimated
    costs: Costs
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the facts of the situation
    # Of each model that could be suggested, by its id; shared by a case and its what-ifs.
    known_costs: dict[str, Costs] = field(default_factory=dict)
    easing: Easing = NO_EASING  # what has to be given up

    @classmethod
    def build(
        cls, situation: Situation, ruleset: Ruleset, changes: Mapping[str, Any] | None = None
    ) -> Case:
        """The case of a situation as it is; a change to None takes a fact away."""
        facts = facts_with(situation, changes or {})
        return cls(ruleset, situation, facts, Costs(ruleset, situation, facts), changes or {})

    def with_suggestion(self) -> Case:
        """The case with the model to suggest where none was named: the largest that is trained on
        its 16-bit weights within the memory by the upper end of the estimate; else the largest
        that fits so in 4 bit; else the smallest. Small encoders take its place where texts are
        only sorted.
        """
        situation = self.situation
        if situation.suggestion is None:
            return self
        if situation.encoder is not None and self._sorts_alone:
            return self._suggesting(situation.encoder)
        suggested = situation.suggested
        if device(situation) == "cpu":
            small = [one for one in suggested if one.shape.params <= CPU_SUGGESTED_PARAMS]
            suggested = tuple(small) or suggested[-1:]
        cases = [self._suggesting(one) for one in suggested]
        for case in cases:
            if case._counts and not case._holds(str(case._early.facts["chain"]), "lora"):
                continue  # nothing on 16-bit weights needs less: no other scheme has to be tried
            room = case._room()
            if room == "fits" or (room == "fits in 4 bit" and not case._counts):
                return case
        for case in cases:
            if case._room() == "fits in 4 bit":
                return case
        last = suggested[-1]
        because = f"{last.suggestion.because}{NONE_FITS}"
        return self._suggesting(replace(last, suggestion=replace(last.suggestion, because=because)))

    def _suggesting(self, one: Suggested) -> Case:
        situation = suggesting(self.situation, one)
        if one.shape.id not in self.known_costs:
            facts = facts_with(situation, {})
            self.known_costs[one.shape.id] = Costs(self.ruleset, situation, facts)
        return replace(
            self,
            situation=situation,
            facts=facts_with(situation, self.changes),
            costs=self.known_costs[one.shape.id],
        )

    @property
    def _counts(self) -> bool:
        return suggestion_counts(self.situation, self.facts)

    def _room(self) -> str:
        """Whether what is decided fits by the upper end of its estimate: 'fits', 'fits in 4 bit' or
        'does not fit'.
        """
        decision = self.decide()
        if decision.nothing_fits or decision.easing.last_resort:
            return "does not fit"
        # Where nothing is trained the model is the one that could be.
        wanted = (
            [decision.composition]
            if decision.trains
            else [decision.candidate(scheme) for scheme in ("lora", "qlora")]
        )
        for composition in wanted:
            if self._holds(decision.chain, str(composition.scheme)):
                return "fits" if composition.quantization is None else "fits in 4 bit"
        return "does not fit"

    def _holds(self, chain: str, scheme: str) -> bool:
        """Whether a scheme fits by the upper end of its estimate; True where that is not known."""
        cost = self.costs.cost_of(compose(chain, scheme))[1]
        memory, limit = cost.memory, cost.limit_bytes
        return memory is None or limit is None or memory.need_high_bytes <= limit

    def under(self, ruleset: Ruleset) -> Case:
        """The same facts at the same costs under other rules."""
        return replace(self, ruleset=ruleset)

    def with_answers(self, changes: Mapping[str, Any]) -> Case:
        """The same with some answers changed, and with the model that is suggested then; what
        things cost stays as it is.
        """
        every = {**self.changes, **changes}
        if self.situation.suggestion is None or "params_b" in changes:
            return replace(self, facts={**self.facts, **changes}, changes=every)
        changed = replace(self, facts=facts_with(self.situation, every), changes=every)
        # The same stages need the same memory, so that no larger model fits than before.
        same = (
            changed._sorts_alone == self._sorts_alone
            and changed._stages == self._stages
            and changed._room() == self._room()
        )
        return changed if same else changed.with_suggestion()

    def restated(self, changes: Mapping[str, Any]) -> Case:
        """The case in which a person had stated this, so that costs change with it."""
        known = {
            **self.situation.answers.known,
            **{name: Answer(value=value, origin="asked") for name, value in changes.items()},
        }
        situation = replace(self.situation, answers=Answers(known=known))
        return Case.build(situation, self.ruleset).with_suggestion()

    @cached_property
    def _sorts_alone(self) -> bool:
        """Whether a small encoder does the task, whatever model has been suggested so far."""
        plain = _plain_facts(self.situation, self.changes)
        return conclude_early(self.ruleset, plain).facts.get("architecture") == "encoder"

    @property
    def _stages(self) -> tuple[Any, ...]:
        """What decides how much memory a model needs, before its scheme."""
        names = ("chain", "adapters_per", "architecture")
        return (*(self._early.facts[name] for name in names), self._counts)

    @cached_property
    def _early(self) -> Decision:
        return conclude_early(self.ruleset, self.facts)

    def decide(self) -> Decision:
        """What the tables conclude: first what needs no estimate, then which scheme."""
        return self._decided

    @cached_property
    def _decided(self) -> Decision:
        early = self._early
        per_task, chain = early.facts["adapters_per"] == "task", str(early.facts["chain"])

        def decided(easing: Easing) -> Decision:
            fits = self.costs.coarse_fits(chain, per_task=per_task, facts=self.facts, easing=easing)
            return replace(conclude(self.ruleset, early, fits), easing=easing)

        stuck: Decision | None = None
        alone = len(self.situation.hardware.gpus) < 2  # nothing is sharded, and so not offloaded
        easings = (replace(one, offload=one.offload and not alone) for one in MEMORY_EASINGS)
        for easing in dict.fromkeys(easings):
            found = decided(easing)
            stuck = stuck or found
            if OVER_BUDGET in found.fits:
                for part in ("modules", "all"):
                    on_part = decided(replace(easing, part=part))
                    if _is_worth_a_part(found, on_part):
                        return on_part
                return found
            if not found.nothing_fits:
                return found
        assert stuck is not None  # there is an easing at least: none
        return stuck

    def eased(self, decision: Decision) -> Case:
        """The case in which things cost what they do once the decision gives up what it has to."""
        return replace(self, easing=decision.easing)

    def cost_of(self, composition: Composition) -> Priced:
        """The stages of a composition with settings that fit, and what they cost together."""
        return self.costs.cost_of(composition, self.easing)

    def ways_of(self, composition: Composition) -> tuple[Way, ...]:
        """How several GPUs can share a composition, the chosen way first; none for one device."""
        return self.costs.ways_of(composition, self.easing)

    def sizes(self, decision: Decision) -> Sizes:
        """scheme -> its estimate on the chain that was concluded: the numbers of the reasons."""
        return {scheme: self.cost_of(decision.candidate(scheme))[1] for scheme in schemes()}


def _plain_facts(situation: Situation, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is known without the suggested model."""
    found = {**situation_facts(situation), **changes}
    return {key: value for key, value in found.items() if value is not None}


def facts_with(situation: Situation, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What rules see of a situation with some facts changed; a change to None takes one away."""
    return with_suggested_model(situation, _plain_facts(situation, changes))


def fewer_of(hardware: Hardware) -> Hardware:
    """One of several machines; of one machine one of its GPUs, that with the most memory."""
    if hardware.machines > 1:
        count = len(hardware.gpus) // hardware.machines
        return replace(hardware, gpus=hardware.gpus[:count], machines=1)
    return replace(
        hardware, gpus=(max(hardware.gpus, key=lambda gpu: gpu.memory_total_bytes or 0),)
    )
