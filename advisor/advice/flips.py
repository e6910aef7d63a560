"""What would change the answer, sorted by what a person can do: an answer, data to collect, money
for a card, fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from advisor.advice.case import Case
from advisor.advice.decide import SMALLER_MODEL, Decision
from advisor.advice.facts import can_be_stated, stated_values
from advisor.advice.types import Flip, StageSettings
from advisor.advice.why_not import CHOICES
from advisor.ground.types import Gpu, GpuSpec, Hardware
from advisor.ground.units import format_gib, format_usd
from advisor.methods import schemes
from advisor.ruleset.facts import Fact
from advisor.ruleset.judge import cell_points, compile_table
from advisor.ruleset.phrases import number_words, says
from advisor.situation.types import Situation

EFFORT = ("answer", "data", "money", "fixed")
DATA = ("data_kind", "data_rows", "data_tokens")  # what could be collected
FIXED = ("task", "params_b", "checkpoint_kind", "n_tasks")  # what is as it is, still worth knowing
NO_DATA = ("none",)
GPU_IS_FULL = "memory_bound"
MAX_PER_ANSWER = 2  # changes shown that lead to the same answer: the rest say nothing new


def find_flips(case: Case, decision: Decision) -> tuple[Flip, ...]:
    """Single changes that lead to another composition, the easiest first."""
    found = [
        *_by_answers(case, decision),
        *_by_amount(case, decision),
        *_by_card(case, decision),
    ]
    found.sort(key=lambda flip: EFFORT.index(flip.effort))
    return tuple(_without_repeats(found, str(decision.composition)))


def _without_repeats(flips: list[Flip], current: str) -> Iterator[Flip]:
    seen: dict[str, int] = {}
    for flip in flips:
        to = str(flip.to)
        if SMALLER_MODEL in flip.to.remedies:
            continue  # that nothing fits is no answer that anybody would change something for
        if to != current and seen.get(to, 0) < MAX_PER_ANSWER:
            seen[to] = seen.get(to, 0) + 1
            yield flip


def _by_answers(case: Case, decision: Decision) -> Iterator[Flip]:
    """Other values of the choices and signals that some rule looks at."""
    ruleset = case.ruleset
    looked_at = {fact_id for table in ruleset.tables.values() for fact_id in table.seen}
    for fact in ruleset.facts.values():
        if fact.id not in looked_at or fact.origin == "concluded":
            continue
        current = decision.facts.get(fact.id)
        if fact.signal:
            changes: list[Any] = [True] if current is not True else [False]
            if fact.id == GPU_IS_FULL and _has_room(case, decision):
                continue
        elif fact.id in (*CHOICES, "data_kind", "checkpoint_kind"):
            # Nobody parts with examples for another answer.
            given_up = NO_DATA if current is not None else ()
            changes = [value for value in fact.values if value not in (current, *given_up)]
        else:
            continue
        for value in changes:
            change = {fact.id: value, **dict.fromkeys(fact.implied_by(value), True)}
            if not _can_be_so(case, decision, fact, value, change):
                continue
            to = case.with_answers(change).decide().composition
            if str(to) != str(decision.composition):
                yield Flip(
                    change={fact.answer or fact.id: value},
                    to=to,
                    effort=_effort(fact.id),
                    text=f"if {says(fact, value, would=True)}",
                )


def _has_room(case: Case, decision: Decision) -> bool:
    """Whether the machine has no GPU, or one that holds what is recommended, as the page says."""
    if case.situation.hardware.kind == "cpu":
        return True
    return decision.trains and case.cost_of(decision.composition)[1].fits == "fits"


def _can_be_so(
    case: Case, decision: Decision, fact: Fact, value: Any, change: Mapping[str, Any]
) -> bool:
    """Whether a change goes with all else that was stated: nobody can deny that there is a larger
    model and have its answers.
    """
    if case.ruleset.contradictions({**decision.facts, **change}):
        return False
    said = stated_values(case.situation.answers)
    return can_be_stated(case.ruleset, {**said, fact.id: value})


def _effort(fact_id: str) -> str:
    return "data" if fact_id in DATA else "fixed" if fact_id in FIXED else "answer"


def _by_amount(case: Case, decision: Decision) -> Iterator[Flip]:
    """The nearest amounts of rows, tokens and tasks, up and down, at which the answer changes."""
    ruleset = case.ruleset
    for fact_id in ("data_rows", "data_tokens", "n_tasks", "params_b"):
        cuts = sorted(
            {
                cut
                for table in ruleset.tables
                if table != "settings" and fact_id in ruleset.tables[table].seen
                for cut in compile_table(ruleset, table).cuts[fact_id]
            }
        )
        if not cuts:
            continue
        fact, current = ruleset.facts[fact_id], decision.facts.get(fact_id)
        least = fact.min or 0
        points = [
            point
            # Of what lies below the first cut: nobody has a model of 0 parameters.
            for point in (one if one > 0 else cuts[0] / 2 for one in cell_points(cuts))
            if point >= least and (not fact.integer or point == int(point))
        ]
        above = [point for point in points if current is None or point > current]
        below = [point for point in reversed(points) if current is not None and point < current]
        for direction in (above, below):
            for point in direction:
                point = _rounder(point, cuts)
                value = int(point) if fact.integer else point
                if not _can_be_so(case, decision, fact, value, {fact_id: value}):
                    continue
                there = case.with_answers({fact_id: value})
                if str(there.decide().composition) == str(decision.composition):
                    continue
                if fact_id in DATA and case.situation.data is None and not case.situation.tasks:
                    there = case.restated({fact_id: value})  # another amount costs otherwise
                to = there.decide().composition
                if str(to) != str(decision.composition):
                    yield Flip(
                        change={fact.answer or fact_id: value},
                        to=to,
                        effort=_effort(fact_id),
                        text=_amount(fact, value, current),
                    )
                    break


def _rounder(point: float, cuts: list[float]) -> float:
    """The amount as a person would say it, where no rule tells the two apart: 60,000,000 for
    63,750,000.
    """
    if float(f"{point:.1e}") == point:
        return point
    for digits in (0, 1):
        near = float(f"{point:.{digits}e}")
        if near not in cuts and all((cut < point) == (cut < near) for cut in cuts):
            return near
    return point


def _amount(fact: Fact, value: float, current: float | None) -> str:
    """'if you had 49 examples instead of 1,500'."""
    instead = f" instead of {number_words(current)}" if current is not None else ""
    return f"if {says(fact, value, would=True)}{instead}"


# --------------------------------------------------------------------------- cards


def _by_card(case: Case, decision: Decision) -> Iterator[Flip]:
    """For each scheme that is too big the cheapest card that holds it, and what the answer is
    there; of cards with one answer the cheapest.
    """
    if not decision.trains and not decision.nothing_fits:
        return
    situation = case.situation
    costs = [case.cost_of(decision.candidate(scheme)) for scheme in schemes()]
    holding = [cheapest_holding(situation, stages) for stages, cost in costs if not cost.is_likely]
    found: dict[str, Flip] = {}
    for card in (card for card in situation.cards if card in holding):
        there = Case.build(replace(situation, hardware=one_card(card)), case.ruleset)
        there = there.with_suggestion()
        to = there.decide().composition
        found.setdefault(
            str(to),
            Flip(
                change={"gpu": card.name},
                to=to,
                effort="money",
                text=f"if you trained on one {card_words(card)}",
            ),
        )
    yield from found.values()


def card_words(card: GpuSpec) -> str:
    """'A100 80GB with 80.0 GiB, $1.19/h (RunPod, 2026-08)'."""
    size = f" with {format_gib(card.memory_bytes)}" if card.memory_bytes else ""
    price = (
        f", {format_usd(card.price_usd_per_h)}/h ({card.price_note})"
        if card.price_usd_per_h is not None
        else ""
    )
    return f"{card.name}{size}{price}"


def cheapest_holding(situation: Situation, stages: tuple[StageSettings, ...]) -> GpuSpec | None:
    """The cheapest card on which every stage fits with its smallest settings, or None."""
    return next(
        (
            card
            for card in situation.cards
            if card.memory_bytes is not None
            and all(fits_on(situation, one_card(card), stage) for stage in stages)
        ),
        None,
    )


def one_card(card: GpuSpec) -> Hardware:
    """A machine with one such card."""
    gpu = Gpu(
        name=card.name,
        memory_total_bytes=card.memory_bytes,
        compute_capability=card.compute_capability,
        bf16=card.bf16,
        spec=card,
    )
    return Hardware(kind="cuda", origin="stated", gpus=(gpu,))


def fits_on(situation: Situation, hardware: Hardware, stage: StageSettings) -> bool:
    """Whether a stage, with its settings as they are, fits other hardware."""
    from advisor.estimate import estimate
    from advisor.estimate.run import Device, Run, stage_of

    if situation.model is None:
        return False
    plain = {key: chosen.value for key, chosen in stage.settings.items()}
    if situation.hardware.kind == "cpu":  # float32 on the processor becomes bfloat16 on a card
        plain["weights_dtype"] = "bfloat16"
    axes = {
        "objective": stage.objective,
        "update": stage.update,
        "quantization": stage.quantization,
    }
    run = Run(stage=stage_of({**plain, **axes}), model=situation.model, device=Device.of(hardware))
    return estimate(run, hardware, past=situation.past).fits == "fits"
