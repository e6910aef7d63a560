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

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.case import LAST, SHIPPED, Case, Decision
from advisor.advice.flips import card_words, one_card
from advisor.advice.types import NO_CONCESSIONS, Candidate, Infeasible, Reason, WayOut
from advisor.estimate.types import Estimate
from advisor.ground.types import GpuSpec, Hardware, ModelShape
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

COUNTS = (2, 4, 8)  # of one machine, where no single GPU holds it
MOST_TRIED = 40  # models and machines of one set of changes
# Sets of changes that are tried if no single one leads out; what loses least comes first.
TOGETHER = (("gpu", "budget"), ("model", "budget"), ("model", "gpu"), ("model", "gpu", "budget"))


class _Found(Struct, frozen=True):
    """What fits after some changes: under which machine and model."""

    decision: Decision
    cost: Estimate
    model: str | None = None
    params: int = 0
    machine: tuple[GpuSpec, int] | None = None


def _ways_out(case: Case, decision: Decision, close: Candidate) -> Iterator[WayOut]:
    """A smaller model, another GPU, more money or hours: one of each, as far as they lead out; else
    several of these together.
    """
    situation, answers = case.situation, case.situation.answers
    # Without rows there is nothing to train on yet.
    begins = "advise run" if answers.value("data_path") or answers.value("tasks") else "advise"
    limited = not UNLIMITED.keys().isdisjoint(decision.facts)
    out = list[Collection[str]]()  # sets of changes that lead out

    def way(text: str, to: Composition, change: Mapping[str, Any]) -> WayOut:
        typed = {**change, **({"gpu": None} if "gpu" in change else {})}
        command = command_line(answers, typed, command=begins)
        return WayOut(text=text, change=change, to=to, command=command)

    if (smaller := smaller_that_fits(case)) is not None:
        name, text, to = smaller
        yield way(text, to, {"model": name})
        out.append(("model",))
    if (there := _first_that_fits(case, close, ("gpu",))) is not None and there.machine:
        to, (card, count) = there.decision.composition, there.machine
        which, verb, end = ("GPU", "is", "s") if count == 1 else ("GPUs", "are", "")
        holds = f"do{'es' * (count == 1)} it within the budget" if limited else f"hold{end} it"
        machine = _machine_words(card, count)
        text = f"the cheapest {which} that {holds} (with {to}) {verb} {machine}"
        yield way(text, to, {"gpu": _typed(*there.machine)})
        out.append(("gpu",))
    if limited:
        found = Case.build(situation, case.ruleset, UNLIMITED).decision
        if not found.nothing_fits:
            to = found.composition
            text = f"without the limit on money or hours, {to} fits"
            yield way(text, to, {"budget": None})
            out.append(("budget",))
    # Where one change is enough, nobody has to hear of several.
    for changed in TOGETHER if not out else ():
        if ("budget" in changed and not limited) or any({*few} < {*changed} for few in out):
            continue
        if (there := _first_that_fits(case, close, changed)) is not None:
            to, change = there.decision.composition, _change(there, changed)
            yield way(_together_words(there, changed), to, change)
            out.append(changed)


def _first_that_fits(case: Case, close: Candidate, changed: Collection[str]) -> _Found | None:
    """What surely fits after the changes, with the largest model on the cheapest machine."""
    situation = case.situation
    models: list[tuple[ModelShape | None, str | None]] = [(situation.model, None)]
    if "model" in changed:
        models = [(shape, one.model) for shape, one in situation.smaller]
    changes = UNLIMITED if "budget" in changed else {}
    limits = {} if changes else case.facts
    tries = (
        (shape, name, machine)
        for shape, name in models
        for machine in (_machines(situation, limits, close, shape) if "gpu" in changed else [None])
    )
    for shape, name, machine in islice(tries, MOST_TRIED):
        hardware = situation.hardware if machine is None else _several(*machine)
        changed_case = replace(situation, model=shape, hardware=hardware)
        there = Case.build(changed_case, case.ruleset, changes)
        if _fits_with_room(found := there.decision):
            cost, params = there.cost_of(found.composition).cost, shape.params if shape else 0
            return _Found(found, cost, name, params, machine)
    return None


def _change(found: _Found, changed: Collection[str]) -> dict[str, Any]:
    values = {"model": found.model, "gpu": found.machine and _typed(*found.machine), "budget": None}
    return {name: values[name] for name in changed}


def _together_words(found: _Found, changed: Collection[str]) -> str:
    """'with one A100 and no limit on money or hours it fits: sft+lora needs 20 GiB, about $12'."""
    parts = []
    if found.model:
        parts.append(f"a smaller model, {found.model} ({format_count(found.params)} parameters)")
    if found.machine:
        parts.append(_machine_words(*found.machine))
    if "budget" in changed:
        parts.append("no limit on money or hours")
    memory, usd = found.cost.memory, found.cost.cost_usd
    needs = f" needs {format_gib(memory.need_bytes)}" if memory else " fits"
    costs = f" and costs about {format_usd(usd)}" if usd else ""
    return f"with {', and '.join(parts)}, {found.decision.composition}{needs}{costs}"


def _several(card: GpuSpec, count: int) -> Hardware:
    one = one_card(card)
    return replace(one, gpus=one.gpus * count)


def _typed(card: GpuSpec, count: int) -> str:
    return card.name if count == 1 else f"{count} x {card.name}"


def _machine_words(card: GpuSpec, count: int) -> str:
    """'one A100 80GB with 80.0 GiB, $1.19/h (...)', '4 x B300 with 269 GiB, $7.89/h each (...)'."""
    if count == 1:
        return f"one {card_words(card)}"
    return f"{count} x {card_words(card).replace('/h (', '/h each (')}"


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


def _machines(
    situation: Situation, limits: Mapping[str, Any], close: Candidate, model: ModelShape | None
) -> Iterator[tuple[GpuSpec, int]]:
    """The GPUs, cheapest first, that could hold the nearest candidate within the limits; then
    several of one, the cheapest together first.
    """
    if limits.get("budget_usd") == 0:
        return
    gpus, cost, own = situation.hardware.gpus, close.estimate, situation.model
    names = {gpu.spec.id for gpu in gpus if gpu.spec is not None}
    here = gpus[0].spec if gpus else None
    share = model.params / own.params if model is not None and own is not None else 1.0
    need = 0.0 if cost.memory is None else share * cost.memory.need_bytes

    def keeps_limits(card: GpuSpec, count: int) -> bool:
        if cost.duration_s is None or here is None or not here.bf16_flops or not card.bf16_flops:
            return True
        hours = share * cost.duration_s / 3600 * here.bf16_flops / card.bf16_flops
        usd = hours * (card.price_usd_per_h or 0.0)
        needed = {"budget_hours": hours / count, "budget_usd": usd}
        return all(
            (limit := limits.get(name)) is None or amount <= NEAR_LIMIT * float(limit)
            for name, amount in needed.items()
        )

    sized = [(card, card.memory_bytes) for card in situation.cards if card.memory_bytes]
    alone = [(card, 1) for card, size in sized if card.id not in names and need <= size]
    groups = [
        (card, count)
        for card, size in sized
        if (count := next((one for one in COUNTS if need <= one * size), 0))
        and count <= (card.rented_most or count)
    ]
    groups.sort(key=lambda one: one[1] * (one[0].price_usd_per_h or 0.0))
    yield from (one for one in (*alone, *groups) if keeps_limits(*one))
