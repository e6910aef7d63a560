"""If nothing fits: the smallest set of facts to blame, and up to three ways out, each with the line
to type. Few answers need it.

The blame is a minimal conflict (QuickXplain, Junker, AAAI 2004): facts that together rule
everything out, while without any one of them something fits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import LAST, SHIPPED, Case, Decision
from advisor.advice.flips import card_words, one_card
from advisor.advice.types import NO_CONCESSIONS, Candidate, Infeasible, Reason, WayOut
from advisor.ground.types import GpuSpec, Hardware
from advisor.ground.units import format_count, format_duration, format_gib, format_usd
from advisor.methods.composition import Composition
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import command_line
from advisor.situation.types import Situation

MAX_WAYS = 3
NEAR_LIMIT = 2.0  # another method on the same GPU can be this much faster than the nearest
UNLIMITED = {"budget_usd": None, "budget_hours": None}


def nothing_fits(case: Case, decision: Decision, close: Candidate) -> Infeasible:
    """Why not even the nearest candidate fits, and what would."""
    blamed = _minimal_conflict(partial(_fits, case, decision), _relaxable(case, decision))
    return Infeasible(
        nearest=close,
        blame=tuple(_blame(fact, case.situation, decision, close) for fact in blamed),
        ways_out=tuple(islice(_ways_out(case, decision, close), MAX_WAYS)),
    )


# --------------------------------------------------------------------------- whom to blame


def _relaxable(case: Case, decision: Decision) -> list[str]:
    """The facts that can be thought away; what comes first is blamed last."""
    found = {
        "rules": bool(_own_prohibitions(decision)),
        "model": bool(case.situation.smaller),
        "gpu": bool(case.situation.cards),
        "budget": not UNLIMITED.keys().isdisjoint(decision.facts),
    }
    return [fact for fact, may_go in found.items() if may_go]


def _own_prohibitions(decision: Decision) -> list[str]:
    forbidding = (rule for rules in decision.steps[LAST].forbidden.values() for rule in rules)
    return list(dict.fromkeys(rule.id for rule in forbidding if rule.layer not in SHIPPED))


def _fits(case: Case, decision: Decision, kept: Collection[str]) -> bool:
    """Whether something fits when every fact that is not kept is at its easiest."""
    situation, ruleset = case.situation, case.ruleset
    if "model" not in kept and situation.smaller:  # the largest first
        situation = replace(situation, model=situation.smaller[-1][0])
    if "gpu" not in kept and situation.cards:
        largest = max(situation.cards, key=lambda card: card.memory_bytes or 0)
        situation = replace(situation, hardware=one_card(largest))
    if "rules" not in kept and _own_prohibitions(decision):
        ruleset = _without_own_prohibitions(ruleset)
    changes = {} if "budget" in kept else UNLIMITED
    return not Case.build(situation, ruleset, changes).decision.nothing_fits


def _without_own_prohibitions(ruleset: Ruleset) -> Ruleset:
    rules = {
        table: tuple(
            rule for rule in listed if not (rule.kind == "forbid" and rule.layer not in SHIPPED)
        )
        for table, listed in ruleset.rules.items()
    }
    return replace(ruleset, rules=rules)


def _minimal_conflict(fits: Callable[[Collection[str]], bool], facts: list[str]) -> list[str]:
    """A minimal set of facts that, kept together, rules everything out; [] if none does."""
    # Fewer than half a dozen: leaving them out one by one is QuickXplain without its halving.
    kept = list(facts)
    if fits(kept):
        return []
    for fact in reversed(facts):
        without = [other for other in kept if other != fact]
        if not fits(without):
            kept = without
    return kept


def _blame(fact: str, situation: Situation, decision: Decision, close: Candidate) -> Reason:
    if fact == "model":
        model, memory = situation.model, close.estimate.memory
        named = f"{model.id}, {format_count(model.params)} parameters" if model else "not named"
        need = f"; {close.composition} needs {format_gib(memory.need_bytes)}" if memory else ""
        return Reason(text=f"the model: {named}{need}")
    if fact == "gpu":
        return Reason(text=f"the hardware: {_hardware(situation.hardware)}")
    if fact == "budget":
        usd, hours = decision.facts.get("budget_usd"), decision.facts.get("budget_hours")
        limits = [
            *([format_usd(float(usd))] if usd is not None else []),
            *([format_duration(float(hours) * 3600)] if hours is not None else []),
        ]
        return Reason(text=f"the budget: {' and '.join(limits)}")
    rules = _own_prohibitions(decision)
    text = f"your own rules forbid what would fit: {', '.join(rules)}"
    return Reason(text=text, rule=rules[0] if rules else None)


def _hardware(hardware: Hardware) -> str:
    size = hardware.device_memory_bytes
    room = f" with {format_gib(size)}" if size is not None else ""
    if not hardware.gpus:
        return f"the processor{room}"
    return f"{len(hardware.gpus)} x {hardware.gpus[0].name}{room}"


# --------------------------------------------------------------------------- ways out


def _ways_out(case: Case, decision: Decision, close: Candidate) -> Iterator[WayOut]:
    """A smaller model, another GPU, more money or hours: one of each, as far as they lead out."""
    situation, answers = case.situation, case.situation.answers
    # Without rows there is nothing to train on yet.
    begins = "advise run" if answers.value("data_path") or answers.value("tasks") else "advise"

    def way(
        text: str, to: Composition, change: Mapping[str, Any], typed: Mapping[str, Any]
    ) -> WayOut:
        command = command_line(answers, typed, command=begins)
        return WayOut(text=text, change=change, to=to, command=command)

    if (smaller := smaller_that_fits(case)) is not None:
        name, text, to = smaller
        yield way(text, to, {"model": name}, {"model": name})
    limited = not UNLIMITED.keys().isdisjoint(decision.facts)
    for card in _gpus_to_try(situation, decision, close):
        found = Case.build(replace(situation, hardware=one_card(card)), case.ruleset).decision
        if _fits_with_room(found):
            holds, to = "does it within the budget" if limited else "holds it", found.composition
            text = f"the cheapest GPU that {holds} (with {to}) is one {card_words(card)}"
            yield way(text, to, {"gpu": card.name}, {"gpu": None})
            break
    if limited:
        found = Case.build(situation, case.ruleset, UNLIMITED).decision
        if not found.nothing_fits:
            to = found.composition
            text = f"without the limit on money or hours, {to} fits"
            yield way(text, to, {"budget": None}, {"budget": None})


def smaller_that_fits(case: Case) -> tuple[str, str, Composition] | None:
    """The largest smaller model that surely fits, that in words, and with which method."""
    for shape, suggestion in case.situation.smaller:
        found = Case.build(replace(case.situation, model=shape), case.ruleset).decision
        if _fits_with_room(found):
            name, to = suggestion.model, found.composition
            size = format_count(shape.params)
            return name, f"a smaller model, {name} ({size} parameters), fits with {to}", to
    return None


def _fits_with_room(decision: Decision) -> bool:
    fit = decision.facts.get(f"fits_{decision.facts['scheme']}")
    is_whole = decision.concessions == NO_CONCESSIONS
    return is_whole and not decision.nothing_fits and fit in ("fits", "unknown")


def _gpus_to_try(situation: Situation, decision: Decision, close: Candidate) -> Iterator[GpuSpec]:
    """The GPUs, cheapest first, that could hold the nearest candidate within the limits."""
    if situation.answers.value("budget_usd") == 0:
        return
    gpus, cost = situation.hardware.gpus, close.estimate
    names = {gpu.spec.id for gpu in gpus if gpu.spec is not None}
    here = gpus[0].spec if gpus else None
    for card in situation.cards:
        size = card.memory_bytes
        if (
            card.id in names
            or size is None
            or (cost.memory is not None and cost.memory.need_bytes > size)
        ):
            continue
        if cost.duration_s is None or here is None or not here.bf16_flops or not card.bf16_flops:
            yield card
            continue
        hours = cost.duration_s / 3600 * here.bf16_flops / card.bf16_flops
        limits = {"budget_hours": hours, "budget_usd": hours * (card.price_usd_per_h or 0.0)}
        stated = {name: decision.facts.get(name) for name in limits}
        if all(
            limit is None or limits[name] <= NEAR_LIMIT * float(limit)
            for name, limit in stated.items()
        ):
            yield card
