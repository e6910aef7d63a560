"""Decision -> candidates: the recommendation and every other composition, each with its estimate
and why (not).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from advisor.advice.case import Case
from advisor.advice.decide import LAST, SMALLER_MODEL, Decision
from advisor.advice.facts import device
from advisor.advice.search.fit import coarse_fit
from advisor.advice.types import Candidate, Reason, Verdict
from advisor.advice.why import (
    budget_reason,
    facts_seen_by,
    memory_reason,
    reason_of,
    rules_that_differ,
)
from advisor.advice.why_not import WhyNot
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
    found = _candidate(case, decision.composition, "recommended", because)
    return replace(found, ways=case.ways_of(decision.composition))


def _candidate(
    case: Case,
    composition: Composition,
    verdict: Verdict,
    because: Iterable[Reason],
    *,
    forced_ok: bool = True,
) -> Candidate:
    """The composition with settings that fit, and what it costs; a remedy alone has neither."""
    stages, cost = case.cost_of(composition) if composition.chain else ((), NOTHING)
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=tuple(because),
        forced_ok=forced_ok,
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
        found = _of_scheme(case, decision, scheme, remedies)
        if not decision.trains and found.verdict == "ranked_lower":
            gate = decision.steps["train_decision"]
            because = tuple(WhyNot(gate, "train", facts, case.ruleset).reasons())
            found = replace(found, because=because)
        result.append(found)
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
        forbidden = judgement.forbidden.get(chain, ())
        verdict: Verdict = "forbidden" if forbidden else "ranked_lower"
        because = WhyNot(judgement, chain, facts, case.ruleset, is_suggested=suggested).reasons()
        forced_ok = not any(is_absolute(rule) for rule in forbidden)
        result.append(_candidate(case, composition, verdict, because, forced_ok=forced_ok))
    return result


def _other_remedies(case: Case, decision: Decision) -> list[Candidate]:
    """Why not simply look things up, or write a better prompt."""
    result = []
    for remedy, (table, outcome) in ANSWERED_REMEDIES.items():
        if remedy in decision.composition.remedies:
            continue
        because = WhyNot(decision.steps[table], outcome, decision.facts, case.ruleset).reasons()
        alone = Composition(remedies=(remedy,))
        result.append(_candidate(case, alone, "ranked_lower", because))
    return result


def _guides_own(case: Case, decision: Decision, guide: Composition) -> Candidate:
    """The guide's answer where nothing above says it already, so that it can be run as well."""
    heard = tuple(
        reason_of(rule, case.ruleset)
        for rule in rules_that_differ(decision, guide)
        if rule.layer not in ("base", "document")
    )
    otherwise = heard or (Reason(text="The guide alone says this."),)
    return candidate_for(case, decision, guide, otherwise)


def candidate_for(
    case: Case, decision: Decision, composition: Composition, otherwise: tuple[Reason, ...]
) -> Candidate:
    """A composition that somebody named, with what speaks against it: what forbids it, its size, or
    `otherwise`.
    """
    cost = case.cost_of(composition)[1]
    fit = coarse_fit(cost, case.facts, may_not_fit=case.concessions.may_not_fit)
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
        found = _memory_reason(case, cost, str(composition.scheme))
        because = (found, *because) if found else because
    verdict: Verdict = (
        "too_big" if fit == "too_big" else "forbidden" if forbidden else "ranked_lower"
    )
    forced_ok = fit != "too_big" and not any(is_absolute(rule) for rule in forbidden)
    return _candidate(case, composition, verdict, because, forced_ok=forced_ok)


def _of_scheme(
    case: Case, decision: Decision, scheme: str, remedies: tuple[str, ...] = ()
) -> Candidate:
    """The concluded chain with a scheme that was not, and why not."""
    composition, judgement = decision.candidate(scheme, remedies), decision.steps[LAST]
    forbidding = judgement.forbidden.get(scheme, ())
    if not forbidding:
        sizes = case.sizes(decision)
        because = WhyNot(judgement, scheme, decision.facts, case.ruleset, sizes).reasons()
        return _candidate(case, composition, "ranked_lower", because)
    cost = case.cost_of(composition)[1]
    verdict: Verdict = "too_big" if all(rule.id == TOO_BIG for rule in forbidding) else "forbidden"
    reasons = [_limit_reason(case, rule, scheme, cost) for rule in forbidding]
    forced_ok = not any(is_absolute(rule) for rule in forbidding)
    return _candidate(case, composition, verdict, reasons, forced_ok=forced_ok)


def _limit_reason(case: Case, rule: Rule, scheme: str, cost: Estimate) -> Reason:
    """A forbidding rule's reason, with the two numbers where it is about a limit."""
    if rule.id == TOO_BIG and (found := _memory_reason(case, cost, scheme)):
        return found
    if rule.id == OVER_BUDGET:
        return budget_reason(cost, case.facts, scheme, rule.id)
    return reason_of(rule, case.ruleset)


def _memory_reason(case: Case, cost: Estimate, scheme: str) -> Reason | None:
    cards, on_cpu = len(case.situation.hardware.gpus), device(case.situation) == "cpu"
    return memory_reason(cost, scheme, TOO_BIG, cards=cards, cpu=on_cpu)


def is_absolute(rule: Rule) -> bool:
    """A forbid that --force never overrides: a company's own, and what cannot run."""
    return rule.layer not in SHIPPED or rule.id == TOO_BIG


def nearest_to_fitting(case: Case, decision: Decision) -> Candidate:
    """Nothing is allowed: of the wanted schemes the one that needs least, so that the way out is
    the shortest.
    """
    return _of_scheme(case, decision, _least_hungry(case, decision))


def _least_hungry(case: Case, decision: Decision) -> str:
    # A company's prohibition is not lifted by memory: only what it allows is "nearest", unless it
    # allows nothing.
    wanted = [scheme for scheme, _ in decision.steps[LAST].wanted if scheme != SMALLER_MODEL]
    forbidden = decision.steps[LAST].forbidden
    allowed = [
        scheme
        for scheme in wanted
        if all(rule.layer in SHIPPED for rule in forbidden.get(scheme, ()))
    ]

    def need(scheme: str) -> tuple[bool, int]:
        cost = case.cost_of(decision.candidate(scheme))[1]
        return bool(cost.refused), cost.memory.need_bytes if cost.memory else 0

    return str(min(allowed or wanted, key=need))
