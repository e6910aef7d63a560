"""What an answers file may hold, made of the facts of rules/facts.yaml."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from advisor.ground.shape import Choice, Keys, MapOf, Number, OneOf, Shape, Text
from advisor.ruleset.facts import Fact

LIMITS = Text(pattern=r"[^=]+=.*", such_as="usd=20,hours=6")  # a budget as the flag spells it


def fact_shape(fact: Fact) -> Shape:
    """What may be stated of one fact."""
    match fact.type:
        case "choice":
            return Choice(values=tuple(fact.values))
        case "number":
            return Number(whole=fact.integer, min=fact.min, max=fact.max, unit=fact.unit)
        case "map":
            return MapOf(of=Text(), least=1)
        case "flag":
            return Shape()
    return Text()


def answers_shape(facts: Mapping[str, Fact]) -> Keys:
    """The keys of an answers file. `data: {rows: 5000}` states the fact whose answer is data.rows.

    A map that stands for one of its parts may be that part alone: `data: train.jsonl`. Signals take
    any value, since an unknown one is a warning.
    """
    whole: dict[str, Shape] = {}
    for fact in facts.values():
        if fact.answer and "." not in fact.answer:
            whole[fact.answer] = fact_shape(fact)
    for key in dict.fromkeys(
        fact.answer.partition(".")[0] for fact in facts.values() if fact.answer
    ):
        parts = parts_of(key, facts)
        if not parts:
            continue
        first = whole.get(key, fact_shape(facts[next(iter(parts.values()))]))
        inside = Keys(
            keys={part: fact_shape(facts[name]) for part, name in parts.items()}, nulls=True
        )
        whole[key] = OneOf(options=(first, inside, *((LIMITS,) if key == "budget" else ())))
    return Keys(
        keys={**whole, "signals": Shape()}, nulls=True, others=partial(_where_it_belongs, facts)
    )


def _where_it_belongs(facts: Mapping[str, Fact], name: str, known: Collection[str]) -> str:
    """Where a fact is stated whose own name, flag or last part was taken for a key: `data_rows` and
    `rows` stand inside `data`, a signal in the list of signals.
    """
    name = name.strip("-").replace("-", "_")
    asked = [fact for fact in facts.values() if fact.answer or fact.signal]
    named = [
        fact
        for fact in asked
        if name in (fact.id, (fact.flag or "").strip("-").replace("-", "_"))
        or name == (fact.answer or "").partition(".")[2]
    ]
    if len(named) != 1:
        return ""
    (fact,) = named
    if fact.signal:
        return f"it is a signal: `signals: [{fact.id}]`"
    key, _, part = str(fact.answer).partition(".")
    return f"write it inside `{key}`: `{key}: {{{part}: ...}}`" if part else f"write `{key}`"


def parts_of(key: str, facts: Mapping[str, Fact]) -> dict[str, str]:
    """The keys inside one key of an answers file -> the facts they state: {'usd': 'budget_usd',
    'hours': 'budget_hours'}.
    """
    return {
        fact.answer.partition(".")[2]: fact.id
        for fact in facts.values()
        if fact.answer and fact.answer.startswith(f"{key}.")
    }
