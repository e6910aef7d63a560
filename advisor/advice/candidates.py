"""Decision -> candidates: the recommendation and every other composition, each with its estimate
and why (not).
"""

from __future__ import annotations

from dataclasses import replace

from advisor.advice.case import Case
from advisor.advice.decide import LAST, SMALLER_MODEL, Decision
from advisor.advice.explain import (
    budget_reason,
    facts_seen_by,
    memory_reason,
    reason_of,
    rules_that_differ,
)
from advisor.advice.facts_of_situation import device
from advisor.advice.fit import coarse_fit
from advisor.advice.types import Candidate, Reason, Verdict
from advisor.advice.why_not import why_not_outcome
from advisor.estimate.types import Estimate
from advisor.methods import schemes
from advisor.methods.composition import Composition, compose
from advisor.ruleset.model import Rule

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


def recommended_candidate(case: Case, decision: Decision) -> Candidate:
    """The composition the rules concluded, with its reasons."""
    sizes = case.sizes(decision)
    because = tuple(
        replace(
            reason_of(rule, case.ruleset),
            facts=facts_seen_by(rule, decision, case.situation, case.ruleset, sizes),
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
    stages, cost = case.cost_of(decision.composition)
    return Candidate(
        composition=decision.composition,
        stages=stages,
        estimate=cost,
        verdict="recommended",
        because=because,
        ways=case.ways_of(decision.composition),
    )


def alternatives(
    case: Case, decision: Decision, guide: Composition | None
) -> tuple[Candidate, ...]:
    """Every other scheme on the same chain, then other chains, the guide's own answer and the
    remedies, best first.
    """
    found = [
        *_other_schemes(case, decision),
        *_other_chains(case, decision),
        *_other_remedies(case, decision),
    ]
    if guide is not None and guide.chain:
        found.append(_guides_own(case, decision, guide))
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(str(candidate.composition), candidate)
    unique.pop(str(decision.composition), None)
    return tuple(unique.values())


def _other_schemes(case: Case, decision: Decision) -> list[Candidate]:
    facts, judgement = decision.facts, decision.steps[LAST]
    order = [scheme for scheme, _ in judgement.ranking if scheme != SMALLER_MODEL]
    result = []
    for scheme in dict.fromkeys(
        [*order, *(scheme for scheme in schemes() if scheme in judgement.forbidden), *schemes()]
    ):
        remedies = decision.composition.remedies if decision.trains else ()
        composition = decision.candidate(scheme, remedies)
        stages, cost = case.cost_of(composition)
        verdict, because, forced_ok = _scheme_verdict(case, decision, scheme, cost)
        if not decision.trains and verdict == "ranked_lower":
            because = tuple(
                why_not_outcome(decision.steps["train_decision"], "train", facts, case.ruleset)
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


def _other_chains(case: Case, decision: Decision) -> list[Candidate]:
    """The guide's chains and the chain table's runners-up, with the scheme that was chosen."""
    suggested = case.situation.suggestion is not None
    facts, judgement = decision.facts, decision.steps["chain"]
    scheme = (
        str(facts["scheme"]) if facts["scheme"] != SMALLER_MODEL else _least_hungry(case, decision)
    )
    chains = dict.fromkeys([*(str(chain) for chain, _ in judgement.ranking[:3]), *GUIDE_CHAINS])
    chains.pop(str(facts["chain"]), None)
    result = []
    for chain in chains:
        composition = compose(chain, scheme, per_task=decision.per_task)
        stages, cost = case.cost_of(composition)
        forbidden = judgement.forbidden.get(chain, ())
        result.append(
            Candidate(
                composition=composition, stages=stages, estimate=cost,
                verdict="forbidden" if forbidden else "ranked_lower",
                because=tuple(
                    why_not_outcome(judgement, chain, facts, case.ruleset, is_suggested=suggested)
                ),
                forced_ok=not any(is_absolute(rule) for rule in forbidden),
            )
        )  # fmt: skip
    return result


def _other_remedies(case: Case, decision: Decision) -> list[Candidate]:
    """Why not simply look things up, or write a better prompt."""
    result = []
    for remedy, (table, outcome) in ANSWERED_REMEDIES.items():
        if remedy in decision.composition.remedies:
            continue
        because = tuple(
            why_not_outcome(decision.steps[table], outcome, decision.facts, case.ruleset)
        )
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


def _guides_own(case: Case, decision: Decision, guide: Composition) -> Candidate:
    """The guide's answer where nothing above says it already, so that it can be run as well."""
    heard = [
        rule
        for rule in rules_that_differ(decision, guide)
        if rule.layer not in ("base", "document")
    ]
    return candidate_for(
        case,
        decision,
        guide,
        tuple(reason_of(rule, case.ruleset) for rule in heard)
        or (Reason(text="The guide alone says this."),),
    )


def candidate_for(
    case: Case,
    decision: Decision,
    composition: Composition,
    otherwise: tuple[Reason, ...],
) -> Candidate:
    """A composition that somebody named, with what speaks against it: what forbids it, its size, or
    `otherwise`.
    """
    stages, cost = case.cost_of(composition)
    fit = coarse_fit(cost, case.facts, near=case.easing.near)
    chain = f"{'encoder:' if composition.encoder else ''}{'>'.join(composition.chain)}"
    named = (("chain", chain), (LAST, composition.scheme))
    forbidden = [
        rule
        for table, outcome in named
        for rule in decision.steps[table].forbidden.get(outcome, ())
        if rule.id != TOO_BIG
    ]
    because = tuple(reason_of(rule, case.ruleset) for rule in forbidden) or otherwise
    if fit == "too_big":
        found = memory_reason(
            cost,
            str(composition.scheme),
            TOO_BIG,
            cards=len(case.situation.hardware.gpus),
            cpu=device(case.situation) == "cpu",
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
    case: Case, decision: Decision, scheme: str, cost: Estimate
) -> tuple[Verdict, tuple[Reason, ...], bool]:
    judgement = decision.steps[LAST]
    forbidding = judgement.forbidden.get(scheme, ())
    if not forbidding:
        return (
            "ranked_lower",
            tuple(
                why_not_outcome(
                    judgement, scheme, decision.facts, case.ruleset, case.sizes(decision)
                )
            ),
            True,
        )
    reasons = tuple(_limit_reason(case, decision, rule, scheme, cost) for rule in forbidding)
    only_size = all(rule.id == TOO_BIG for rule in forbidding)
    return (
        ("too_big" if only_size else "forbidden"),
        reasons,
        not any(is_absolute(rule) for rule in forbidding),
    )


def _limit_reason(
    case: Case, decision: Decision, rule: Rule, scheme: str, cost: Estimate
) -> Reason:
    """A forbidding rule's reason, with the two numbers where it is about a limit."""
    if rule.id == TOO_BIG:
        found = memory_reason(
            cost,
            scheme,
            rule.id,
            cards=len(case.situation.hardware.gpus),
            cpu=device(case.situation) == "cpu",
        )
        return found or reason_of(rule, case.ruleset)
    if rule.id == OVER_BUDGET:
        return budget_reason(cost, case.facts, scheme, rule.id)
    return reason_of(rule, case.ruleset)


def is_absolute(rule: Rule) -> bool:
    """A forbid that --force never overrides: a company's own, and what cannot run."""
    return rule.layer not in SHIPPED or rule.id == TOO_BIG


def nearest_to_fitting(case: Case, decision: Decision) -> Candidate:
    """Nothing is allowed: of the wanted schemes the one that needs least, so that the way out is
    the shortest.
    """
    scheme = _least_hungry(case, decision)
    composition = decision.candidate(scheme)
    stages, cost = case.cost_of(composition)
    verdict, because, forced_ok = _scheme_verdict(case, decision, scheme, cost)
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=because,
        forced_ok=forced_ok,
    )


def _least_hungry(case: Case, decision: Decision) -> str:
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

    def need(scheme: str) -> tuple[bool, int]:
        cost = case.cost_of(decision.candidate(scheme))[1]
        return bool(cost.refused), cost.memory.need_bytes if cost.memory else 0

    return str(min(allowed or wanted, key=need))
