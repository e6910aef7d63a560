"""advise(situation, rules) -> Advice: one pure function, called again for every what-if.

A situation under rules is a case (case.py), decided table by table (decide.py). Candidates
(candidates.py) come with settings that fit and an estimate (search/), and with why or why not
(why.py, why_not.py); then what would change the answer (flips.py) and, if nothing fits, what to
blame and the ways out (nothing_fits.py). planning.py makes a launch file of a candidate.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.advice.candidates import alternatives, candidate_for, recommended_candidate
from advisor.advice.case import Case
from advisor.advice.decide import LAST, Decision
from advisor.advice.facts import contradictions, situation_facts, unknown_facts
from advisor.advice.flips import find_flips
from advisor.advice.nothing_fits import nothing_fits
from advisor.advice.search.strategies import about_sharing
from advisor.advice.types import Advice, Candidate, GuideAnswer, Reason
from advisor.advice.why import certainty_of
from advisor.ground.errors import InputError
from advisor.ground.units import format_gib
from advisor.methods import objective
from advisor.methods.composition import Composition
from advisor.methods.kernels import never_tried
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import joined, method_words
from advisor.situation.types import Situation


def advise(situation: Situation, ruleset: Ruleset, guide_rules: Ruleset) -> Advice:
    """The answer to a situation. Raises InputError with every contradiction in what was stated."""
    case = open_case(situation, ruleset)
    decision = case.decide()
    case = replace(case, concessions=decision.concessions)
    guide = guide_answer(case.with_rules(guide_rules))
    others = alternatives(case, decision, guide.composition if guide else None)
    recommendation = recommended_candidate(case, decision)
    stuck = nothing_fits(case, decision) if decision.nothing_fits else None
    if stuck is not None:  # with the numbers that rule out even the nearest scheme
        because = (*recommendation.because, *stuck.nearest.because)
        recommendation = replace(recommendation, estimate=stuck.nearest.estimate, because=because)
    flips = find_flips(case, decision)
    return Advice(
        situation=case.situation,
        facts=decision.facts,
        recommendation=recommendation,
        decided_by=tuple(rule.id for rule in decision.rules),
        guide=guide,
        alternatives=others,
        flips=flips,
        unknown=unknown_facts(case.situation, case.facts),
        warnings=_warnings(case, recommendation, decision),
        certainty=certainty_of(decision, recommendation, ruleset, case.facts, flips),
        layers=ruleset.layers,
        rules_digest=ruleset.digest,
        nothing_fits=stuck,
        methods=ruleset.methods or guide_rules.methods,
    )


def open_case(situation: Situation, ruleset: Ruleset) -> Case:
    """The case, with a suggested model if none was named. Raises InputError with contradictions."""
    case = Case.build(situation, ruleset)
    if faults := contradictions(ruleset, situation, situation_facts(situation)):
        raise InputError(faults=faults)
    return case.with_suggestion()


def guide_answer(case: Case) -> GuideAnswer | None:
    """What the guide alone says of the same facts, and its row; None without its layer."""
    if "document" not in case.ruleset.layers:
        return None
    decision = case.decide()
    rows = [
        rule.row
        for rule in decision.rules
        if rule.row.startswith("Scenario") or rule.table in ("chain", LAST)
    ]
    scenarios = [row for row in dict.fromkeys(rows) if row.startswith("Scenario")]
    composition = decision.composition
    if decision.nothing_fits:  # the guide looks at no memory: what it wants stays what it says
        composition = decision.candidate(str(decision.steps[LAST].wanted[0][0]))
    row = "; ".join(scenarios) or (rows[-1] if rows else "")
    return GuideAnswer(composition=composition, row=row)


# --------------------------------------------------------------------------- warnings


NO_MONEY = (
    "a budget of $0 rents nothing: the hardware counts as your own, and its electricity is not"
    " counted"
)
# In the warnings that a page says in another place.
NO_MODEL, MAY_NOT_FIT = "no model was named", "it may not fit"
PART_OF_DATA = "only a part of the data is used"


def _warnings(case: Case, recommendation: Candidate, decision: Decision) -> tuple[str, ...]:
    """Every warning once, those about the wrong data first."""
    situation, table = case.situation, decision.steps.get("data_amount")
    rules = [rule for judgement in decision.steps.values() for rule in judgement.warnings]
    for stage in recommendation.stages:
        rules += case.costs.stage(recommendation.composition, stage.objective).warnings()
    found = dict.fromkeys(
        (
            *situation.misfits,
            *(_text_of(rule) for rule in (table.warnings if table else ())),
            *_too_few(situation, recommendation.composition),
            *situation.warnings,
            *situation.model_warnings,
            *([NO_MONEY] if situation.answers.value("budget_usd") == 0 else []),
            *_candidate_warnings(situation, recommendation),
            *map(_text_of, rules),
        )
    )
    return tuple(one for one in found if not any(f": {one}" in other for other in found))


def _text_of(rule: Rule) -> str:
    return f"{rule.then['say']} ({rule.id})"


def _candidate_warnings(situation: Situation, candidate: Candidate) -> list[str]:
    """Warnings about this candidate on this machine."""
    warnings = list(candidate.estimate.memory.warnings) if candidate.estimate.memory else []
    if not candidate.composition.chain:
        return warnings
    if situation.suggestion is not None:
        model, why = situation.suggestion.model, situation.suggestion.because
        warnings.append(f"{NO_MODEL}: {model} is a suggestion ({why})")
    if situation.free_gpus:
        if not any(situation.answers.value(name) for name in ("gpu", "gpu_memory_gib")):
            warnings.append(
                "no GPU was stated, and none was found here: the answer is for this machine's CPU;"
                " --gpu says which one will be used, --gpu unknown leaves it open"
            )
        warnings.append(
            f"a GPU is many times faster than a CPU, and some cost nothing: {situation.free_gpus}"
        )
    warnings += never_tried(situation.hardware.kind, candidate.composition.quantization)
    return [
        *warnings,
        *about_sharing(candidate, situation.hardware),
        *_given_up(candidate),
        *_too_few(situation, candidate.composition),
        *_long_rows(situation, candidate),
    ]


def _given_up(candidate: Candidate) -> list[str]:
    """What is left of the data, and what may not fit."""
    left_out: dict[str, list[str]] = {}
    for stage in candidate.stages:
        if stage.left_out:
            left_out.setdefault(stage.left_out, []).append(method_words(stage.objective))
    found = [f"{joined(names)}: {rows}" for rows, names in left_out.items()]
    for stage in candidate.stages:
        if (part := stage.part) is None:
            continue
        name, too_few = method_words(stage.objective), objective(stage.objective).amounts or {}
        found.append(
            f"{name}: {PART_OF_DATA}, {part.text}: all of it would take {part.whole}, and the limit"
            f" is {part.limit}"
        )
        if part.rows is not None and part.rows < (least := too_few.get("too_few") or 0):
            found.append(
                f"{name}: {part.rows:,} rows are too few to learn much from ({least:,} at least):"
                " more money or time, or a smaller model, would pay for more"
            )
    cost = candidate.estimate
    if cost.fits == "may_fit" and cost.memory is not None and cost.limit_bytes is not None:
        sizes = (cost.memory.need_bytes, cost.memory.need_low_bytes, cost.memory.need_high_bytes)
        need, low, high = map(format_gib, sizes)
        found.append(
            f"{MAY_NOT_FIT}: it needs {need} by the estimate (between {low} and {high}), and there"
            f" are {format_gib(cost.limit_bytes)}; `advise run` with --dry-run measures the longest"
            " batch, about a minute once the model is downloaded, and trains nothing"
        )
    return found


def _too_few(situation: Situation, composition: Composition) -> list[str]:
    """For each stage that wants more data than there are."""
    named = ["classification"] if composition.encoder else composition.chain
    return [
        f"{method_words(name)}: {situation.shortages[name]}"
        for name in named
        if name in situation.shortages
    ]


def _long_rows(situation: Situation, recommendation: Candidate) -> list[str]:
    """Rows as stated that are longer than what a stage reads, which no estimate counts."""
    rows, tokens = situation.answers.value("data_rows"), situation.answers.value("data_tokens")
    if not rows or not tokens or situation.data is not None or situation.tasks:
        return []
    found, kind = [], situation.answers.value("data_kind")
    for stage in recommendation.stages:
        method = objective(stage.objective)
        if method.splits_documents or (kind and kind not in method.trains_on):
            continue  # documents are parted, or the rows are those of another stage
        length = int(stage.settings["seq_len"].value) * method.sequences_per_row
        if tokens / rows > length:
            found.append(
                f"{method_words(stage.objective)}: rows of {tokens / rows:,.0f} tokens on average"
                f" are longer than the {length:,} that are read: time and cost count no"
                " more, and a run stops at such rows unless `truncation` says drop or truncate"
            )
    return found


# --------------------------------------------------------------------------- another candidate


def candidate_of(
    advice: Advice, ruleset: Ruleset, composition: Composition, *, offload: bool = False
) -> Candidate:
    """Any composition as a candidate to choose; `offload`: parts may lie in host memory."""
    case = Case.build(advice.situation, ruleset)
    decision = case.decide()
    given_up = decision.concessions
    case = replace(case, concessions=replace(given_up, offload=offload or given_up.offload))
    otherwise = [Reason(text="no rule recommends it here")]
    found = candidate_for(case, decision, composition, otherwise)
    return replace(found, ways=case.ways_of(composition))


BY_HAND = "recommended, but another one was chosen by hand"


def with_choice(advice: Advice, chosen: Candidate) -> Advice:
    """The same advice about another of its candidates, for --choose."""
    first = advice.recommendation
    because = (Reason(text=BY_HAND), *first.because)
    old = replace(first, verdict="ranked_lower", because=because)
    others = (one for one in advice.alternatives if one is not chosen)
    of_old = _candidate_warnings(advice.situation, first)
    kept = (warning for warning in advice.warnings if warning not in of_old)
    return replace(
        advice,
        recommendation=chosen,
        alternatives=(old, *others),
        nothing_fits=None,
        warnings=(*kept, *_candidate_warnings(advice.situation, chosen)),
    )
