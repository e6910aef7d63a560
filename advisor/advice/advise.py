"""advise(situation, rules) -> Advice: one pure function, called again for every what-if.

gate (train at all?) -> one module or many -> chain -> schemes left open -> candidates, each with settings that fit and an
estimate -> coarse facts -> the scheme, by rule -> Advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.composition import SCHEMES, composed
from advisor.ruleset.judge import Judgement, judge
from advisor.ruleset.model import Rule, Ruleset
from advisor.types import Advice, Candidate, Composition, Estimate, Flip, GuideAnswer, Reason, Situation, StageSettings, Verdict

from .explain import budget_reason, memory_reason, reason_of, why_not_outcome
from .fit import coarse_fit, fitted
from .flips import flips_of
from .seen import device, situation_facts, unknown_facts

GUIDE_CHAINS = ("sft", "cpt>sft", "sft>rm>ppo")  # every objective the guide names stands in one of them
REMEDIES_OF_GATE = {  # what a gate's conclusion means in a composition: remedies, and whether training goes with them
    "train": ((), True),
    "rag": (("rag",), False),
    "rag_and_train": (("rag",), True),
    "prompting": (("prompting",), False),
    "prompting_and_rag": (("prompting", "rag"), False),
    "tool_use": (("tool_use",), False),
    "bigger_model": (("bigger_model",), False),
    "smaller_model": (("smaller_model",), False),
    "constrained_decoding": (("constrained_decoding",), False),
}
NOTHING = Estimate(fits="unknown")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the tables conclude, each with its judgement; `facts` grows from table to table."""

    facts: Mapping[str, Any]
    steps: Mapping[str, Judgement]
    composition: Composition
    rules: tuple[Rule, ...]  # the winning rule of each step, in order


def advise(situation: Situation, ruleset: Ruleset, guide_rules: Ruleset) -> Advice:
    """The answer to a situation.

    Args:
        situation: Everything known of machine, answers, data and model.
        ruleset: The rules that decide.
        guide_rules: The document layer alone, for "what the guide says".
    """
    base = situation_facts(situation)
    early = conclude_early(ruleset, base)
    costs = scheme_costs(ruleset, situation, early)
    decision = conclude(ruleset, early, costs)
    recommendation = _recommended(ruleset, situation, decision, costs)
    alternatives = _alternatives(ruleset, situation, decision, costs)
    guide = guide_answer(guide_rules, base, costs)
    return Advice(
        situation=situation,
        facts=decision.facts,
        recommendation=recommendation,
        decided_by=tuple(rule.id for rule in decision.rules),
        guide=guide,
        alternatives=alternatives,
        flips=_flips(ruleset, situation, decision, costs),
        unknown=unknown_facts(situation, base),
        warnings=(*situation.warnings, *_warnings(situation, recommendation)),
        confidence=_confidence(decision, recommendation),
        layers=ruleset.layers,
        rules_digest=ruleset.digest,
        methods=ruleset.methods or guide_rules.methods,
    )


# --------------------------------------------------------------------------- deciding


def conclude_early(ruleset: Ruleset, base: Mapping[str, Any]) -> Decision:
    """The steps that need no estimate: gate, modules, chain and the schemes left open."""
    facts = dict(base)
    steps: dict[str, Judgement] = {}
    rules: list[Rule] = []
    for table in ("gate", "modules", "chain", "open_schemes"):
        judgement = judge(ruleset, table, facts)
        steps[table] = judgement
        winner = judgement.winner or (judgement.wanted[0] if judgement.wanted else None)
        if winner is None:  # the linter proves that this cannot happen for the shipped rules
            continue
        facts[ruleset.tables[table].concludes] = winner[0]
        rules.append(winner[1])
    return Decision(facts=facts, steps=steps, composition=Composition(), rules=tuple(rules))


Costs = Mapping[str, tuple[tuple[StageSettings, ...], Estimate]]  # scheme -> stages and estimate


def scheme_costs(ruleset: Ruleset, situation: Situation, early: Decision) -> Costs:
    """Every scheme on the concluded chain, with settings that fit and its estimate."""
    chain, per_task = str(early.facts["chain"]), early.facts["modules"] == "per_task"
    return {scheme: fitted(ruleset, situation, early.facts, composed(chain, scheme, per_task=per_task)) for scheme in SCHEMES}


def conclude(ruleset: Ruleset, early: Decision, costs: Costs) -> Decision:
    """The scheme, and with it the composition. Where nothing fits, the scheme that would be wanted."""
    facts = {**early.facts, **{f"fits_{scheme}": coarse_fit(cost, early.facts) for scheme, (_, cost) in costs.items()}}
    judgement = judge(ruleset, "scheme", facts)
    winner = judgement.winner or _least_hungry(judgement, costs)
    facts["scheme"] = winner[0]
    remedies, trains = REMEDIES_OF_GATE[str(facts["gate"])]
    if trains:
        per_task = facts["modules"] == "per_task"
        composition = composed(str(facts["chain"]), winner[0], per_task=per_task, remedies=remedies)
        # "Train" and "one model" go without saying; anything else is a reason.
        unsaid = {"gate"} if facts["gate"] == "train" else set()
        unsaid |= set() if per_task else {"modules"}
        rules = (*(rule for rule in early.rules if rule.table not in unsaid), winner[1])
    else:
        composition = Composition(remedies=remedies)
        rules = early.rules[:1]
    return Decision(facts=facts, steps={**early.steps, "scheme": judgement}, composition=composition, rules=rules)


def _least_hungry(judgement: Judgement, costs: Costs) -> tuple[str, Rule]:
    """Nothing is allowed: of the wanted schemes the one that needs least, so that the way out is the shortest."""

    def need(entry: tuple[str, Rule]) -> int:
        memory = costs[entry[0]][1].memory
        return memory.peak_bytes if memory else 0

    return min(judgement.wanted, key=need)


def guide_answer(guide_rules: Ruleset, base: Mapping[str, Any], costs: Costs) -> GuideAnswer | None:
    """What the document layer alone says of the same facts, and its row."""
    if "document" not in guide_rules.layers:
        return None
    decision = conclude(guide_rules, conclude_early(guide_rules, base), costs)
    rows = [rule.row for rule in decision.rules if rule.row.startswith("Scenario") or rule.table in ("chain", "scheme")]
    scenarios = [row for row in dict.fromkeys(rows) if row.startswith("Scenario")]
    return GuideAnswer(composition=decision.composition, row="; ".join(scenarios) or rows[-1])


# --------------------------------------------------------------------------- the candidates


def _recommended(ruleset: Ruleset, situation: Situation, decision: Decision, costs: Costs) -> Candidate:
    because = [reason_of(rule, ruleset) for rule in decision.rules]
    if not decision.composition.chain:
        return Candidate(composition=decision.composition, stages=(), estimate=NOTHING, verdict="recommended", because=tuple(because))
    scheme = str(decision.facts["scheme"])
    stages, cost = costs[scheme]
    if cost.fits == "too_big":
        reason = memory_reason(cost, scheme, f"base/{scheme}-too-big", cards=len(situation.hardware.gpus), cpu=device(situation) == "cpu")
        because.extend([reason] if reason else [])
    return Candidate(composition=decision.composition, stages=stages, estimate=cost, verdict="recommended", because=tuple(because))


def _alternatives(ruleset: Ruleset, situation: Situation, decision: Decision, costs: Costs) -> tuple[Candidate, ...]:
    """Every other scheme on the same chain, best first, then the guide's other chains with the chosen scheme."""
    facts, per_task = decision.facts, decision.facts["modules"] == "per_task"
    chain, chosen = str(facts["chain"]), str(facts["scheme"])
    judgement = decision.steps["scheme"]
    order = [scheme for scheme, _ in judgement.ranking] + [scheme for scheme in SCHEMES if scheme in judgement.forbidden]
    trains = bool(decision.composition.chain)
    result = []
    for scheme in dict.fromkeys([*order, *SCHEMES]):
        if trains and scheme == chosen:
            continue
        stages, cost = costs[scheme]
        verdict, because, forced_ok = _scheme_verdict(ruleset, situation, judgement, scheme, cost, facts)
        composition = composed(chain, scheme, per_task=per_task, remedies=decision.composition.remedies if trains else ())
        result.append(Candidate(composition=composition, stages=stages, estimate=cost, verdict=verdict, because=because, forced_ok=forced_ok))
    for other in GUIDE_CHAINS:
        if other == chain:
            continue
        composition = composed(other, chosen, per_task=per_task)
        stages, cost = fitted(ruleset, situation, facts, composition)
        forbidden = decision.steps["chain"].forbidden.get(other, ())
        because = tuple(why_not_outcome(decision.steps["chain"], other, facts, ruleset))
        result.append(
            Candidate(
                composition=composition, stages=stages, estimate=cost, verdict="forbidden" if forbidden else "ranked_lower", because=because,
                forced_ok=not any(_absolute(rule) for rule in forbidden),
            )
        )  # fmt: skip
    return tuple(result)


def _scheme_verdict(
    ruleset: Ruleset, situation: Situation, judgement: Judgement, scheme: str, cost: Estimate, facts: Mapping[str, Any]
) -> tuple[Verdict, tuple[Reason, ...], bool]:
    forbidding = judgement.forbidden.get(scheme, ())
    reasons: list[Reason] = []
    for rule in forbidding:
        if rule.id.endswith("-too-big"):
            found = memory_reason(cost, scheme, rule.id, cards=len(situation.hardware.gpus), cpu=device(situation) == "cpu")
            reasons.append(found or reason_of(rule, ruleset))
        elif rule.id.endswith("-over-budget"):
            reasons.append(budget_reason(cost, facts, scheme, rule.id))
        else:
            reasons.append(reason_of(rule, ruleset))
    if not forbidding:
        return "ranked_lower", tuple(why_not_outcome(judgement, scheme, facts, ruleset)), True
    only_size = all(rule.id.endswith("-too-big") for rule in forbidding)
    return ("too_big" if only_size else "forbidden"), tuple(reasons), not any(_absolute(rule) for rule in forbidding)


def _absolute(rule: Rule) -> bool:
    """A forbid that --force never overrides: a company's own, and what cannot run."""
    return rule.layer not in ("base", "document", "evidence") or rule.id.endswith("-too-big")


# --------------------------------------------------------------------------- what goes with it


def _flips(ruleset: Ruleset, situation: Situation, decision: Decision, costs: Costs) -> tuple[Flip, ...]:
    def answer(changes: Mapping[str, Any]) -> Composition:
        early = conclude_early(ruleset, {**_asked(decision.facts), **changes})
        return conclude(ruleset, early, costs).composition

    return flips_of(ruleset, situation, decision.facts, decision.composition, costs, answer)


def _asked(facts: Mapping[str, Any]) -> dict[str, Any]:
    concluded = {"gate", "modules", "chain", "open_schemes", "scheme"}
    return {fact_id: value for fact_id, value in facts.items() if fact_id not in concluded and not fact_id.startswith("fits_")}


def _warnings(situation: Situation, recommendation: Candidate) -> list[str]:
    warnings = list(recommendation.estimate.memory.warnings) if recommendation.estimate.memory else []
    cards = len(situation.hardware.gpus)
    if cards > 1 and recommendation.composition.chain:
        strategy = recommendation.stages[0].settings["sharding"].value
        warnings.append(f"all {cards} cards are used: {'each holds the whole model and its own rows (ddp)' if strategy == 'ddp' else 'the model is split over them (fsdp)'}")
    return warnings


def _confidence(decision: Decision, recommendation: Candidate) -> str:
    """How sure, in words: as sure as the weakest rule that decided, less where facts are missing."""
    grades = {"document": "the guide's own rows", "study": "measured studies", "vendor-doc": "vendors' documentation", "practice": "common practice", "judgement": "our judgement"}
    order = list(grades)
    weakest = max((rule.confidence for rule in decision.rules), key=order.index, default="judgement")
    unsure = recommendation.estimate.unknown
    text = f"rests on {grades[weakest]}"
    return text + (f"; not known: {'; '.join(unsure)}" if unsure else "")


def with_choice(advice: Advice, chosen: Candidate) -> Advice:
    """The same advice about another of its candidates, for --choose."""
    others = [advice.recommendation, *(candidate for candidate in advice.alternatives if candidate is not chosen)]
    old = replace(others[0], verdict="ranked_lower", because=(Reason(text="recommended, but another one was chosen by hand"), *others[0].because))
    return replace(advice, recommendation=replace(chosen, verdict=chosen.verdict), alternatives=(old, *others[1:]))
