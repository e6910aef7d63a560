"""advise(situation, rules) -> Advice: one pure function, called again for every what-if.

A situation under rules is a case, decided table by table (case.py). Its candidates, the
recommendation and every other composition, come with settings that fit and an estimate (search/),
and with why or why not (why.py, why_not.py); then what would change the answer and, if nothing
fits, what to blame and the ways out (flips.py, nothing_fits.py). planning.py makes a launch file of
a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import LAST, SHIPPED, SMALLER_MODEL, Case, Decision
from advisor.advice.facts import contradictions, situation_facts, unknown_facts
from advisor.advice.flips import cheapest_holding, edges_near, find_flips, one_card, what_ifs
from advisor.advice.search.fit import coarse_fit
from advisor.advice.search.settings import JUDGED, needs_examples
from advisor.advice.search.strategies import about_sharing
from advisor.advice.types import Advice, Candidate, GuideAnswer, Reason, Verdict
from advisor.advice.why import (
    budget_reason,
    certainty_of,
    memory_reason,
    reason_of,
    reasons_of,
    rules_that_differ,
    sizes_of_pair,
)
from advisor.advice.why_not import LosingOutcome
from advisor.estimate.memory.peak import ON_PROCESSOR
from advisor.estimate.types import Assumed, Estimate
from advisor.ground.errors import refuse
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.units import format_gib
from advisor.methods import methods, objective, schemes
from advisor.methods.composition import Composition, compose
from advisor.methods.kernels import never_tried
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import joined, method_words
from advisor.situation.types import Situation


def advise(situation: Situation, ruleset: Ruleset, guide_rules: Ruleset) -> Advice:
    """The answer to a situation. Raises InputError with every contradiction in what was stated."""
    case = open_case(situation, ruleset)
    decision = case.decision
    case = replace(case, concessions=decision.concessions)
    guide = guide_answer(case.with_rules(guide_rules))
    others = alternatives(case, decision, guide.composition if guide else None)
    recommendation = recommended_candidate(case, decision)
    stuck = None
    if decision.nothing_fits:
        # The wanted scheme that needs least: from there the way out is shortest.
        nearest = _of_scheme(case, decision, _least_hungry(case, decision))
        from advisor.advice.nothing_fits import nothing_fits  # few answers need it

        stuck = nothing_fits(case, decision, nearest)
    if stuck is not None:  # with the numbers that rule out even the nearest scheme
        because = (*stuck.nearest.because, *recommendation.because)
        recommendation = replace(recommendation, estimate=stuck.nearest.estimate, because=because)
    flips = find_flips(case, decision)
    priced = (recommendation, None, None) if stuck else _priced(case, recommendation, others)
    recommendation, rented, instead = priced
    return Advice(
        situation=case.situation,
        facts=decision.facts,
        recommendation=recommendation,
        decided_by=tuple(rule.id for rule in decision.rules),
        guide=guide,
        alternatives=others,
        flips=what_ifs(case, decision, flips),
        unknown=unknown_facts(case.situation, case.facts),
        warnings=_warnings(case, recommendation, decision),
        certainty=certainty_of(decision, recommendation, case, flips, edges_near(case, decision)),
        layers=ruleset.layers,
        rules_digest=ruleset.digest,
        nothing_fits=stuck,
        rent=rented,
        rent_instead=instead,
        methods=ruleset.methods or guide_rules.methods,
    )


def open_case(situation: Situation, ruleset: Ruleset) -> Case:
    """The case, with a suggested model if none was named. Raises InputError with contradictions."""
    case = Case.build(situation, ruleset)
    refuse(contradictions(ruleset, situation, situation_facts(situation)))
    return case.with_suggestion()


def _priced(case: Case, candidate: Candidate, others: Iterable[Candidate] = ()) -> Any:
    """The candidate, where to rent for it, and what keeps the limits if it does not."""
    counted, assumed = _with_usual_rows(case.situation, case.ruleset, candidate.composition)
    limits = (case.facts.get("budget_usd"), case.facts.get("budget_hours"))
    spends = case.situation.answers.value("budget_usd") != 0
    rented, instead = None, None
    if case.situation.rentals and spends and any(limits):
        from advisor.advice.rent import rents  # few answers need it

        there = Case.build(counted, case.ruleset) if assumed else case
        rented, instead = rents(there, candidate.composition, (one.composition for one in others))
    if not rented:
        return _with_assumed_cost(case, candidate, counted, assumed), rented, instead
    known = replace(candidate.estimate, assumed=tuple(assumed))
    return replace(candidate, estimate=known), rented, instead


ROWS = 1000  # a round number, for what costs in proportion to them


def _with_usual_rows(
    situation: Situation, ruleset: Ruleset, composition: Composition
) -> tuple[Situation, list[Assumed]]:
    """The situation with rows and tokens that nobody stated, and what is assumed of them."""
    if not composition.chain or situation.tasks:
        return situation, []
    amounts, assumed = objective(composition.chain[0]).amounts or {}, list[Assumed]()
    rows, tokens = situation.answers.value("data_rows"), situation.answers.value("data_tokens")
    if (data := situation.data) is not None:
        rows, tokens = data.rows, data.tokens.total if data.tokens is not None else tokens
    if not (each := amounts.get("row_tokens")) or (rows and tokens):
        return situation, []
    if not (rows or tokens):
        assumed.append(Assumed("rows", ROWS, "a round number: the cost grows with it"))
    assumed.append(Assumed("tokens a row", each, ruleset.sources[amounts["row_source"]].title))
    rows = rows or (max(1, round(tokens / each)) if tokens else ROWS)
    counted = {"data_rows": rows, "data_tokens": tokens or rows * each}
    known = {name: Answer(value=one, origin="default") for name, one in counted.items()}
    known = {**situation.answers.known, **known}
    return replace(situation, answers=AnswerSet(known=known)), assumed


def _with_assumed_cost(
    case: Case, candidate: Candidate, situation: Situation, assumed: list[Assumed]
) -> Candidate:
    """The candidate with time and cost, counted with usual rows and a rented card; nothing else."""
    estimate, hardware = candidate.estimate, situation.hardware
    if estimate.duration_s is not None or not candidate.composition.chain or situation.tasks:
        return candidate
    if hardware.kind == "unknown":
        cards = tuple(card for card in situation.rentals if card.bf16)
        card = cheapest_holding(replace(case.situation, cards=cards), candidate.stages)
        if card is None:
            return candidate
        hardware = one_card(card)
        why = f"the cheapest that holds it; {card.price_note}"
        assumed = [*assumed, Assumed("gpu", card.name, why)]
    elif situation.like is not None:
        hardware, why = one_card(situation.like), "the slowest of this memory for a home"
        assumed = [*assumed, Assumed("gpu", situation.like.name, why)]
    there = Case.build(replace(situation, hardware=hardware), case.ruleset)
    found = there.cost_of(candidate.composition).cost
    if found.duration_s is None or not assumed:
        return candidate
    names = ("duration_s", "times", "cost_usd", "cost_note", "read")
    priced = {name: getattr(found, name) for name in names}
    return replace(candidate, estimate=replace(estimate, **priced, assumed=tuple(assumed)))


def guide_answer(case: Case) -> GuideAnswer | None:
    """What the guide alone says of the same facts, and its row; None without its layer."""
    if "document" not in case.ruleset.layers:
        return None
    decision = case.decision
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
    " counted; if it was '$20' in double quotes, a shell took the $2 away: write usd=20"
)
# In the warnings that a page says in another place.
NO_MODEL, MAY_NOT_FIT = "no model was named", "it may not fit"
PART_OF_DATA = "only a part of the data is used"


def _warnings(case: Case, recommendation: Candidate, decision: Decision) -> tuple[str, ...]:
    """Every warning once, those about the wrong data first; without those that are about how to
    train, if nothing is trained: of the steps that decide it, of the model, of the run.
    """
    situation, table = case.situation, decision.steps.get("data_amount")
    trains, steps = bool(recommendation.composition.chain), [*case.ruleset.tables]
    before = steps if trains else steps[: steps.index("train_decision")]
    judged = (decision.steps[name] for name in before if name in decision.steps)
    rules = [rule for judgement in judged for rule in judgement.warnings]
    for stage in recommendation.stages:
        one = case.costs.stage(recommendation.composition, stage.stage.objective)
        rules += replace(one, engine=stage.engine).warnings()
    # What the plan does already is no advice.
    done = {
        key for stage in recommendation.stages for key, one in stage.reasons.items() if one.value
    }
    rules = [rule for rule in rules if rule.then.get("done_by") not in done]
    found = dict.fromkeys(
        (
            *situation.misfits,
            *(_text_of(rule) for rule in (table.warnings if table else ())),
            *_too_few(situation, recommendation.composition),
            *situation.warnings,
            *(situation.model_warnings if trains else ()),
            *([NO_MONEY] if situation.answers.value("budget_usd") == 0 else []),
            *_candidate_warnings(situation, recommendation),
            *_smaller(case, recommendation),
            *map(_text_of, rules),
        )
    )
    return tuple(one for one in found if not any(f": {one}" in other for other in found))


def _smaller(case: Case, candidate: Candidate) -> list[str]:
    """Which model surely fits, where it is not known of this one."""
    if candidate.estimate.fits != "may_fit" or case.situation.suggestion is not None:
        return []
    from advisor.advice.nothing_fits import smaller_that_fits  # few answers need it

    found = smaller_that_fits(case)
    return [f"if it does not fit: {found[1]} (--model)"] if found else []


def _text_of(rule: Rule) -> str:
    return f"{rule.then['say']} ({rule.id})"


def _candidate_warnings(situation: Situation, candidate: Candidate) -> list[str]:
    if not candidate.composition.chain:
        return []
    warnings = list(candidate.estimate.memory.warnings) if candidate.estimate.memory else []
    if situation.suggestion is not None:
        model, why = situation.suggestion.model, situation.suggestion.because
        warnings.append(f"{NO_MODEL}: {model} is a suggestion ({why})")
    if situation.free_gpus:
        free = f"GPUs that cost nothing: {situation.free_gpus}"
        if not any(situation.answers.value(name) for name in ("gpu", "gpu_memory_gib")):
            free = (  # in place of ON_PROCESSOR alone
                f"no GPU was stated, and none was found here: {ON_PROCESSOR} ({free}); --gpu says"
                " which one will be used, --gpu unknown leaves it open"
            )
        warnings.append(free)
    if _unread_examples(situation, ">".join(candidate.composition.chain)):
        assert situation.examples is not None
        both, path = f"sft>{'>'.join(candidate.composition.chain)}", situation.examples.path
        is_same = situation.data is not None and situation.data.path == path
        unread = f"learns the better answers of {path} alone" if is_same else f"reads {path}"
        warnings.append(
            f"no stage of this answer {unread}: --choose '{both}' --force"
            " learns from these examples first"
        )
    data, chain = situation.data, candidate.composition.chain
    waits = situation.examples is None and needs_examples(situation, chain[0])
    if data is not None and waits:
        warnings.append(
            f"no stage reads {data.path} itself: time and memory are those of its {data.rows:,}"
            " texts, in place of the examples to be written; --choose cpt+lora --force reads it"
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
    left_out: dict[str, list[str]] = {}
    for stage in candidate.stages:
        if stage.left_out:
            left_out.setdefault(stage.left_out, []).append(method_words(stage.stage.objective))
    found = [f"{joined(names)}: {rows}" for rows, names in left_out.items()]
    for stage in candidate.stages:
        if (part := stage.part) is None:
            continue
        method = objective(stage.stage.objective)
        name, too_few = method_words(method.id), method.amounts or {}
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
        measured = (
            "; `advise run` with --dry-run measures the longest batch, about a minute once the"
            " model is downloaded, and trains nothing"
        )
        found.append(
            f"{MAY_NOT_FIT}: it needs {need} by the estimate (between {low} and {high}), and there"
            f" are {format_gib(cost.limit_bytes)}{'' if candidate.engine else measured}"
        )
    return found


def _unread_examples(situation: Situation, chain: str) -> bool:
    """Whether no stage reads the examples, and one before this chain could."""
    return situation.examples is not None and could_learn_before(chain)


def could_learn_before(chain: str) -> bool:
    """Whether a chain is one of pairs alone, before which a stage could learn from examples."""
    return chain in {
        name
        for name, one in methods().objectives.items()
        if not (one.learns_texts or one.scores or one.generates)
        and not {*JUDGED}.isdisjoint(one.trains_on)
    }


def _too_few(situation: Situation, composition: Composition) -> list[str]:
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
        method = objective(stage.stage.objective)
        if method.splits_documents or (kind and kind not in method.trains_on):
            continue  # documents are parted, or the rows are those of another stage
        length = stage.stage.seq_len * method.sequences_per_row
        if tokens / rows > length:
            found.append(
                f"{method_words(method.id)}: rows of {tokens / rows:,.0f} tokens on average"
                f" are longer than the {length:,} that are read: a run stops at them unless"
                " `truncation` says drop or truncate; time and cost count what is read"
            )
    return found


# --------------------------------------------------------------------------- another candidate


def candidate_of(
    advice: Advice, ruleset: Ruleset, composition: Composition, *, offload: bool = False
) -> Candidate:
    """Any composition as a candidate to choose; `offload`: parts may lie in host memory."""
    case = Case.build(advice.situation, ruleset)
    decision = case.decision
    given_up = decision.concessions
    case = replace(case, concessions=replace(given_up, offload=offload or given_up.offload))
    otherwise = [Reason(text="no rule recommends it here")]
    found = candidate_for(case, decision, composition, otherwise)
    return replace(found, ways=case.ways_of(composition))


BY_HAND = "recommended, but another one was chosen by hand"


def with_choice(advice: Advice, chosen: Candidate, ruleset: Ruleset) -> Advice:
    """The same advice about another of its candidates, for --choose."""
    first, case = advice.recommendation, Case.build(advice.situation, ruleset)
    priced, rented, _ = _priced(case, chosen)
    old = replace(first, verdict="ranked_lower", because=(Reason(text=BY_HAND), *first.because))
    others = (one for one in advice.alternatives if one is not chosen)
    return replace(
        advice,
        recommendation=priced,
        alternatives=(old, *others),
        nothing_fits=None,
        rent=rented,
        rent_instead=None,
        warnings=_warnings(case, priced, case.decision),
    )


# Every objective that the guide names stands in one of them.
GUIDE_CHAINS = ("sft", "cpt>sft", "sft>rm>ppo")
# Of chains the one that people who know ask about: why not that?
ASKED_BESIDE = {
    "sft>rm>ppo": ("sft>dpo",), "sft>rm>rloo": ("sft>dpo",), "sft>rm>grpo": ("sft>dpo",),
    "kto": ("dpo",), "sft>kto": ("sft>dpo",), "orpo": ("dpo",), "rloo": ("grpo",),
    "dpo": ("sft>dpo",), "sft>dpo": ("dpo",), "grpo": ("sft>grpo",), "sft>grpo": ("grpo",),
}  # fmt: skip
ANSWERED_REMEDIES = {
    "rag": ("knowledge_source", "retrieval"),
    "prompting": ("readiness", "prompting"),
}  # "why not just ...?"
TOO_BIG, OVER_BUDGET = "base/too-big", "base/over-budget"  # the rules whose reason is two numbers


def recommended_candidate(case: Case, decision: Decision) -> Candidate:
    """The composition the rules concluded, with its reasons."""
    because = reasons_of(decision, case.situation, case.ruleset, case.sizes(decision))
    found = _candidate(case, decision.composition, "recommended", because)
    return replace(found, ways=case.ways_of(decision.composition))


def _candidate(
    case: Case,
    composition: Composition,
    verdict: Verdict,
    because: Iterable[Reason],
    forbidding: Sequence[Rule] = (),
) -> Candidate:
    stages, cost = (
        case.cost_of(composition) if composition.chain else ((), Estimate(fits="unknown"))
    )
    return Candidate(
        composition=composition,
        stages=stages,
        estimate=cost,
        verdict=verdict,
        because=tuple(because),
        # --force overrides neither a company's own prohibition nor what cannot run.
        forced_ok=all(rule.layer in SHIPPED and rule.id != TOO_BIG for rule in forbidding),
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
    judgement, sizes = decision.steps[LAST], case.sizes(decision)
    lost = LosingOutcome(judgement, scheme, decision.facts, case.ruleset, sizes)
    found = _losing_candidate(case, decision.candidate(scheme, remedies), lost)
    pair = sizes_of_pair(sizes, scheme, str(decision.facts["scheme"]))
    first, *others = found.because
    if not (pair and first.rule) or found.verdict != "ranked_lower" or re.search(r"\d", first.text):
        return found
    return replace(found, because=(replace(first, text=f"{first.text} {pair}"), *others))


def _other_chains(case: Case, decision: Decision) -> Iterator[Candidate]:
    """The guide's chains and the chain table's runners-up, with the scheme that was chosen."""
    judgement, scheme = decision.steps["chain"], str(decision.facts["scheme"])
    if scheme == SMALLER_MODEL:
        scheme = _least_hungry(case, decision)
    ranked = (str(chain) for chain, _ in judgement.ranking[:3])
    suggested = case.situation.suggestion is not None
    # Whoever has examples beside pairs can learn from both.
    both = [f"sft>{decision.chain}"] if _unread_examples(case.situation, decision.chain) else []
    asked = ASKED_BESIDE.get(decision.chain, ())
    for chain in dict.fromkeys((*both, *asked, *ranked, *GUIDE_CHAINS)):
        if chain != decision.chain:
            lost = LosingOutcome(
                judgement, chain, decision.facts, case.ruleset, is_suggested=suggested
            )
            composition = compose(chain, scheme, per_task=decision.per_task)
            yield _losing_candidate(case, composition, lost)


def _losing_candidate(case: Case, composition: Composition, lost: LosingOutcome) -> Candidate:
    forbidding = lost.judgement.forbidden.get(lost.outcome, ())
    if not forbidding:
        return _candidate(case, composition, "ranked_lower", lost.reasons())
    verdict: Verdict = "too_big" if all(r.id == TOO_BIG for r in forbidding) else "forbidden"
    reasons = (_limit_reason(case, rule, composition) for rule in forbidding)
    return _candidate(case, composition, verdict, reasons, forbidding)


def _other_remedies(case: Case, decision: Decision) -> Iterator[Candidate]:
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
    cost, scheme = case.cost_of(composition).cost, str(composition.scheme)
    if rule.id == TOO_BIG:
        size = memory_reason(cost, scheme, rule.id, case.situation.hardware)
        return size or reason_of(rule, case.ruleset)
    if rule.id == OVER_BUDGET:
        return budget_reason(cost, case.facts, scheme, rule.id)
    return reason_of(rule, case.ruleset)


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
