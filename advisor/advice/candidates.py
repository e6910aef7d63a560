"""Decision -> candidates: the recommendation and every other composition, each with its estimate
and why (not).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from advisor.advice.case import Case
from advisor.advice.decide import LAST, SMALLER_MODEL, Decision
from advisor.advice.search.fit import coarse_fit
from advisor.advice.types import Candidate, Reason, Verdict
from advisor.advice.why import (
    budget_reason,
    facts_seen_by,
    memory_reason,
    reason_of,
    rules_that_differ,
)
from advisor.advice.why_not import LosingOutcome
from advisor.estimate.types import Estimate
from advisor.methods import schemes
from advisor.methods.composition import Composition, compose
from advisor.ruleset.model import Rule

# Every objective that the guide names stands in one of them.
GUIDE_CHAINS = ("sft", "cpt>sft", "sft>rm>ppo")
ANSWERED_REMEDIES = {
    "rag": ("knowledge_source", "retrieval"),
    "prompting": ("readiness", "prompting"),
}  # "why not just ...?"
SHIPPED = ("base", "document", "evidence")
TOO_BIG, OVER_BUDGET = "base/too-big", "base/over-budget"  # the rules whose reason is two numbers


def recommended_candidate(case: Case, decision: Decision) -> Candidate:
    """The composition the rules concluded, with its reasons."""
    sizes = case.sizes(decision)
    because = [
        replace(
            reason_of(rule, case.ruleset),
            facts=facts_seen_by(rule, decision, case.situation, case.ruleset, sizes),
        )
        for rule in decision.rules
    ]
    found = _candidate(case, decision.composition, "recommended", because)
    return replace(found, ways=case.ways_of(decision.composition))


def _candidate(
    case: Case,
    composition: Composition,
    verdict: Verdict,
    because: Iterable[Reason],
    forbidding: Sequence[Rule] = (),
) -> Candidate:
    """The composition with settings that fit, and what it costs; a remedy alone has neither."""
    stages, cost = (
        case.cost_of(composition) if composition.chain else ((), Estimate(fits="unknown"))
    )
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=tuple(because),
        forced_ok=not any(is_absolute(rule) for rule in forbidding),
    )


def alternatives(
    case: Case, decision: Decision, guide: Composition | None
) -> tuple[Candidate, ...]:
    """Every other scheme, other chains, the guide's own answer and the remedies, best first."""
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


def _other_schemes(case: Case, decision: Decision) -> Iterator[Candidate]:
    judgement, gate = decision.steps[LAST], decision.steps["train_decision"]
    ranked = (scheme for scheme, _ in judgement.ranking if scheme != SMALLER_MODEL)
    forbidden = (scheme for scheme in schemes() if scheme in judgement.forbidden)
    remedies = decision.composition.remedies if decision.trains else ()
    for scheme in dict.fromkeys((*ranked, *forbidden, *schemes())):
        found = _of_scheme(case, decision, scheme, remedies)
        if not decision.trains and found.verdict == "ranked_lower":
            why = LosingOutcome(gate, "train", decision.facts, case.ruleset)
            found = replace(found, because=tuple(why.reasons()))
        yield found


def _of_scheme(
    case: Case, decision: Decision, scheme: str, remedies: tuple[str, ...] = ()
) -> Candidate:
    """The concluded chain with a scheme that was not, and why not."""
    judgement, sizes = decision.steps[LAST], case.sizes(decision)
    lost = LosingOutcome(judgement, scheme, decision.facts, case.ruleset, sizes)
    return _losing_candidate(case, decision.candidate(scheme, remedies), lost)


def _other_chains(case: Case, decision: Decision) -> Iterator[Candidate]:
    """The guide's chains and the chain table's runners-up, with the scheme that was chosen."""
    judgement, scheme = decision.steps["chain"], str(decision.facts["scheme"])
    if scheme == SMALLER_MODEL:
        scheme = _least_hungry(case, decision)
    ranked = (str(chain) for chain, _ in judgement.ranking[:3])
    suggested = case.situation.suggestion is not None
    for chain in dict.fromkeys((*ranked, *GUIDE_CHAINS)):
        if chain != decision.chain:
            lost = LosingOutcome(
                judgement, chain, decision.facts, case.ruleset, is_suggested=suggested
            )
            composition = compose(chain, scheme, per_task=decision.per_task)
            yield _losing_candidate(case, composition, lost)


def _losing_candidate(case: Case, composition: Composition, lost: LosingOutcome) -> Candidate:
    """The composition with what a table did not conclude, and why not."""
    forbidding = lost.judgement.forbidden.get(lost.outcome, ())
    if not forbidding:
        return _candidate(case, composition, "ranked_lower", lost.reasons())
    verdict: Verdict = "too_big" if all(r.id == TOO_BIG for r in forbidding) else "forbidden"
    reasons = (_limit_reason(case, rule, composition) for rule in forbidding)
    return _candidate(case, composition, verdict, reasons, forbidding)


def _other_remedies(case: Case, decision: Decision) -> Iterator[Candidate]:
    """Why not simply look things up, or write a better prompt."""
    for remedy, (table, outcome) in ANSWERED_REMEDIES.items():
        if remedy not in decision.composition.remedies:
            why = LosingOutcome(decision.steps[table], outcome, decision.facts, case.ruleset)
            alone = Composition(remedies=(remedy,))
            yield _candidate(case, alone, "ranked_lower", why.reasons())


def _guides_own(case: Case, decision: Decision, guide: Composition) -> Candidate:
    """The guide's answer if nothing above says it already, so that it can be run as well."""
    own = [
        reason_of(rule, case.ruleset)
        for rule in rules_that_differ(decision, guide)
        if rule.layer not in ("base", "document")
    ]
    return candidate_for(case, decision, guide, own or [Reason(text="The guide alone says this.")])


def candidate_for(
    case: Case, decision: Decision, composition: Composition, otherwise: Sequence[Reason]
) -> Candidate:
    """A composition that somebody named, and what speaks against it, or `otherwise`."""
    chain = f"{'encoder:' if composition.encoder else ''}{'>'.join(composition.chain)}"
    named = (("chain", chain), (LAST, composition.scheme))
    forbidding = [
        rule
        for table, outcome in named
        for rule in decision.steps[table].forbidden.get(outcome, ())
        if rule.id != TOO_BIG
    ]
    because = [reason_of(rule, case.ruleset) for rule in forbidding] or otherwise
    cost = case.cost_of(composition).cost
    if coarse_fit(cost, case.facts, may_not_fit=case.concessions.may_not_fit) != "too_big":
        verdict: Verdict = "forbidden" if forbidding else "ranked_lower"
        return _candidate(case, composition, verdict, because, forbidding)
    size = memory_reason(cost, str(composition.scheme), TOO_BIG, case.situation.hardware)
    found = _candidate(case, composition, "too_big", [*([size] if size else []), *because])
    return replace(found, forced_ok=False)


def _limit_reason(case: Case, rule: Rule, composition: Composition) -> Reason:
    """A forbidding rule's reason, with the two numbers if it is about a limit."""
    cost, scheme = case.cost_of(composition).cost, str(composition.scheme)
    if rule.id == TOO_BIG:
        size = memory_reason(cost, scheme, rule.id, case.situation.hardware)
        return size or reason_of(rule, case.ruleset)
    if rule.id == OVER_BUDGET:
        return budget_reason(cost, case.facts, scheme, rule.id)
    return reason_of(rule, case.ruleset)


def is_absolute(rule: Rule) -> bool:
    """A forbid that --force never overrides: a company's own, and what cannot run."""
    return rule.layer not in SHIPPED or rule.id == TOO_BIG


def nearest_to_fitting(case: Case, decision: Decision) -> Candidate:
    """The wanted scheme that needs least: from there the way out is shortest."""
    return _of_scheme(case, decision, _least_hungry(case, decision))


def _least_hungry(case: Case, decision: Decision) -> str:
    # A company's prohibition is not lifted by memory: only what it allows is "nearest", unless it
    # allows nothing.
    judgement = decision.steps[LAST]
    wanted = [scheme for scheme, _ in judgement.wanted if scheme != SMALLER_MODEL]
    allowed = [
        scheme
        for scheme in wanted
        if all(rule.layer in SHIPPED for rule in judgement.forbidden.get(scheme, ()))
    ]

    def need(scheme: str) -> tuple[bool, int]:
        cost = case.cost_of(decision.candidate(scheme)).cost
        return bool(cost.refused), cost.memory.need_bytes if cost.memory else 0

    return str(min(allowed or wanted, key=need))
