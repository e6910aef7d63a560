"""Why: a rule's sentence with its sources, the facts it saw, and limits with their numbers. And how
sure an answer is, on two scales that GRADE keeps apart: what its rules rest on (`evidence`), and
how clearly it stands above the other answers (`strength`).

Good evidence does not make an answer clear: studies may disagree, or a fact that nobody stated may
decide. GRADE: Guyatt et al., BMJ 2008;336:924 (quality of evidence) and 1049 (strength).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import LAST, Case, Decision
from advisor.advice.facts import fact_origin
from advisor.advice.types import Candidate, Certainty, Flip, KnownFact, Reason, Sizes
from advisor.estimate.types import LEFT_EXPERTS, Estimate
from advisor.ground.types import Hardware
from advisor.ground.units import about_usd, format_duration, format_gib, format_usd, gib
from advisor.methods.composition import Composition
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Conflict, Rule, Ruleset
from advisor.ruleset.phrases import clauses, joined, method_words, named_with_flag, says
from advisor.situation.types import Situation

RANKS_BELOW = "Ranks below"  # how a reason begins that says the verdict with it
# Conclusions that say nothing to a person without what they were drawn from.
SPELLED_OUT = ("data_amount",)
# What a rule's `confidence` is worth: the weakest rule that decided sets the word.
GRADES = {
    "study": ("high", "measured studies"),
    "vendor-doc": ("high", "vendors' documentation"),
    "document": ("medium", "the guide's own rows"),
    "practice": ("medium", "common practice"),
    "judgement": ("low", "our judgement"),
}


def reason_of(rule: Rule, ruleset: Ruleset) -> Reason:
    """A rule's own sentence, with the guide's row if it has one, and its sources' titles."""
    text = f"{rule.because} ({rule.row})" if rule.row else rule.because
    return Reason(text=text, rule=rule.id, source=titles_of(rule, ruleset))


def titles_of(rule: Rule | Conflict, ruleset: Ruleset) -> str:
    """The titles of a rule's sources."""
    return "; ".join(ruleset.sources[source].title for source in rule.sources)


def facts_seen_by(
    rule: Rule,
    decision: Decision,
    situation: Situation,
    ruleset: Ruleset,
    sizes: Sizes = MappingProxyType({}),
) -> tuple[KnownFact, ...]:
    """The facts that a rule looked at, each in words and with where it came from."""
    concluding = {
        table.concludes: judgement.winner[1]
        for name, table in ruleset.tables.items()
        if (judgement := decision.steps.get(name)) is not None and judgement.winner is not None
    }
    names = [condition.fact for condition in rule.when]
    for name in tuple(names):  # where an amount counts, the amount is told
        if name in SPELLED_OUT and name in concluding:
            names += [seen.fact for seen in concluding[name].when if seen.fact not in names]
    found = []
    for name in names:
        if (value := decision.facts.get(name)) in (None, UNKNOWN):
            continue
        fact = ruleset.facts[name]
        if name in concluding:
            origin = f"concluded by {concluding[name].id}"
        else:
            origin = "estimated" if fact.instance_of else fact_origin(situation, name)
        text = _fit_words(fact, str(value), sizes) if fact.instance_of else says(fact, value)
        found.append(KnownFact(fact=name, value=value, origin=origin, text=text))
    return tuple(found)


DEFAULT_TIER = "default"  # a rule of no higher one says what holds where nothing else decides
NAMED, LED_BY = 2, 4  # facts that the first reason names at least, and at most
SHOWN = 207  # characters of a reason that the first screen shows whole: three of its lines
GENERAL = ("task", "depth")  # are named where the rules looked at nothing else


def reasons_of(
    decision: Decision, situation: Situation, ruleset: Ruleset, sizes: Sizes
) -> tuple[Reason, ...]:
    """Why the decision: the reason that rests on most of what this person stated comes first and
    names it; what would be said of any answer comes last.
    """
    found, seen = [], dict[str, KnownFact]()
    for place, rule in enumerate(decision.rules):
        facts = facts_seen_by(rule, decision, situation, ruleset, sizes)
        if rule.table == LAST:
            facts += _size_of(decision, ruleset, sizes)
        own = {one.fact: one for one in facts if not one.origin.startswith("concluded")}
        telling = len(own.keys() - {"data_kind"})
        is_usual = ruleset.tiers.get(rule.tier, 0) <= ruleset.tiers[DEFAULT_TIER]
        rank = 0 if telling else 2 if rule.table == LAST else 3 if is_usual else 1 if own else 2
        found.append((rank, -telling, place, replace(reason_of(rule, ruleset), facts=facts)))
        seen |= own
    reasons = [one[-1] for one in sorted(found, key=lambda one: one[:-1])]
    if len(seen) < NAMED:
        general = ((name, decision.facts.get(name)) for name in GENERAL)
        stated = {name: value for name, value in general if value not in (None, UNKNOWN)}
        seen = {
            name: KnownFact(
                fact=name, value=value, origin="", text=says(ruleset.facts[name], value)
            )
            for name, value in stated.items()
        } | seen
    told = [one for one in seen.values() if one.value != "other"]  # no task that says something
    return (_led_by(told, reasons[0]), *reasons[1:]) if reasons else ()


def _led_by(facts: Sequence[KnownFact], reason: Reason) -> Reason:
    """The reason behind what it rests on: 'You have 900 examples, and LoRA fits in 24 GiB. ...'."""
    of_it, shown = {one.fact for one in reason.facts}, reason.text.rpartition(". (")[0]
    texts, short = list[str](), ""
    kept = sorted(facts, key=lambda one: (one.fact not in of_it, one.fact == "device"))[:LED_BY]
    while kept:
        said = {one.fact: one.text for one in facts if one in kept}
        if "data_kind" in said and "data_rows" in said:
            said["data_kind"] += f" ({said.pop('data_rows').removeprefix('you have ')})"
        led = clauses(said.values())
        texts.append(f"{led[:1].upper()}{led[1:]}. {reason.text}")
        if not short and len(led) + len(shown or reason.text) < SHOWN - 2:
            short = texts[-1]
        kept.pop()
    return replace(reason, text=texts[0], short=short) if texts else reason


def _size_of(decision: Decision, ruleset: Ruleset, sizes: Sizes) -> tuple[KnownFact, ...]:
    """Whether the scheme that comes first fits, if that is known."""
    fact = ruleset.facts.get(f"fits_{decision.facts['scheme']}")
    value = None if fact is None else decision.facts.get(fact.id)
    if fact is None or value in (None, UNKNOWN):
        return ()
    text = _fit_words(fact, str(value), sizes)
    return (KnownFact(fact=fact.id, value=value, origin="estimated", text=text),)


def _fit_words(fact: Fact, value: str, sizes: Sizes) -> str:
    """'LoRA fits in 24.0 GiB (estimated 19.8 GiB)', or without the numbers if there are none."""
    cost, method = sizes.get(scheme_of_fact(fact)), method_words(scheme_of_fact(fact))
    if cost is not None and cost.refused:
        return f"{method} cannot load this checkpoint"
    if cost is None or cost.memory is None or cost.limit_bytes is None:
        return says(fact, value)
    memory, room = cost.memory, format_gib(cost.limit_bytes)
    if cost.fits == "may_fit" and value in ("tight", "too_big"):
        may = "may fit" if cost.is_likely else "may not fit"
        low, high = format_gib(memory.need_low_bytes), format_gib(memory.need_high_bytes)
        return f"{method} {may} in {room} (between {low} and {high} by the estimate)"
    words = {
        "fits": f"fits in {room}",
        "tight": f"fits in {room} with little to spare",
        "too_big": f"does not fit in {room}",
    }
    if value not in words:
        return says(fact, value)
    return f"{method} {words[value]} (estimated {format_gib(memory.need_bytes)})"


def memory_reason(cost: Estimate, scheme: str, rule: str, hardware: Hardware) -> Reason | None:
    """'full fine-tuning needs 78.1 GiB, this GPU has 24.0 GiB' for a candidate that is too big."""
    method, cards = method_words(scheme), len(hardware.gpus)
    if cost.refused:
        cannot = "cannot load it" if cost.host_bytes is None else "does not fit"
        return Reason(text=f"{method} {cannot}: {cost.refused}", rule=rule)
    if cost.memory is None or cost.limit_bytes is None:
        return None
    where = "this GPU" if cards <= 1 else f"each of these {cards} GPUs"
    if hardware.kind == "cpu":
        where = "this machine"
    need, limit = cost.memory.need_bytes, cost.limit_bytes
    needs, has = format_gib(need), format_gib(limit)
    if needs == has:  # that it is more is what is said
        needs, has = (f"{gib(size):,.2f} GiB" for size in (need, limit))
    terms = {term.name: term.size_bytes for term in reversed(cost.memory.needed.terms)}
    of_experts = ","
    if experts := terms.get(LEFT_EXPERTS):
        of_experts = f", {format_gib(experts)} of it for experts that stay in 16 bit;"
    optimizer = f" ({cost.leanest.optimizer})" if cost.leanest else ""
    return Reason(
        text=f"{method} needs {needs}{optimizer}{of_experts} {where} has {has}",
        rule=rule,
        source="estimate of memory (formula)",
        needs=round(gib(need), 2),
        has=round(gib(limit), 2),
        unit="GiB",
    )


PAIR = "It needs "  # how the numbers of a pair begin


def sizes_of_pair(sizes: Sizes, one: str, other: str) -> str:
    """'It needs 66.3 GiB or more (16-bit AdamW), LoRA 17.8 GiB.', or nothing if either is not
    known.
    """
    ours, theirs = sizes.get(other), sizes.get(one)
    if one == other or not (ours and theirs and ours.memory and theirs.memory):
        return ""
    first, second = format_gib(theirs.memory.need_bytes), format_gib(ours.memory.need_bytes)
    if theirs.leanest is not None:
        more = " or more" if theirs.leanest.need_bytes < theirs.memory.need_bytes else ""
        first = f"{format_gib(theirs.leanest.need_bytes)}{more} ({theirs.leanest.optimizer})"
    return f"{PAIR}{first}, {method_words(other)} {second}."


def budget_reason(cost: Estimate, facts: Mapping[str, Any], scheme: str, rule: str) -> Reason:
    """Which stated limit a candidate breaks, with both numbers."""
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    method = method_words(scheme)
    if usd is not None and cost.cost_usd is not None and cost.cost_usd > usd:
        text = f"{method} costs {about_usd(cost.cost_usd)}, the budget is {format_usd(usd)}"
        needs, has, unit = cost.cost_usd, float(usd), "USD"
    else:
        needed, limit = cost.duration_s or 0.0, float(hours or 0)
        about, most = format_duration(needed), format_duration(limit * 3600)
        text = f"{method} takes about {about}, the limit is {most}"
        needs, has, unit = needed / 3600, limit, "h"
    return Reason(text=text, rule=rule, needs=round(needs, 2), has=has, unit=unit)


def rules_that_differ(decision: Decision, other: Composition) -> tuple[Rule, ...]:
    """The rules a person has to hear of that set the decision apart from another composition."""
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


# --------------------------------------------------------------------------- how sure

OPEN = ("budget", "depth", "data_kind", "priority", "serve_with")
AMOUNTS = frozenset(("data_rows", "data_tokens"))
ELSEWHERE = ("closed_model", "unsupported_hardware")  # the method stays a question
DISAGREE = "experts disagree here"
TRIED = {"rag": "rag_tried", "prompting": "prompting_tried"}


def certainty_of(
    decision: Decision,
    recommendation: Candidate,
    case: Case,
    flips: Sequence[Flip],
    edges: Sequence[str] = (),
) -> Certainty:
    """The two scales, and what makes the answer weak; `edges`: amounts of data close by that lead
    elsewhere.
    """
    ruleset, base, situation = case.ruleset, case.facts, case.situation
    weakest = max(
        (rule.confidence for rule in decision.rules), key=list(GRADES).index, default="judgement"
    )
    evidence, rests_on = GRADES[weakest]
    conflicts, decided = [], {rule.id for rule in decision.rules}
    for conflict in ruleset.conflicts:  # what experts say against the rules that decided
        if against := [rule for rule in conflict.rules if rule in decided]:
            titles = titles_of(conflict, ruleset)
            conflicts.append(Reason(text=conflict.says, rule=against[0], source=titles))
    unstated, fits = _unstated(ruleset, base, flips), recommendation.estimate.fits
    ours, facts = recommendation.composition, decision.facts
    doubts = {
        f"the answer depends on {joined(unstated, 'or')}": unstated,
        DISAGREE: conflicts,
        **dict.fromkeys(edges, True),
        "nobody has measured this case": evidence == "low",
        "nothing is known of the model you named": decision.trains
        and situation.model is None
        and situation.answers.value("model") is not None,
        "your examples seem to teach facts": decision.trains
        and not ours.remedies
        and facts.get("depth") != "style"
        and facts["rows_teach"] == "facts",
        "it fits with little to spare": fits == "tight",
        "it may not fit": fits == "may_fit",
        "nothing says how much memory the computer itself has": fits == "unknown"
        and any(stage.offloads for stage in recommendation.stages),
        "another tool may train the model as it is": decision.nothing_fits,
        "what is not trained here can be done in other ways": facts.get("out_of_scope")
        in ELSEWHERE,
        "no GPU was stated, and no rule is about your task": facts["task"] == "other"
        and decision.trains
        and facts.get("device") in (None, UNKNOWN),
        **{
            says(ruleset.facts[one], True): facts.get(one)
            for one in filter(None, map(TRIED.get, ours.remedies))
        },
        "the model loses more than usual in 4 bit": facts.get("avoid_4_bit") and ours.quantization,
        "every weight may give more, since quality and money come first": decision.trains
        and ours.update != "full"
        and (facts.get("budget"), facts.get("priority")) == ("high", "quality"),
    }
    weak = tuple(clause for clause, holds in doubts.items() if holds)
    return Certainty(
        evidence=evidence,
        rests_on=rests_on,
        strength="weak" if weak else "strong",
        doubts=weak,
        conflicts=tuple(conflicts),
        incomplete=tuple(dict.fromkeys(map(unknown_words, recommendation.estimate.unknown))),
    )


def _unstated(ruleset: Ruleset, base: Mapping[str, Any], flips: Sequence[Flip]) -> list[str]:
    """The facts that nobody stated and that alone could change the answer. Not what would do so for
    everybody: a teacher, other data, a signal, or very few examples.
    """
    facts = {fact.answer or fact.id: fact for fact in ruleset.facts.values()}
    if base.get("budget_usd"):
        facts.pop("budget", None)  # the limit says how much it may cost
    changing = dict.fromkeys(name for flip in flips for name in flip.change if name in facts)
    deciding = [*OPEN, *(AMOUNTS if base.get("data_kind") == "raw_text" else ())]
    found = [fact for fact in map(facts.__getitem__, changing) if fact.id in deciding]
    if not AMOUNTS.isdisjoint(base):
        found = [fact for fact in found if fact.id not in AMOUNTS]
    return [named_with_flag(fact) for fact in found if fact.id not in base]


def unknown_words(reason: str) -> str:
    """'model: its size is not known' -> 'the size of the model is not known'."""
    what, _, why = reason.partition(": ")
    if not why:
        return what if " " in what else f"the {what} is not known"
    if what == "duration" or not why.startswith("its "):
        return why
    quality, _, rest = why.removeprefix("its ").partition(" is ")
    return f"the {quality} of the {what} is {rest}"
