"""One question as one value: the situation, what rules see of it, the rules, and what things cost.
And what the rules conclude: their tables in order, each concluding a fact that later ones see.

A case is built once at the start of `advise`, and again for every what-if, so that facts and costs
are made in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import product
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.advice.facts import device, situation_facts, suggestion_counts, with_suggested_model
from advisor.advice.search.costs import OVER_BUDGET, Costs
from advisor.advice.search.settings import SETTINGS
from advisor.advice.types import LADDER, NO_CONCESSIONS, Concessions, Fitted, Sizes
from advisor.ground.types import Answer, AnswerSet
from advisor.methods import schemes, update
from advisor.methods.composition import Composition, compose
from advisor.ruleset.judge import Judgement, compile_table, judge
from advisor.ruleset.model import Rule, Ruleset
from advisor.situation.types import Situation, Suggested, with_suggested

LAST = "rank"  # the table that needs to know what fits
SHIPPED = ("base", "document", "evidence")  # layers: all others are of one's own
SMALLER_MODEL = "smaller_model"  # the scheme table's way out where no scheme fits
# what a gate's conclusion means in a composition: remedies, and whether training goes with them
REMEDIES_OF_GATE = {
    "train": ((), True),
    "rag": (("rag",), False),
    "rag_and_train": (("rag",), True),
    "prompting": (("prompting",), False),
    "prompting_and_rag": (("prompting", "rag"), False),
    "tool_use": (("tool_use",), False),
    "bigger_model": (("bigger_model",), False),
    "constrained_decoding": (("constrained_decoding",), False),
    "other_tool": (("other_tool",), False),
}
# Steps whose default says nothing a person has to hear, some of them in no layer.
UNSAID = {
    "rows_teach": ("unseen", "facts", "reading"),
    "knowledge_source": ("finetune",),
    "readiness": ("train",),
    "train_decision": ("train",),
    "adapters_per": ("model",),
    "particulars": ("none", "some"),
    "architecture": ("decoder",),
    "required_capacity": ("any",),
    "data_amount": ("uncounted", "too_few", "handful", "little", "enough", "plenty"),
}
NEVER_SAID = ("train_decision", "adapters_per", "data_amount", "rows_teach")
GATE = "train_decision"  # joins what two others concluded
TO_REMEDY = ("knowledge_source", "readiness", GATE)


class Undecided(Exception):
    """A table that recommends nothing here: the linter refuses such rule sets."""

    def __init__(self, table: str) -> None:
        super().__init__(f"no rule of table '{table}' recommends anything")


class Decision(Struct, frozen=True):
    """What the tables conclude, each with its judgement; `facts` grows from table to table."""

    facts: Mapping[str, Any]
    steps: Mapping[str, Judgement]
    composition: Composition
    # The winning rules that a person has to hear of, in the order of the steps.
    rules: tuple[Rule, ...]
    concessions: Concessions = NO_CONCESSIONS

    @property
    def trains(self) -> bool:
        return bool(self.composition.chain)

    @property
    def chain(self) -> str:
        """The concluded chain: 'sft>rm>ppo', 'encoder:sft'."""
        return str(self.facts["chain"])

    @property
    def per_task(self) -> bool:
        return bool(self.facts["adapters_per"] == "task")

    @property
    def nothing_fits(self) -> bool:
        """Whether no scheme fits the hardware and the budget."""
        return SMALLER_MODEL in self.composition.remedies

    @property
    def fits(self) -> tuple[str, ...]:
        """What the rules saw of every scheme: fits, tight, too_big, ..."""
        return tuple(str(value) for fact, value in self.facts.items() if fact.startswith("fits_"))

    def candidate(self, scheme: str, remedies: tuple[str, ...] = ()) -> Composition:
        """The concluded chain with some scheme."""
        return compose(self.chain, scheme, per_task=self.per_task, remedies=remedies)


def conclude_early(ruleset: Ruleset, base: Mapping[str, Any]) -> Decision:
    """The steps that need no estimate: everything before the scheme."""
    facts, steps = dict(base), dict[str, Judgement]()
    for table in ruleset.tables.values():
        if table.id not in (LAST, SETTINGS) and not table.per:
            _conclude(ruleset, table.id, facts, steps)
    return Decision(facts=facts, steps=steps, composition=Composition(), rules=())


def conclude(ruleset: Ruleset, early: Decision, fits: Mapping[str, str]) -> Decision:
    """The scheme, and with it the composition, by what fits (scheme -> `fits_<scheme>`)."""
    facts = {**early.facts, **{f"fits_{scheme}": fit for scheme, fit in fits.items()}}
    steps = dict(early.steps)
    _conclude(ruleset, LAST, facts, steps)
    remedies, trains = REMEDIES_OF_GATE[str(facts["train_decision"])]
    rules = _rules_to_tell(steps, trains=trains)
    found = Decision(
        facts=facts, steps=steps, composition=Composition(remedies=remedies), rules=rules
    )
    if not trains:
        return found
    scheme = str(facts["scheme"])
    if scheme != "full" and facts.get("required_capacity") == "full_rank":
        # Why every weight, where memory took another scheme: `fits_full` tells that.
        wanted = ("required_capacity", "candidate_schemes")
        found = replace(found, rules=tuple(rule for rule in rules if rule.table not in wanted))
    if scheme == SMALLER_MODEL:
        return replace(found, composition=Composition(remedies=(*remedies, SMALLER_MODEL)))
    return replace(found, composition=found.candidate(scheme, remedies))


def _conclude(
    ruleset: Ruleset, table: str, facts: dict[str, Any], steps: dict[str, Judgement]
) -> None:
    steps[table] = judge(ruleset, table, facts)
    if (winner := steps[table].winner) is None:
        raise Undecided(table)
    facts[ruleset.tables[table].concludes] = winner[0]


def decide(ruleset: Ruleset, facts: Mapping[str, Any]) -> Decision:
    """The whole decision on facts alone, `fits_*` among them."""
    fits = {
        fact_id.removeprefix("fits_"): str(value)
        for fact_id, value in facts.items()
        if fact_id.startswith("fits_")
    }
    return conclude(ruleset, conclude_early(ruleset, facts), fits)


def _rules_to_tell(steps: Mapping[str, Judgement], *, trains: bool) -> tuple[Rule, ...]:
    """The winning rules without those that go without saying; for a remedy what led to it."""
    found: list[Rule] = []
    for table, judgement in steps.items():
        if judgement.winner is None or not (trains or table in TO_REMEDY):
            continue
        outcome, rule = judgement.winner
        if table == GATE and not trains and steps.keys().isdisjoint(one.fact for one in rule.when):
            return (rule,)  # it joins nothing that other steps concluded
        usual = outcome in UNSAID.get(table, ())
        if not (usual and (rule.layer == "base" or table in NEVER_SAID)) and not (
            table == GATE and found
        ):
            found.append(rule)
    return tuple(found)


CPU_SUGGESTED_PARAMS = 700_000_000  # what a processor trains in hours rather than days
NONE_FITS = "; by the upper end of the estimate not even this one, the smallest, is sure to fit"


class Case(Struct, frozen=True, eq=False, dict=True):
    """A situation under a set of rules."""

    ruleset: Ruleset
    situation: Situation
    facts: Mapping[str, Any]  # what is known before anything is concluded or estimated
    costs: Costs
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the facts of the situation
    # Of each model that could be suggested, by its id; shared by a case and its what-ifs.
    known_costs: dict[str, Costs] = field(default_factory=dict)
    concessions: Concessions = NO_CONCESSIONS  # what has to be given up

    @classmethod
    def build(
        cls, situation: Situation, ruleset: Ruleset, changes: Mapping[str, Any] | None = None
    ) -> Case:
        """The case of a situation as it is; a change to None takes a fact away."""
        facts = facts_with(situation, changes or {})
        return cls(ruleset, situation, facts, Costs(ruleset, situation, facts), changes or {})

    def with_suggestion(self) -> Case:
        """The case with the model to suggest if none was named: the largest whose 16-bit weights
        surely fit; else the largest that does in 4 bit; else the smallest. For texts that are only
        sorted a small encoder.
        """
        situation = self.situation
        if situation.suggestion is None:
            return self
        if situation.encoder is not None and self._sorts_alone:
            return self._suggesting(situation.encoder)
        suggested = situation.suggested
        if device(situation.hardware) == "cpu":
            small = [one for one in suggested if one.shape.params <= CPU_SUGGESTED_PARAMS]
            suggested = tuple(small) or suggested[-1:]
        cases = [self._suggesting(one) for one in suggested]
        for case in cases:
            if case._is_suggestion_known and not case._surely_fits(
                case._before_scheme.chain, "lora"
            ):
                continue  # nothing on 16-bit weights needs less: no other scheme has to be tried
            if case._how_it_fits() == "fits" or (
                not case._is_suggestion_known and case._how_it_fits() == "fits in 4 bit"
            ):
                return case
        in_4_bit = next((case for case in cases if case._how_it_fits() == "fits in 4 bit"), None)
        if in_4_bit is not None:
            return in_4_bit
        last, because = suggested[-1], f"{suggested[-1].suggestion.because}{NONE_FITS}"
        return self._suggesting(replace(last, suggestion=replace(last.suggestion, because=because)))

    def _suggesting(self, one: Suggested) -> Case:
        situation = with_suggested(self.situation, one)
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
    def _is_suggestion_known(self) -> bool:
        return suggestion_counts(self.situation, self.facts)

    def _how_it_fits(self) -> str:
        """By the upper end of the estimate: 'fits', 'fits in 4 bit' or 'does not fit'."""
        decision = self.decision
        if decision.nothing_fits or decision.concessions.least_module:
            return "does not fit"
        # If nothing is trained the model is the one that could be.
        schemes = (decision.composition.scheme,) if decision.trains else ("lora", "qlora")
        holding = next(
            (one for one in schemes if self._surely_fits(decision.chain, str(one))), None
        )
        if holding is None:
            return "does not fit"
        return "fits in 4 bit" if decision.candidate(str(holding)).quantization else "fits"

    def _surely_fits(self, chain: str, scheme: str) -> bool:
        cost = self.costs.cost_of(compose(chain, scheme)).cost
        memory, limit = cost.memory, cost.limit_bytes
        return memory is None or limit is None or memory.need_high_bytes <= limit

    def with_rules(self, ruleset: Ruleset) -> Case:
        """The same facts at the same costs under other rules."""
        return replace(self, ruleset=ruleset)

    def with_answers(self, changes: Mapping[str, Any]) -> Case:
        """The case with some answers changed, at the same costs, and the model suggested then."""
        every = {**self.changes, **changes}
        changed = replace(self, facts=facts_with(self.situation, every), changes=every)
        if self.situation.suggestion is None or "params_b" in changes:
            return changed
        # The same stages need the same memory, so that no larger model fits than before.
        same = (
            changed._sorts_alone == self._sorts_alone
            and changed._stages == self._stages
            and changed._how_it_fits() == self._how_it_fits()
        )
        return changed if same else changed.with_suggestion()

    def restated(self, changes: Mapping[str, Any]) -> Case:
        """The case in which a person had stated this, so that costs change with it."""
        asked = {name: Answer(value=value, origin="asked") for name, value in changes.items()}
        answers = AnswerSet(known={**self.situation.answers.known, **asked})
        situation = replace(self.situation, answers=answers)
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
        return (*(self._before_scheme.facts[name] for name in names), self._is_suggestion_known)

    @cached_property
    def _before_scheme(self) -> Decision:
        return conclude_early(self.ruleset, self.facts)

    @property
    def _ladder(self) -> Iterator[Concessions]:
        several = len(self.situation.hardware.gpus) > 1  # else nothing is sharded and offloaded
        yield from dict.fromkeys(
            replace(
                one,
                offload=one.offload and several,
                elsewhere=one.elsewhere and self.costs.may_go_elsewhere,
            )
            for one in LADDER
        )

    @cached_property
    def composition(self) -> Composition:
        """The composition of the decision. Estimates that it does not turn on are not made: a
        what-if asks for two of six schemes.
        """
        early, known = self._before_scheme, self.costs.facts
        remedies, trains = REMEDIES_OF_GATE[str(early.facts[GATE])]
        if not trains:
            return Composition(remedies=remedies)
        if known.get("budget_usd") is None and known.get("budget_hours") is None:
            first = next(self._ladder)
            fits = {
                f"fits_{one}": partial(self._coarse_fit, early.chain, one, first)
                for one in schemes()
            }
            scheme = compile_table(self.ruleset, LAST).winner(early.facts, fits)
            if scheme not in (None, SMALLER_MODEL):
                return early.candidate(str(scheme), remedies)
        return self.decision.composition

    @cached_property
    def decision(self) -> Decision:
        """What the tables conclude: first what needs no estimate, then which scheme."""
        tried = list[Decision]()
        for concessions in self._ladder:
            tried.append(found := self._decision_with(concessions))
            if OVER_BUDGET in found.fits:
                ways = list(product(("modules", "all"), (False, True)))
                for part, smallest in ways if found.nothing_fits else ways[:1]:
                    on_part = self._decision_with(
                        replace(concessions, part=part, smallest_batch=smallest)
                    )
                    if _is_worth_a_part(found, on_part):
                        return on_part
                return found
            if not found.nothing_fits:
                return found
        # The numbers are those of whoever needs least.
        return next((one for one in tried if one.concessions.elsewhere), tried[0])

    def _decision_with(self, concessions: Concessions) -> Decision:
        fits = self.coarse_fits(self._before_scheme.chain, concessions)
        return replace(conclude(self.ruleset, self._before_scheme, fits), concessions=concessions)

    def coarse_fits(self, chain: str, concessions: Concessions = NO_CONCESSIONS) -> dict[str, str]:
        """scheme -> the coarse fact that rules see."""
        return {one: self._coarse_fit(chain, one, concessions) for one in schemes()}

    def _coarse_fit(self, chain: str, scheme: str, concessions: Concessions) -> str:
        """Of a model that nobody named it is known once hardware and data are; that it does not fit
        always is, since the plan would run into it.
        """
        found = self.costs.coarse_fit(compose(chain, scheme), concessions)
        if self.situation.suggestion is None or self._is_suggestion_known:
            return found
        return found if found in ("too_big", OVER_BUDGET) else "unknown"

    def cost_of(self, composition: Composition) -> Fitted:
        """The stages of a composition with settings that fit, and what they cost together."""
        return self.costs.cost_of(composition, self.concessions)

    def ways_of(self, composition: Composition) -> tuple[Fitted, ...]:
        """A composition under each strategy of several GPUs, the chosen one first."""
        return self.costs.ways_of(composition, self.concessions)

    def sizes(self, decision: Decision) -> Sizes:
        """scheme -> its estimate on the chain that was concluded: the numbers of the reasons."""
        return {scheme: self.cost_of(decision.candidate(scheme)).cost for scheme in schemes()}


def _plain_facts(situation: Situation, changes: Mapping[str, Any]) -> dict[str, Any]:
    facts = situation_facts(situation, **changes).items()
    return {key: value for key, value in facts if value is not None}


def facts_with(situation: Situation, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What rules see of a situation with some facts changed; a change to None takes one away."""
    return with_suggested_model(situation, _plain_facts(situation, changes))


def _is_worth_a_part(found: Decision, on_part: Decision) -> bool:
    """Whether a part of the data is trained on, rather than what stays within the limit: a module
    in place of all weights, one that can be merged in place of an extra layer or a prefix, since
    more money would lead there anyway.
    """
    if SMALLER_MODEL in (found.facts["scheme"], on_part.facts["scheme"]):
        return found.nothing_fits and not on_part.nothing_fits
    now, then = (
        update(one.candidate(str(one.facts["scheme"])).update or "lora") for one in (found, on_part)
    )
    if not now.is_module:
        return then.is_module
    return then.merges and not now.merges and now.size_key != ""
