"""advise(situation, rules) -> Advice: one pure function, called again for every what-if.

The rule tables in their order (decide.py), candidates with settings that fit and an estimate
(candidates.py), what would change the answer (flips.py), and where nothing fits, what stands in the
way (nothing_fits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.advice.facts_of_situation import fact_origin, situation_facts, unknown_facts
from advisor.advice.types import Advice, Candidate, Flip, GuideAnswer, Reason
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import DDP, FSDP, Hardware
from advisor.methods import objective, schemes
from advisor.methods.composition import Composition, compose
from advisor.ruleset.judge import judge
from advisor.ruleset.model import Ruleset
from advisor.situation.types import Situation

from .candidates import Costs, alternatives, candidate_for, recommended_candidate
from .confidence import confidence
from .decide import LAST, SMALLER_MODEL, Decision, conclude, conclude_early
from .flips import find_flips
from .nothing_fits import nothing_fits


def advise(situation: Situation, ruleset: Ruleset, guide_rules: Ruleset) -> Advice:
    """The answer to a situation.

    Args:
        situation: Everything known of machine, answers, data and model.
        ruleset: The rules that decide.
        guide_rules: The document layer alone, for "what the guide says".

    Raises InputError with every contradiction in what was stated.
    """
    base = situation_facts(situation)
    if faults := contradictions(ruleset, situation, base):
        raise InputError(faults=faults)
    early = conclude_early(ruleset, base)
    situation = _with_encoder(situation, early)
    costs = Costs(ruleset=ruleset, situation=situation, facts=base)
    decision = _conclude(ruleset, early, costs)
    guide = guide_answer(guide_rules, base, costs)
    recommendation = recommended_candidate(ruleset, decision, costs)
    stuck = None
    if SMALLER_MODEL in decision.composition.remedies:
        stuck = nothing_fits(ruleset, situation, decision, costs, _redecide, situation.smaller)
        # The numbers that rule out even the nearest scheme belong to the answer.
        recommendation = replace(
            recommendation,
            estimate=stuck.nearest.estimate,
            because=(*recommendation.because, *stuck.nearest.because),
        )
    flips = _flips(ruleset, situation, base, decision, costs)
    return Advice(
        situation=situation,
        facts=decision.facts,
        recommendation=recommendation,
        decided_by=tuple(rule.id for rule in decision.rules),
        guide=guide,
        alternatives=alternatives(ruleset, decision, costs, guide.composition if guide else None),
        flips=flips,
        unknown=unknown_facts(situation, base),
        warnings=(*situation.warnings, *_warnings(situation, recommendation, decision)),
        confidence=confidence(decision, recommendation, ruleset, base, flips),
        layers=ruleset.layers,
        rules_digest=ruleset.digest,
        nothing_fits=stuck,
        methods=ruleset.methods or guide_rules.methods,
    )


def contradictions(ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> list[Fault]:
    """What was stated together though it cannot be (rules/facts.yaml, `assume`)."""
    faults = []
    for found in ruleset.contradictions(facts):
        named = [condition.fact for condition in found.never]
        said = " and ".join(
            f"{name} is {'yes' if facts[name] is True else facts[name]}"
            f" ({fact_origin(situation, name)})"
            for name in named
        )
        of_model = any(ruleset.facts[name].origin == "model" for name in named)
        hint = (
            f"name another model, such as {situation.instead.model}"
            if of_model and situation.instead is not None
            else "take one of them back"
        )
        faults.append(Fault(what=f"{said}: this cannot be", allowed=found.because, hint=hint))
    return faults


def _with_encoder(situation: Situation, early: Decision) -> Situation:
    """The small encoder takes the place of a suggested model where the rules want one; a named
    model stays.
    """
    if (
        early.facts.get("architecture") != "encoder"
        or situation.suggestion is None
        or situation.encoder is None
    ):
        return situation
    shape, suggestion = situation.encoder
    return replace(situation, model=shape, suggestion=suggestion)


def _conclude(ruleset: Ruleset, early: Decision, costs: Costs) -> Decision:
    return conclude(
        ruleset,
        early,
        costs.fits(str(early.facts["chain"]), per_task=early.facts["adapters_per"] == "task"),
    )


def _redecide(situation: Situation, changes: Mapping[str, Any], ruleset: Ruleset) -> Decision:
    """The decision in another situation; a change to None takes a fact away."""
    facts = {
        key: value
        for key, value in {**situation_facts(situation), **changes}.items()
        if value is not None
    }
    return _conclude(
        ruleset,
        conclude_early(ruleset, facts),
        Costs(ruleset=ruleset, situation=situation, facts=facts),
    )


def guide_answer(guide_rules: Ruleset, base: Mapping[str, Any], costs: Costs) -> GuideAnswer | None:
    """What the document layer alone says of the same facts, and its row."""
    if "document" not in guide_rules.layers:
        return None
    decision = _conclude(guide_rules, conclude_early(guide_rules, base), costs)
    rows = [
        rule.row
        for rule in decision.rules
        if rule.row.startswith("Scenario") or rule.table in ("chain", LAST)
    ]
    scenarios = [row for row in dict.fromkeys(rows) if row.startswith("Scenario")]
    composition = decision.composition
    if (
        SMALLER_MODEL in composition.remedies
    ):  # the guide looks at no memory: what it wants stays what it says
        composition = compose(
            str(decision.facts["chain"]),
            str(decision.steps[LAST].wanted[0][0]),
            per_task=decision.facts["adapters_per"] == "task",
        )
    return GuideAnswer(
        composition=composition, row="; ".join(scenarios) or (rows[-1] if rows else "")
    )


# --------------------------------------------------------------------------- what goes with it


def _flips(
    ruleset: Ruleset,
    situation: Situation,
    base: Mapping[str, Any],
    decision: Decision,
    costs: Costs,
) -> tuple[Flip, ...]:
    def answer(changes: Mapping[str, Any]) -> Composition:
        return _conclude(ruleset, conclude_early(ruleset, {**base, **changes}), costs).composition

    per_task = decision.facts["adapters_per"] == "task"
    of_scheme = {
        scheme: costs.of(compose(str(decision.facts["chain"]), scheme, per_task=per_task))
        for scheme in schemes()
    }

    def elsewhere(hardware: Hardware) -> Composition:
        return _redecide(replace(situation, hardware=hardware), {}, ruleset).composition

    return find_flips(ruleset, situation, decision, of_scheme, answer, elsewhere)


def _warnings(situation: Situation, recommendation: Candidate, decision: Decision) -> list[str]:
    said = [rule for judgement in decision.steps.values() for rule in judgement.warnings]
    return [
        *_candidate_warnings(situation, recommendation),
        *(f"{rule.then['say']} ({rule.id})" for rule in said),
    ]


def _candidate_warnings(situation: Situation, candidate: Candidate) -> list[str]:
    """What is to know of this candidate on this machine."""
    warnings = list(candidate.estimate.memory.warnings) if candidate.estimate.memory else []
    if not candidate.composition.chain:
        return warnings
    if situation.suggestion is not None:
        warnings.append(
            f"no model was named: {situation.suggestion.model} is a suggestion"
            f" ({situation.suggestion.because})"
        )
    cards = len(situation.hardware.gpus)
    if any(stage.split for stage in candidate.stages):
        warnings.append(
            f"the model is split over the {cards} cards ({FSDP}), which `advise run` does not"
            f" start: it starts one process, or {DDP} with a whole model on each card"
        )
    elif cards > 1:
        warnings.append(
            f"all {cards} cards are used: each holds the whole model and its own rows ({DDP})"
        )
    return [
        *warnings,
        *_too_few(situation, candidate.composition),
        *_long_rows(situation, candidate),
    ]


def _too_few(situation: Situation, composition: Composition) -> list[str]:
    """For each stage that wants more data than there are."""
    named = ["classification"] if composition.encoder else composition.chain
    return [
        f"{objective}: {situation.shortages[objective]}"
        for objective in named
        if objective in situation.shortages
    ]


def _long_rows(situation: Situation, recommendation: Candidate) -> list[str]:
    """Where rows as stated are longer than what a stage reads: neither time nor cost counts the
    rest.
    """
    rows, tokens = situation.answers.value("data_rows"), situation.answers.value("data_tokens")
    if not rows or not tokens or situation.data is not None or situation.tasks:
        return []
    found = []
    for stage in recommendation.stages:
        length = int(stage.settings["seq_len"].value) * objective(stage.objective).sequences_per_row
        if (
            not objective(stage.objective).splits_documents and tokens / rows > length
        ):  # documents are parted
            found.append(
                f"{stage.objective}: rows of {tokens / rows:,.0f} tokens on average are longer than"
                f" the {length:,} that are read: time and cost count no more, and a run stops at"
                " such rows unless `truncation` says drop or truncate"
            )
    return found


def stage_warnings(ruleset: Ruleset, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What the settings table warns of for one stage's facts."""
    return tuple(
        f"{rule.then['say']} ({rule.id})" for rule in judge(ruleset, "settings", facts).warnings
    )


def candidate_of(advice: Advice, ruleset: Ruleset, composition: Composition) -> Candidate:
    """Any composition in the situation of an advice, as a candidate to choose."""
    base = situation_facts(advice.situation)
    costs = Costs(ruleset=ruleset, situation=advice.situation, facts=base)
    decision = _conclude(ruleset, conclude_early(ruleset, base), costs)
    return candidate_for(
        ruleset, decision, costs, composition, (Reason(text="no rule recommends it here"),)
    )


def with_choice(advice: Advice, chosen: Candidate) -> Advice:
    """The same advice about another of its candidates, for --choose."""
    others = [
        advice.recommendation,
        *(candidate for candidate in advice.alternatives if candidate is not chosen),
    ]
    old = replace(
        others[0],
        verdict="ranked_lower",
        because=(
            Reason(text="recommended, but another one was chosen by hand"),
            *others[0].because,
        ),
    )
    of_old = _candidate_warnings(advice.situation, advice.recommendation)
    warnings = (
        *(warning for warning in advice.warnings if warning not in of_old),
        *_candidate_warnings(advice.situation, chosen),
    )
    return replace(
        advice,
        recommendation=chosen,
        alternatives=(old, *others[1:]),
        nothing_fits=None,
        warnings=warnings,
    )
