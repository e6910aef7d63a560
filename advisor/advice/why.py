"""Why: a rule's sentence with its sources, the facts it saw, and limits with their numbers. And how
sure an answer is, on two scales that GRADE keeps apart: what its rules rest on (`evidence`), and
how clearly it stands above the other answers (`strength`).

Good evidence does not make an answer clear: studies may disagree, or a fact that nobody stated may
decide. GRADE: Guyatt et al., BMJ 2008;336:924 (quality of evidence) and 1049 (strength).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from advisor.advice.decide import LAST, Decision
from advisor.advice.facts import fact_origin
from advisor.advice.types import Candidate, Certainty, Flip, KnownFact, Reason
from advisor.estimate.types import LEFT_EXPERTS, Estimate
from advisor.ground.units import about_usd, format_duration, format_gib, format_usd, gib
from advisor.methods.composition import Composition
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import joined, method_words, named_with_flag, says
from advisor.situation.types import Situation

Sizes = Mapping[str, Estimate]  # scheme -> its estimate on the chain that was concluded
RANKS_BELOW = "Ranks below"  # how a reason begins that says the verdict with it
NO_SIZES: Sizes = MappingProxyType({})


def reason_of(rule: Rule, ruleset: Ruleset) -> Reason:
    """A rule's own sentence, with the guide's row where it has one, and its sources' titles."""
    text = f"{rule.because} ({rule.row})" if rule.row else rule.because
    return Reason(text=text, rule=rule.id, source=titles_of(rule, ruleset))


# Conclusions that say nothing to a person without what they were drawn from.
SPELLED_OUT = ("data_amount",)


def facts_seen_by(
    rule: Rule,
    decision: Decision,
    situation: Situation,
    ruleset: Ruleset,
    sizes: Sizes = NO_SIZES,
) -> tuple[KnownFact, ...]:
    """The facts that a rule looked at and that are known, each in words and with where it came
    from.
    """
    concluded = {
        table.concludes: decision.steps[table.id].winner
        for table in ruleset.tables.values()
        if table.id in decision.steps
    }
    found = []
    names = [condition.fact for condition in rule.when]
    for name in tuple(names):  # where an amount counts, the amount is told
        if name in SPELLED_OUT and (winner := concluded.get(name)) is not None:
            names += [seen.fact for seen in winner[1].when if seen.fact not in names]
    for name in names:
        value = decision.facts.get(name)
        if value is None or value == UNKNOWN:
            continue
        winner = concluded.get(name)
        fact = ruleset.facts[name]
        if winner is not None:
            origin = f"concluded by {winner[1].id}"
        elif fact.instance_of:
            origin = "estimated"
        else:
            origin = fact_origin(situation, name)
        text = fit_words(fact, str(value), sizes) if fact.instance_of else says(fact, value)
        found.append(KnownFact(fact=name, value=value, origin=origin, text=text))
    return tuple(found)


def fit_words(fact: Fact, value: str, sizes: Sizes) -> str:
    """'LoRA fits in 24.0 GiB (estimated 19.8 GiB)', or without the numbers where there are none."""
    cost = sizes.get(scheme_of_fact(fact))
    if cost is not None and cost.refused:
        return f"{method_words(scheme_of_fact(fact))} cannot load this checkpoint"
    if cost is None or cost.memory is None or cost.limit_bytes is None:
        return says(fact, value)
    room, need = format_gib(cost.limit_bytes), format_gib(cost.memory.need_bytes)
    if cost.fits == "may_fit" and value in ("tight", "too_big"):
        may = "may fit" if cost.is_likely else "may not fit"
        band = (
            f"between {format_gib(cost.memory.need_low_bytes)} and"
            f" {format_gib(cost.memory.need_high_bytes)}"
        )
        return f"{method_words(scheme_of_fact(fact))} {may} in {room} ({band} by the estimate)"
    within = {
        "fits": f"fits in {room}",
        "tight": f"fits in {room} with little to spare",
        "too_big": f"does not fit in {room}",
    }.get(value)
    if within is None:
        return says(fact, value)
    return f"{method_words(scheme_of_fact(fact))} {within} (estimated {need})"


def memory_reason(
    cost: Estimate, name: str, rule: str | None, *, cards: int, cpu: bool
) -> Reason | None:
    """'full fine-tuning needs 78.1 GiB, this GPU has 24.0 GiB' for a candidate that is too big."""
    if cost.refused:
        cannot = "cannot load it" if cost.host_bytes is None else "does not fit"
        return Reason(text=f"{method_words(name)} {cannot}: {cost.refused}", rule=rule)
    if cost.memory is None or cost.limit_bytes is None:
        return None
    where = "this machine" if cpu else "this GPU" if cards <= 1 else f"each of these {cards} GPUs"
    peak = cost.memory.need_bytes
    experts = next(
        (term.size_bytes for term in cost.memory.needed.terms if term.name == LEFT_EXPERTS), 0
    )
    of_experts = f", {format_gib(experts)} of it for experts that stay in 16 bit" if experts else ""
    return Reason(
        text=(
            f"{method_words(name)} needs {format_gib(peak)}{of_experts}"
            f"{';' if experts else ','} {where} has {format_gib(cost.limit_bytes)}"
        ),
        rule=rule,
        source="estimate of memory (formula)",
        needs=round(gib(peak), 2),
        has=round(gib(cost.limit_bytes), 2),
        unit="GiB",
    )


def budget_reason(cost: Estimate, facts: Mapping[str, Any], name: str, rule: str | None) -> Reason:
    """Which stated limit a candidate breaks, with both numbers."""
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    method = method_words(name)
    if usd is not None and cost.cost_usd is not None and cost.cost_usd > usd:
        return Reason(
            text=(f"{method} costs {about_usd(cost.cost_usd)}, the budget is {format_usd(usd)}"),
            rule=rule,
            needs=round(cost.cost_usd, 2),
            has=float(usd),
            unit="USD",
        )
    needed, limit = cost.duration_s or 0.0, float(hours or 0)
    return Reason(
        text=(
            f"{method} takes about {format_duration(needed)}, the limit is"
            f" {format_duration(limit * 3600)}"
        ),
        rule=rule,
        needs=round(needed / 3600, 2),
        has=limit,
        unit="h",
    )


def unknown_words(reason: str) -> str:
    """What an estimate lacks, as a clause: 'model: its size is not known' -> 'the size of the model
    is not known'.
    """
    what, _, why = reason.partition(": ")
    if not why:
        return what if " " in what else f"the {what} is not known"
    if what == "duration" or not why.startswith("its "):
        return why
    quality, _, rest = why.removeprefix("its ").partition(" is ")
    return f"the {quality} of the {what} is {rest}"


def rules_that_differ(decision: Decision, other: Composition) -> tuple[Rule, ...]:
    """The rules that a person has to hear of that set the decision apart from another
    composition; where that is the scheme alone, the one that ranked it first.
    """
    ours = decision.composition
    parts = (
        (ours.remedies == other.remedies, ("knowledge_source", "readiness", "train_decision")),
        ((ours.chain, ours.encoder) == (other.chain, other.encoder), ("architecture", "chain")),
        (ours.per_task == other.per_task, ("adapters_per",)),
        (ours.scheme == other.scheme, (LAST, "candidate_schemes", "required_capacity")),
    )
    tables = [table for same, of_part in parts if not same for table in of_part]
    return tuple(rule for table in tables for rule in decision.rules if rule.table == table)


def scheme_of_fact(fact: Fact) -> str:
    """The scheme whose own fact this is: lora of `fits_lora`."""
    return fact.id.removeprefix(f"{fact.instance_of}_")


def titles_of(rule: Rule, ruleset: Ruleset) -> str:
    """The titles of a rule's sources."""
    return "; ".join(ruleset.sources[source].title for source in rule.sources)


# What a rule's `confidence` is worth: the weakest rule that decided sets the word.
GRADES = {
    "study": ("high", "measured studies"),
    "vendor-doc": ("high", "vendors' documentation"),
    "document": ("medium", "the guide's own rows"),
    "practice": ("medium", "common practice"),
    "judgement": ("low", "our judgement"),
}


def certainty_of(
    decision: Decision,
    recommendation: Candidate,
    ruleset: Ruleset,
    base: Mapping[str, Any],
    flips: Sequence[Flip],
) -> Certainty:
    """The two scales, and what makes the recommendation weak."""
    weakest = max(
        (rule.confidence for rule in decision.rules), key=list(GRADES).index, default="judgement"
    )
    evidence, rests_on = GRADES[weakest]
    conflicts = tuple(_conflicts(decision, ruleset))
    doubts = tuple(_doubts(recommendation, ruleset, base, flips, evidence, conflicts))
    return Certainty(
        evidence=evidence,
        rests_on=rests_on,
        strength="weak" if doubts else "strong",
        doubts=doubts,
        conflicts=conflicts,
        incomplete=tuple(dict.fromkeys(map(unknown_words, recommendation.estimate.unknown))),
    )


def _conflicts(decision: Decision, ruleset: Ruleset) -> Iterator[Reason]:
    """What experts say against the rules that decided, with their sources."""
    decided = {rule.id for rule in decision.rules}
    for conflict in ruleset.conflicts:
        against = [rule for rule in conflict.rules if rule in decided]
        if against:
            titles = "; ".join(ruleset.sources[source].title for source in conflict.sources)
            yield Reason(text=conflict.says, rule=against[0], source=titles)


def _doubts(
    recommendation: Candidate,
    ruleset: Ruleset,
    base: Mapping[str, Any],
    flips: Sequence[Flip],
    evidence: str,
    conflicts: Sequence[Reason],
) -> Iterator[str]:
    """Each thing that makes the recommendation weak, as a clause.

    A fact that nobody stated counts where some value of it alone would lead to another answer.
    Signals and the number of tasks do not: unstated is what they are as a rule, and the flips show
    them.
    """
    facts = {fact.answer or fact.id: fact for fact in ruleset.facts.values()}
    changing = dict.fromkeys(name for flip in flips for name in flip.change if name in facts)
    unstated = [
        named_with_flag(facts[name])
        for name in changing
        if facts[name].origin == "asked"
        and not facts[name].signal
        and facts[name].id not in (*base, "gpu", "n_tasks")
    ]
    if unstated:
        yield f"the answer depends on {joined(unstated, 'or')}"
    if conflicts:
        yield "experts disagree here"
    if evidence == "low":
        yield "nobody has measured this case"
    if recommendation.estimate.fits == "tight":
        yield "it fits with little to spare"
    if recommendation.estimate.fits == "may_fit":
        yield "it may not fit"


def certainty_lines(certainty: Certainty) -> tuple[str, ...]:
    """How sure the answer is, a sentence for each scale, and who disagrees."""
    evidence = f"Evidence: {certainty.evidence}; it rests on {certainty.rests_on}."
    strength = f"Recommendation: {certainty.strength}"
    strength += f"; {'; '.join(certainty.doubts)}." if certainty.doubts else "."
    lines = [f"{evidence} {strength}"]
    lines += [
        f"Experts who say otherwise: {one.text} ({one.source})" for one in certainty.conflicts
    ]
    if certainty.incomplete:
        lines.append(f"The estimate is incomplete: {joined(certainty.incomplete)}.")
    return tuple(lines)
