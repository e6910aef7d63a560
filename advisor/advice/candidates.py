"""Decision -> candidates: the recommendation and every other composition, each with its estimate
and why (not).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from advisor.advice.facts_of_situation import device
from advisor.advice.types import Candidate, Chosen, Reason, StageSettings, Verdict
from advisor.estimate.types import Estimate
from advisor.ground.types import DDP, FSDP
from advisor.methods import objective, schemes, update
from advisor.methods.composition import Composition, compose
from advisor.ruleset.model import Rule, Ruleset
from advisor.situation.types import Situation

from .decide import LAST, SMALLER_MODEL, Decision
from .explain import (
    Sizes,
    budget_reason,
    facts_seen_by,
    memory_reason,
    reason_of,
    rules_that_differ,
)
from .fit import coarse_fit, combine_estimates, fit_stage, stage_settings
from .why_not import why_not_outcome

GUIDE_CHAINS = (
    "sft",
    "cpt>sft",
    "sft>rm>ppo",
)  # every objective the guide names stands in one of them
ANSWERED_REMEDIES = {
    "rag": ("knowledge_source", "retrieval"),
    "prompting": ("readiness", "prompting"),
}  # "why not just ...?"
NOTHING = Estimate(fits="unknown")
SHIPPED = ("base", "document", "evidence")
TOO_BIG, OVER_BUDGET = "base/too-big", "base/over-budget"  # the rules whose reason is two numbers


@dataclass(frozen=True, slots=True)
class Costs:
    """What compositions cost in one situation.

    Stages are fitted once each, however many chains share them.
    """

    ruleset: Ruleset
    situation: Situation
    facts: Mapping[str, object]
    known: dict[tuple[str, str, str | None], tuple[StageSettings, Estimate]] = field(
        default_factory=dict
    )

    def of(self, composition: Composition) -> tuple[tuple[StageSettings, ...], Estimate]:
        """The stages of a composition with settings that fit, and what they cost together.

        Several cards share all stages of a plan in one way: each holds the whole model, or where
        that is too big the model is split.
        """
        if len(self.situation.hardware.gpus) < 2:
            return self.shared(composition, None)
        whole = self.shared(composition, DDP)
        return whole if whole[1].fits != "too_big" else self.shared(composition, FSDP)

    def shared(
        self, composition: Composition, strategy: str | None
    ) -> tuple[tuple[StageSettings, ...], Estimate]:
        """The same where the cards share the work in this way."""
        lead, module = self._shared_module(composition)
        found = [
            self._stage(composition, name, strategy, lead, module) for name in composition.chain
        ]
        return tuple(stage for stage, _ in found), combine_estimates([cost for _, cost in found])

    def _shared_module(self, composition: Composition) -> tuple[str, Mapping[str, Chosen]]:
        """Stages that go on with one module have one form of it: the largest that any of them asks
        for, and whose it is.
        """
        going_on = [name for name in composition.chain if not objective(name).scores]
        how = update(composition.update or "lora")
        if not how.size_key or len(going_on) < 2:
            return "", {}
        size = how.size_key
        wanted = {
            name: stage_settings(self.ruleset, self.situation, self.facts, composition, name)
            for name in going_on
        }
        lead = max(
            going_on,
            key=lambda name: wanted[name][size].value if size in wanted[name] else 0,
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
        strategy: str | None,
        lead: str,
        shared: Mapping[str, Chosen],
    ) -> tuple[StageSettings, Estimate]:
        shared = {} if objective(name).scores or name == lead else shared
        key = (
            name,
            f"{composition.encoder}+{composition.scheme}+{lead if shared else ''}",
            strategy,
        )
        if key not in self.known:
            self.known[key] = fit_stage(
                self.ruleset, self.situation, self.facts, composition, name, strategy, shared
            )
        return self.known[key]

    def fits(self, chain: str, *, per_task: bool) -> dict[str, str]:
        """scheme -> the coarse fact the rules see.

        That a model fits which nobody named is no known fact; that it does not is what the plan
        would run into.
        """
        found = {
            scheme: self._fit(compose(chain, scheme, per_task=per_task)) for scheme in schemes()
        }
        if self.situation.suggestion is None:
            return found
        return {
            scheme: fit if fit in ("too_big", "over_budget") else "unknown"
            for scheme, fit in found.items()
        }

    def sizes(self, decision: Decision) -> Sizes:
        """scheme -> its estimate on the chain that was concluded: the numbers of the reasons."""
        chain, per_task = str(decision.facts["chain"]), decision.facts["adapters_per"] == "task"
        return {
            scheme: self.of(compose(chain, scheme, per_task=per_task))[1] for scheme in schemes()
        }

    def _fit(self, composition: Composition) -> str:
        """The coarse fact. A module whose base is split says so: the base can be quantised instead,
        and each card then holds all of it.
        """
        stages, cost = self.of(composition)
        fit = coarse_fit(cost, self.facts)
        return (
            "split"
            if fit == "fits"
            and update(composition.update or "").is_module
            and any(stage.split for stage in stages)
            else fit
        )


def recommended_candidate(ruleset: Ruleset, decision: Decision, costs: Costs) -> Candidate:
    """The composition the rules concluded, with its reasons."""
    sizes = costs.sizes(decision)
    because = tuple(
        replace(
            reason_of(rule, ruleset),
            facts=facts_seen_by(rule, decision, costs.situation, ruleset, sizes),
        )
        for rule in decision.rules
    )
    if not decision.composition.chain:
        return Candidate(
            composition=decision.composition,
            stages=(),
            estimate=NOTHING,
            verdict="recommended",
            because=because,
        )
    stages, cost = costs.of(decision.composition)
    return Candidate(
        composition=decision.composition,
        stages=stages,
        estimate=cost,
        verdict="recommended",
        because=because,
    )


def alternatives(
    ruleset: Ruleset, decision: Decision, costs: Costs, guide: Composition | None
) -> tuple[Candidate, ...]:
    """Every other scheme on the same chain, then other chains, the guide's own answer and the
    remedies, best first.
    """
    found = [
        *_other_schemes(ruleset, decision, costs),
        *_other_chains(ruleset, decision, costs),
        *_other_remedies(ruleset, decision),
    ]
    if guide is not None and guide.chain:
        found.append(_guides_own(ruleset, decision, costs, guide))
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(str(candidate.composition), candidate)
    unique.pop(str(decision.composition), None)
    return tuple(unique.values())


def _other_schemes(ruleset: Ruleset, decision: Decision, costs: Costs) -> list[Candidate]:
    facts, judgement = decision.facts, decision.steps[LAST]
    order = [scheme for scheme, _ in judgement.ranking if scheme != SMALLER_MODEL]
    result = []
    for scheme in dict.fromkeys(
        [*order, *(scheme for scheme in schemes() if scheme in judgement.forbidden), *schemes()]
    ):
        composition = compose(
            str(facts["chain"]),
            scheme,
            per_task=facts["adapters_per"] == "task",
            remedies=decision.composition.remedies if decision.trains else (),
        )
        stages, cost = costs.of(composition)
        verdict, because, forced_ok = _scheme_verdict(ruleset, costs, decision, scheme, cost)
        if not decision.trains and verdict == "ranked_lower":
            because = tuple(
                why_not_outcome(decision.steps["train_decision"], "train", facts, ruleset)
            )
        result.append(
            Candidate(
                composition=composition,
                stages=stages,
                estimate=cost,
                verdict=verdict,
                because=because,
                forced_ok=forced_ok,
            )
        )
    return result


def _other_chains(ruleset: Ruleset, decision: Decision, costs: Costs) -> list[Candidate]:
    """The guide's chains and the chain table's runners-up, with the scheme that was chosen."""
    facts, judgement = decision.facts, decision.steps["chain"]
    scheme = (
        str(facts["scheme"]) if facts["scheme"] != SMALLER_MODEL else _least_hungry(decision, costs)
    )
    chains = dict.fromkeys([*(str(chain) for chain, _ in judgement.ranking[:3]), *GUIDE_CHAINS])
    chains.pop(str(facts["chain"]), None)
    result = []
    for chain in chains:
        composition = compose(chain, scheme, per_task=facts["adapters_per"] == "task")
        stages, cost = costs.of(composition)
        forbidden = judgement.forbidden.get(chain, ())
        result.append(
            Candidate(
                composition=composition, stages=stages, estimate=cost,
                verdict="forbidden" if forbidden else "ranked_lower",
                because=tuple(why_not_outcome(judgement, chain, facts, ruleset)),
                forced_ok=not any(is_absolute(rule) for rule in forbidden),
            )
        )  # fmt: skip
    return result


def _other_remedies(ruleset: Ruleset, decision: Decision) -> list[Candidate]:
    """Why not simply look things up, or write a better prompt."""
    result = []
    for remedy, (table, outcome) in ANSWERED_REMEDIES.items():
        if remedy in decision.composition.remedies:
            continue
        because = tuple(why_not_outcome(decision.steps[table], outcome, decision.facts, ruleset))
        result.append(
            Candidate(
                composition=Composition(remedies=(remedy,)),
                stages=(),
                estimate=NOTHING,
                verdict="ranked_lower",
                because=because,
            )
        )
    return result


def _guides_own(
    ruleset: Ruleset, decision: Decision, costs: Costs, guide: Composition
) -> Candidate:
    """The guide's answer where nothing above says it already, so that it can be run as well."""
    heard = [
        rule
        for rule in rules_that_differ(decision, guide)
        if rule.layer not in ("base", "document")
    ]
    return candidate_for(
        ruleset,
        decision,
        costs,
        guide,
        tuple(reason_of(rule, ruleset) for rule in heard)
        or (Reason(text="The guide alone says this."),),
    )


def candidate_for(
    ruleset: Ruleset,
    decision: Decision,
    costs: Costs,
    composition: Composition,
    otherwise: tuple[Reason, ...],
) -> Candidate:
    """A composition that somebody named, with what speaks against it: what forbids it, its size, or
    `otherwise`.
    """
    stages, cost = costs.of(composition)
    fit = coarse_fit(cost, costs.facts)
    chain = f"{'encoder:' if composition.encoder else ''}{'>'.join(composition.chain)}"
    named = (("chain", chain), (LAST, composition.scheme))
    forbidden = [
        rule
        for table, outcome in named
        for rule in decision.steps[table].forbidden.get(outcome, ())
        if rule.id != TOO_BIG
    ]
    because = tuple(reason_of(rule, ruleset) for rule in forbidden) or otherwise
    if fit == "too_big":
        found = memory_reason(
            cost,
            str(composition.scheme),
            TOO_BIG,
            cards=len(costs.situation.hardware.gpus),
            cpu=device(costs.situation) == "cpu",
        )
        because = (found, *because) if found else because
    verdict: Verdict = (
        "too_big" if fit == "too_big" else "forbidden" if forbidden else "ranked_lower"
    )
    forced_ok = fit != "too_big" and not any(is_absolute(rule) for rule in forbidden)
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=because,
        forced_ok=forced_ok,
    )


def _scheme_verdict(
    ruleset: Ruleset, costs: Costs, decision: Decision, scheme: str, cost: Estimate
) -> tuple[Verdict, tuple[Reason, ...], bool]:
    judgement = decision.steps[LAST]
    forbidding = judgement.forbidden.get(scheme, ())
    if not forbidding:
        return (
            "ranked_lower",
            tuple(
                why_not_outcome(judgement, scheme, decision.facts, ruleset, costs.sizes(decision))
            ),
            True,
        )
    reasons = tuple(
        _limit_reason(ruleset, costs, decision, rule, scheme, cost) for rule in forbidding
    )
    only_size = all(rule.id == TOO_BIG for rule in forbidding)
    return (
        ("too_big" if only_size else "forbidden"),
        reasons,
        not any(is_absolute(rule) for rule in forbidding),
    )


def _limit_reason(
    ruleset: Ruleset, costs: Costs, decision: Decision, rule: Rule, scheme: str, cost: Estimate
) -> Reason:
    """A forbidding rule's reason, with the two numbers where it is about a limit."""
    if rule.id == TOO_BIG:
        found = memory_reason(
            cost,
            scheme,
            rule.id,
            cards=len(costs.situation.hardware.gpus),
            cpu=device(costs.situation) == "cpu",
        )
        return found or reason_of(rule, ruleset)
    if rule.id == OVER_BUDGET:
        return budget_reason(cost, costs.facts, scheme, rule.id)
    return reason_of(rule, ruleset)


def is_absolute(rule: Rule) -> bool:
    """A forbid that --force never overrides: a company's own, and what cannot run."""
    return rule.layer not in SHIPPED or rule.id == TOO_BIG


def nearest_to_fitting(ruleset: Ruleset, decision: Decision, costs: Costs) -> Candidate:
    """Nothing is allowed: of the wanted schemes the one that needs least, so that the way out is
    the shortest.
    """
    scheme = _least_hungry(decision, costs)
    composition = compose(
        str(decision.facts["chain"]), scheme, per_task=decision.facts["adapters_per"] == "task"
    )
    stages, cost = costs.of(composition)
    verdict, because, forced_ok = _scheme_verdict(ruleset, costs, decision, scheme, cost)
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=because,
        forced_ok=forced_ok,
    )


def _least_hungry(decision: Decision, costs: Costs) -> str:
    chain, per_task = str(decision.facts["chain"]), decision.facts["adapters_per"] == "task"
    # A company's prohibition is not lifted by memory: only what it allows is "nearest", unless it
    # allows nothing.
    wanted = [scheme for scheme, _ in decision.steps[LAST].wanted if scheme != SMALLER_MODEL]
    allowed = [
        scheme
        for scheme in wanted
        if not any(
            rule.layer not in SHIPPED for rule in decision.steps[LAST].forbidden.get(scheme, ())
        )
    ]

    def need(scheme: str) -> int:
        memory = costs.of(compose(chain, scheme, per_task=per_task))[1].memory
        return memory.peak_bytes if memory else 0

    return str(min(allowed or wanted, key=need))
