"""What would change the answer, sorted by what a person can do: an answer, data to collect, money for a card, fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from advisor.estimate import estimate
from advisor.ruleset.model import Ruleset
from advisor.types import Composition, Estimate, Flip, Gpu, GpuSpec, Hardware, Situation, StageSettings
from advisor.units import format_gib, format_usd

from .fit import run_spec

EFFORT = ("answer", "data", "money", "fixed")
ANSWERS = ("budget", "depth", "data_kind")  # questions whose other answers are tried
DOTTED = {"data_kind": "data.kind", "data_rows": "data.rows", "data_tokens": "data.tokens"}


def flips_of(
    ruleset: Ruleset,
    situation: Situation,
    facts: Mapping[str, Any],
    current: Composition,
    costs: Mapping[str, tuple[tuple[StageSettings, ...], Estimate]],
    answer: Callable[[Mapping[str, Any]], Composition],
) -> tuple[Flip, ...]:
    """Single changes that lead to another composition, the easiest first."""
    flips: list[Flip] = []
    for fact_id in ANSWERS:
        for value in ruleset.facts[fact_id].values:
            if value == facts.get(fact_id):
                continue
            other = answer({fact_id: value})
            if str(other) != str(current):
                effort = "data" if fact_id == "data_kind" else "answer"
                flips.append(Flip(change={DOTTED.get(fact_id, fact_id): value}, to=other, effort=effort, text=f"if {fact_id.replace('_', ' ')} were {value.replace('_', ' ')}"))
    flips.extend(_by_card(situation, current, costs))
    return tuple(sorted(flips, key=lambda flip: EFFORT.index(flip.effort)))


def _by_card(situation: Situation, current: Composition, costs: Mapping[str, tuple[tuple[StageSettings, ...], Estimate]]) -> list[Flip]:
    """For each scheme that is too big: the cheapest card of the catalogue that would hold it."""
    flips = []
    for scheme, (stages, cost) in costs.items():
        if cost.fits != "too_big":
            continue
        card = cheapest_holding(situation, stages)
        if card is not None:
            from advisor.composition import composed

            to = composed(("encoder:" if current.encoder else "") + ">".join(current.chain or ("sft",)), scheme, per_task=current.per_task, remedies=current.remedies)
            price = f", {format_usd(card.price_usd_per_h)}/h ({card.price_note})" if card.price_usd_per_h is not None else ""
            size = f" with {format_gib(card.memory_bytes)}" if card.memory_bytes else ""
            flips.append(Flip(change={"gpu": card.name}, to=to, effort="money", text=f"{scheme} would fit on one {card.name}{size}{price}"))
    return flips


def cheapest_holding(situation: Situation, stages: tuple[StageSettings, ...]) -> GpuSpec | None:
    """The cheapest card on which every stage fits with its smallest settings, or None."""
    for card in situation.cards:
        if card.memory_bytes is None:
            continue
        gpu = Gpu(name=card.name, memory_total_bytes=card.memory_bytes, compute_capability=card.compute_capability, bf16=card.bf16, spec=card)
        hardware = Hardware(kind="cuda", origin="stated", gpus=(gpu,))
        if all(_fits_on(situation, hardware, stage) for stage in stages):
            return card
    return None


def _fits_on(situation: Situation, hardware: Hardware, stage: StageSettings) -> bool:
    plain = {key: chosen.value for key, chosen in stage.settings.items()}
    if situation.hardware.kind == "cpu":  # float32 on the processor becomes bfloat16 on a card
        plain["weights_dtype"] = "bfloat16"
    spec = run_spec(stage.objective, stage.update, stage.quantization, plain)
    return estimate(spec, situation.model, hardware, tokens_total=None, rows_total=None).fits == "fits"
