"""What would change the answer, sorted by what a person can do: an answer, data to collect, money
for a GPU, fixed. And if nothing fits, the smallest set of facts to blame, and up to three ways out,
each with the line to type.

The blame is a minimal conflict (QuickXplain, Junker, AAAI 2004): facts that together rule
everything out, while without any one of them something fits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import LAST, SHIPPED, SMALLER_MODEL, Case, Decision
from advisor.advice.facts import can_be_stated, stated_values
from advisor.advice.search.settings import SETTINGS
from advisor.advice.types import (
    NO_CONCESSIONS,
    Candidate,
    FittedStage,
    Flip,
    Infeasible,
    Reason,
    WayOut,
)
from advisor.advice.why_not import CHOICES
from advisor.estimate import estimate
from advisor.estimate.run import Device, Run
from advisor.ground.types import Gpu, GpuSpec, Hardware
from advisor.ground.units import format_count, format_duration, format_gib, format_usd
from advisor.methods import schemes
from advisor.methods.composition import Composition
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import judged_rules
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import number_words, says
from advisor.ruleset.space import cuts_of
from advisor.situation.answers import command_line
from advisor.situation.types import Situation

EFFORT = ("answer", "data", "money", "fixed")
DATA = ("data_kind", "data_rows", "data_tokens")  # what could be collected
AMOUNTS = ("data_rows", "data_tokens", "n_tasks", "params_b")
FIXED = ("task", "params_b", "checkpoint_kind", "n_tasks")  # what is as it is, still worth knowing
NO_DATA = ("none",)
GPU_IS_FULL = "memory_bound"
MAX_SHOWN, FEW_TASKS = 3, 4
NEARBY = 20  # times more or fewer: an amount that somebody may yet have
MAX_PER_ANSWER = 2  # changes shown that lead to the same answer: the rest say nothing new


def find_flips(case: Case, decision: Decision) -> tuple[Flip, ...]:
    """Single changes that lead to another composition, the easiest first."""
    ways = (_by_answers, _by_amount, _by_gpu)
    found = [flip for way in ways for flip in way(case, decision)]
    seen = {str(decision.composition): MAX_PER_ANSWER}
    shown = []
    for flip in sorted(found, key=lambda flip: EFFORT.index(flip.effort)):
        # That nothing fits is no answer that anybody would change something for.
        count = seen.get(str(flip.to), 0)
        if SMALLER_MODEL not in flip.to.remedies and count < MAX_PER_ANSWER:
            seen[str(flip.to)] = count + 1
            shown.append(flip)
    return tuple(shown)


def what_ifs(case: Case, decision: Decision, flips: Sequence[Flip]) -> tuple[Flip, ...]:
    """Of the changes those that are about this person, three at most, each to another answer.

    First what was not said and can be chosen, then another GPU, then an amount or a choice that was
    stated. What would lead elsewhere whoever asked (other data, a teacher, a prompt that is good
    enough) says nothing of this case.
    """
    facts = dict(case.ruleset.facts)
    facts |= {fact.answer: fact for fact in facts.values() if fact.answer}
    found = dict[str, Flip]()

    def place(flip: Flip) -> tuple[int, int]:
        fact = facts[next(iter(flip.change))]
        is_open = decision.facts.get(fact.id) in (None, UNKNOWN)
        first = 0 if is_open and fact.id in CHOICES else 1 if flip.effort == "money" else 2
        return first, EFFORT.index(flip.effort)

    own = (flip for flip in flips if _is_own(facts[next(iter(flip.change))], flip, decision))
    for flip in sorted(own, key=place):
        found.setdefault(str(flip.to), flip)
    return tuple(found.values())[:MAX_SHOWN]


def _is_own(fact: Fact, flip: Flip, decision: Decision) -> bool:
    """Whether the change is one of this person's answers, or asked of the likes of them alone."""
    known = decision.facts.get(fact.id)
    if fact.signal:
        tasks = fact.ask_when.get("task", ())
        asked = all(decision.facts.get(name) in few for name, few in fact.ask_when.items())
        return bool(fact.ask_when) and asked and len(tasks) <= FEW_TASKS
    if fact.id in DATA or fact.id == "n_tasks":
        if known is None:
            return fact.id == "data_kind"
        if fact.id == "data_kind":
            return False
        value = float(flip.change[fact.answer or fact.id])
        return bool(min(value, known) * NEARBY >= max(value, known) and known != 1)
    return fact.id != "teacher" or known is not None


def _flip(fact: Fact, value: Any, to: Composition, instead: str = "") -> Flip:
    effort = "data" if fact.id in DATA else "fixed" if fact.id in FIXED else "answer"
    text = f"if {says(fact, value, would=True)}{instead}"
    return Flip(change={fact.answer or fact.id: value}, to=to, effort=effort, text=text)


# --------------------------------------------------------------------------- answers


def _by_answers(case: Case, decision: Decision) -> Iterator[Flip]:
    """Other values of the choices and signals that some rule looks at."""
    tables = case.ruleset.tables.values()
    looked_at = {fact_id for table in tables for fact_id in table.seen}
    for fact in case.ruleset.facts.values():
        if fact.id not in looked_at or fact.origin == "concluded":
            continue
        for value in _other_values(case, decision, fact):
            change = {fact.id: value, **dict.fromkeys(fact.implied_by(value), True)}
            if _is_consistent(case, decision, {fact.id: value}, change):
                to = case.with_answers(change).composition
                if str(to) != str(decision.composition):
                    yield _flip(fact, value, to)


def _other_values(case: Case, decision: Decision, fact: Fact) -> Sequence[Any]:
    current = decision.facts.get(fact.id)
    if fact.signal:
        is_moot = fact.id == GPU_IS_FULL and _has_room(case, decision)
        return () if is_moot else (current is not True,)
    if fact.id not in (*CHOICES, "data_kind", "checkpoint_kind"):
        return ()
    # Nobody parts with examples for another answer.
    given_up = NO_DATA if current is not None else ()
    return [value for value in fact.values if value not in (current, *given_up)]


def _has_room(case: Case, decision: Decision) -> bool:
    """Whether the machine has no GPU, or one that holds what is recommended, as the page says."""
    if case.situation.hardware.kind == "cpu":
        return True
    return decision.trains and case.cost_of(decision.composition).cost.fits == "fits"


def _is_consistent(
    case: Case, decision: Decision, stated: Mapping[str, Any], change: Mapping[str, Any]
) -> bool:
    if case.ruleset.contradictions({**decision.facts, **change}):
        return False
    return can_be_stated(case.ruleset, {**stated_values(case.situation.answers), **stated})


# --------------------------------------------------------------------------- amounts


def _by_amount(case: Case, decision: Decision) -> Iterator[Flip]:
    """The nearest amounts of rows, tokens and tasks, up and down, at which the answer changes."""
    for fact in (case.ruleset.facts[name] for name in AMOUNTS):
        cuts = amount_cuts(case.ruleset, fact)
        current = decision.facts.get(fact.id)
        points = _points(fact, cuts)
        above = [point for point in points if current is None or point > current]
        below = [point for point in reversed(points) if current is not None and point < current]
        instead = f" instead of {number_words(current)}" if current is not None else ""
        for direction in (above, below):
            tried = (_amount(fact, point, cuts) for point in direction)
            leading = ((value, _with_amount(case, decision, fact, value)) for value in tried)
            found = next(((value, to) for value, to in leading if to is not None), None)
            if found is not None:
                yield _flip(fact, *found, instead)


NEAR = 1.25  # an amount that differs by no more counts as the same in how sure an answer is


def edges_near(case: Case, decision: Decision) -> tuple[str, ...]:
    """The amounts of data close by at which the rules change the answer, in words: what stands on
    either side of one is no firm advice. Costs are those of the amount that is known.
    """
    found = []
    for fact in (case.ruleset.facts[name] for name in DATA[1:]):
        current = decision.facts.get(fact.id)
        if not current:
            continue
        for cut in amount_cuts(case.ruleset, fact):
            if cut <= NEAR * current and current <= NEAR * cut:
                below, above = (
                    str(case.with_answers({fact.id: value}).composition)
                    for value in (int(cut) - 1, int(cut))
                )
                if below != above:
                    found.append(f"from {number_words(cut)} {fact.unit} on the answer is another")
    return tuple(found)


def amount_cuts(ruleset: Ruleset, fact: Fact) -> list[float]:
    """Where some rule of a step tells two amounts apart."""
    tables = (name for name in ruleset.tables if name != SETTINGS)
    rules = (rule for name in tables for rule in judged_rules(ruleset, name))
    return cuts_of(one for rule in rules for one in rule.when if one.fact == fact.id)


def _points(fact: Fact, cuts: list[float]) -> list[float]:
    """An amount between each two thresholds of the rules, and the thresholds."""
    if not cuts:
        return []
    # Below the first one: nobody has a model of 0 parameters.
    below = cuts[0] - 1 if cuts[0] > 1 else cuts[0] / 2
    between = [(low + high) / 2 for low, high in pairwise(cuts)]
    points = sorted((below, *cuts, *between, cuts[-1] + 1))
    least = fact.min or 0
    return [
        point for point in points if point >= least and (not fact.integer or point == int(point))
    ]


def _amount(fact: Fact, point: float, cuts: list[float]) -> float:
    """60,000,000 for 63,750,000, if no rule tells the two apart."""
    if float(f"{point:.1e}") != point:
        for near in (float(f"{point:.0e}"), float(f"{point:.1e}")):
            if near not in cuts and all((cut < point) == (cut < near) for cut in cuts):
                point = near
                break
    return int(point) if fact.integer else point


def _with_amount(case: Case, decision: Decision, fact: Fact, value: float) -> Composition | None:
    """What another amount leads to; None if it leads nowhere else, or cannot be."""
    change = {fact.id: value}
    if not _is_consistent(case, decision, change, change):
        return None
    there = case.with_answers(change)
    is_read = case.situation.data is not None or bool(case.situation.tasks)
    if str(there.composition) == str(decision.composition):
        return None
    if fact.id in DATA and not is_read:
        there = case.restated(change)  # another amount costs otherwise
    to = there.composition
    return to if str(to) != str(decision.composition) else None


# --------------------------------------------------------------------------- GPUs


def _by_gpu(case: Case, decision: Decision) -> Iterator[Flip]:
    """For each scheme that is too big the cheapest GPU that holds it, one for each answer."""
    if not decision.trains and not decision.nothing_fits:
        return
    situation = case.situation
    costs = [case.cost_of(decision.candidate(scheme)) for scheme in schemes()]
    holding = [cheapest_holding(situation, one.stages) for one in costs if not one.cost.is_likely]
    seen = set()
    for card in (card for card in situation.cards if card in holding):
        there = Case.build(replace(situation, hardware=one_card(card)), case.ruleset)
        to = there.with_suggestion().composition
        if str(to) not in seen:
            seen.add(str(to))
            text = f"if you trained on one {card_words(card)}"
            yield Flip(change={"gpu": card.name}, to=to, effort="money", text=text)


def card_words(card: GpuSpec) -> str:
    """'A100 80GB with 80.0 GiB, $1.19/h (RunPod, 2026-08)'."""
    size = f" with {format_gib(card.memory_bytes)}" if card.memory_bytes else ""
    if card.price_usd_per_h is None:
        return f"{card.name}{size}"
    return f"{card.name}{size}, {format_usd(card.price_usd_per_h)}/h ({card.price_note})"


def cheapest_holding(situation: Situation, stages: tuple[FittedStage, ...]) -> GpuSpec | None:
    """The cheapest GPU on which every stage fits with its smallest settings, or None."""
    for card in situation.cards:
        there = one_card(card)
        if card.memory_bytes and all(fits_on(situation, there, stage) for stage in stages):
            return card
    return None


def one_card(card: GpuSpec) -> Hardware:
    """A machine with one such GPU."""
    gpu = Gpu(
        name=card.name,
        memory_total_bytes=card.memory_bytes,
        compute_capability=card.compute_capability,
        bf16=card.bf16,
        spec=card,
    )
    return Hardware(kind="cuda", origin="stated", gpus=(gpu,))


def fits_on(situation: Situation, hardware: Hardware, fitted: FittedStage) -> bool:
    """Whether a stage, with its settings as they are, fits other hardware."""
    if situation.model is None:
        return False
    # float32 on the processor becomes bfloat16 on a GPU
    on_cpu, dtype = situation.hardware.kind == "cpu", fitted.stage.weights_dtype
    stage = replace(fitted.stage, weights_dtype="bfloat16" if on_cpu or dtype is None else dtype)
    run = Run(stage=stage, model=situation.model, device=Device.of(hardware))
    return estimate(run, hardware, past=situation.past).fits == "fits"


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
    situation = case.situation

    def way(
        text: str, to: Composition, change: Mapping[str, Any], typed: Mapping[str, Any]
    ) -> WayOut:
        command = command_line(situation.answers, typed)
        return WayOut(text=text, change=change, to=to, command=command)

    for shape, suggestion in situation.smaller:
        found = Case.build(replace(situation, model=shape), case.ruleset).decision
        if _fits_with_room(found):
            size, to = format_count(shape.params), found.composition
            text = f"a smaller model, {suggestion.model} ({size} parameters), fits with {to}"
            change = {"model": suggestion.model}
            yield way(text, to, change, change)
            break
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
