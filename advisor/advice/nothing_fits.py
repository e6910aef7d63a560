"""Nothing fits: the smallest set of facts to blame, and up to three ways out, each with the line to
type.

The blame is a minimal conflict (QuickXplain, Junker, AAAI 2004): facts that together rule
everything out, while without any one of them something fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from advisor.advice.candidates import SHIPPED, nearest_to_fitting
from advisor.advice.case import Case
from advisor.advice.decide import LAST, Decision
from advisor.advice.flips import card_words, one_card
from advisor.advice.search.concessions import NO_CONCESSIONS
from advisor.advice.types import Candidate, NothingFits, Reason, WayOut
from advisor.ground.types import GpuSpec, Hardware
from advisor.ground.units import format_count, format_duration, format_gib, format_usd
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import command_line
from advisor.situation.types import Situation

MAX_WAYS = 3
NEAR_LIMIT = 2.0  # another method on the same card can be this much faster than the nearest
# In the order in which a person would rather keep them: what comes first is blamed last.
FACTS = ("rules", "model", "gpu", "budget")


def nothing_fits(case: Case, decision: Decision) -> NothingFits:
    """Why, and what would."""
    attempt = _Attempts(case, decision)
    blamed = _quick_explain(attempt.fits, [], [fact for fact in FACTS if attempt.relaxable(fact)])
    close = nearest_to_fitting(case, decision)
    return NothingFits(
        nearest=close,
        blame=tuple(_blame(fact, case.situation, decision, close) for fact in blamed),
        ways_out=attempt.ways_out(close)[:MAX_WAYS],
    )


class _Attempts:
    """The same question with some of its facts relaxed."""

    def __init__(self, case: Case, decision: Decision) -> None:
        self.ruleset, self.situation, self.decision = case.ruleset, case.situation, decision
        self.smaller = case.situation.smaller  # models that could take its place, largest first

    def relaxable(self, fact: str) -> bool:
        """Whether the fact is stated at all, and can be thought away."""
        if fact == "rules":
            return any(
                rule.layer not in SHIPPED
                for rules in self.decision.steps[LAST].forbidden.values()
                for rule in rules
            )
        if fact == "budget":
            return any(key in self.decision.facts for key in ("budget_usd", "budget_hours"))
        return bool(self.smaller) if fact == "model" else bool(self.situation.cards)

    def fits(self, kept: Sequence[str]) -> bool:
        """Whether something fits when every fact that is not kept is at its easiest."""
        situation, changes, ruleset = self.situation, dict[str, Any](), self.ruleset
        if "model" not in kept and self.smaller:
            situation = replace(situation, model=self.smaller[-1][0])
        if "gpu" not in kept and self.situation.cards:
            situation = replace(
                situation,
                hardware=one_card(
                    max(self.situation.cards, key=lambda card: card.memory_bytes or 0)
                ),
            )
        if "budget" not in kept:
            changes = {"budget_usd": None, "budget_hours": None}
        if "rules" not in kept and self.relaxable("rules"):
            ruleset = _without_company_forbids(ruleset)
        return not Case.build(situation, ruleset, changes).decide().nothing_fits

    def ways_out(self, close: Candidate) -> tuple[WayOut, ...]:
        return tuple(
            way
            for way in (self._smaller_model(), self._another_card(close), self._more_budget())
            if way is not None
        )

    def _smaller_model(self) -> WayOut | None:
        for shape, suggestion in self.smaller:
            decision = Case.build(replace(self.situation, model=shape), self.ruleset).decide()
            if _comfortable(decision):
                change = {"model": suggestion.model}
                text = (
                    f"a smaller model, {suggestion.model} ({format_count(shape.params)}"
                    f" parameters), fits with {decision.composition}"
                )
                return WayOut(
                    text=text,
                    change=change,
                    to=decision.composition,
                    command=command_line(self.situation.answers, change),
                )
        return None

    def _another_card(self, close: Candidate) -> WayOut | None:
        """The cheapest card on which something fits within every stated limit."""
        if self.situation.answers.value("budget_usd") == 0:
            return None
        names = {gpu.spec.id for gpu in self.situation.hardware.gpus if gpu.spec is not None}
        for card in self.situation.cards:
            if card.id in names or not self._may_do(card, close):
                continue
            there = replace(self.situation, hardware=one_card(card))
            decision = Case.build(there, self.ruleset).decide()
            if _comfortable(decision):
                change = {"gpu": card.name}
                holds = "does it within the budget" if self.relaxable("budget") else "holds it"
                text = (
                    f"the cheapest GPU that {holds} (with {decision.composition}) is one"
                    f" {card_words(card)}"
                )
                return WayOut(
                    text=text,
                    change=change,
                    to=decision.composition,
                    command=command_line(self.situation.answers, {"gpu": None}),
                )
        return None

    def _may_do(self, card: GpuSpec, close: Candidate) -> bool:
        """Whether asking again is worth it: the nearest candidate would fit the card, and by the
        cards' rates come near every limit.
        """
        needs, duration_s = close.estimate.memory, close.estimate.duration_s
        if card.memory_bytes is None or (
            needs is not None and needs.need_bytes > card.memory_bytes
        ):
            return False
        here = self.situation.hardware.gpus[0].spec if self.situation.hardware.gpus else None
        if duration_s is None or here is None or not here.bf16_flops or not card.bf16_flops:
            return True
        hours = duration_s / 3600 * here.bf16_flops / card.bf16_flops
        limits = (
            (hours, self.decision.facts.get("budget_hours")),
            (hours * (card.price_usd_per_h or 0.0), self.decision.facts.get("budget_usd")),
        )
        return all(limit is None or amount <= NEAR_LIMIT * float(limit) for amount, limit in limits)

    def _more_budget(self) -> WayOut | None:
        if not self.relaxable("budget"):
            return None
        unlimited = {"budget_usd": None, "budget_hours": None}
        decision = Case.build(self.situation, self.ruleset, unlimited).decide()
        if decision.nothing_fits:
            return None
        text = f"without the limit on money or hours, {decision.composition} fits"
        return WayOut(
            text=text,
            change={"budget": None},
            to=decision.composition,
            command=command_line(self.situation.answers, {"budget": None}),
        )


def _comfortable(decision: Decision) -> bool:
    """Whether the decision trains something that fits with room to spare, as a way out should."""
    fit = decision.facts.get(f"fits_{decision.facts['scheme']}")
    is_whole = decision.concessions == NO_CONCESSIONS
    return is_whole and not decision.nothing_fits and fit in ("fits", "unknown")


def _without_company_forbids(ruleset: Ruleset) -> Ruleset:
    rules = {
        table: tuple(
            rule for rule in listed if not (rule.kind == "forbid" and rule.layer not in SHIPPED)
        )
        for table, listed in ruleset.rules.items()
    }
    return replace(ruleset, rules=rules)


def _quick_explain(
    fits: Callable[[Sequence[str]], bool], background: list[str], facts: list[str]
) -> list[str]:
    """A minimal set of `facts` that, kept together with `background`, rules everything out; []
    where none does.

    Fewer than half a dozen facts: leaving them out one by one is QuickXplain without its halving.
    """
    kept = list(facts)
    if fits([*background, *kept]):
        return []
    for fact in reversed(facts):
        without = [other for other in kept if other != fact]
        if not fits([*background, *without]):
            kept = without
    return kept


def _blame(fact: str, situation: Situation, decision: Decision, close: Candidate) -> Reason:
    memory = close.estimate.memory
    need = (
        f"; {close.composition} needs {format_gib(memory.need_bytes)}" if memory is not None else ""
    )
    if fact == "model":
        model = situation.model
        named = f"{model.id}, {format_count(model.params)} parameters" if model else "not named"
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
    rules = dict.fromkeys(
        rule.id
        for rules in decision.steps[LAST].forbidden.values()
        for rule in rules
        if rule.layer not in SHIPPED
    )
    return Reason(
        text=f"your own rules forbid what would fit: {', '.join(rules)}",
        rule=next(iter(rules), None),
    )


def _hardware(hardware: Hardware) -> str:
    size = hardware.device_memory_bytes
    room = f" with {format_gib(size)}" if size is not None else ""
    return (
        f"{len(hardware.gpus)} x {hardware.gpus[0].name}{room}"
        if hardware.gpus
        else f"the processor{room}"
    )
