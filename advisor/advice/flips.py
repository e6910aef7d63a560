"""What would change the answer, sorted by what a person can do: an answer, data to collect, money
for a GPU, fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import SMALLER_MODEL, Case, Decision
from advisor.advice.facts import can_be_stated, stated_values
from advisor.advice.search.settings import SETTINGS
from advisor.advice.types import FittedStage, Flip
from advisor.advice.why_not import CHOICES
from advisor.estimate import estimate
from advisor.estimate.run import Device, Run
from advisor.ground.types import Gpu, GpuSpec, Hardware
from advisor.ground.units import format_gib, format_usd
from advisor.methods import schemes
from advisor.methods.composition import Composition
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import judged_rules
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import number_words, says
from advisor.ruleset.space import cuts_of
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
    """Of the changes those about this person, three at most, each to another answer: what was not
    said and can be chosen, another GPU, then what was stated. What would lead elsewhere whoever
    asked (other data, a teacher, a good enough prompt) says nothing of this case.
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
                    found.append(f"the answer changes at {number_words(cut)} {fact.unit}")
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
