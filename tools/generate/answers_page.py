"""Part of docs/programs.md: every key of an answers file with its flag, from rules/facts.yaml."""

from collections.abc import Iterable, Mapping

from advisor.ruleset.facts import Fact, load_facts
from tools.generate.markdown import grid
from tools.generate.words import cell, code, number

KINDS = {
    "number": "a number",
    "path": "a file or folder",
    "flag": "true or false",
    "map": "a map",
    "text": "text",
}


def part() -> str:
    """Keys, the values of those that are a choice, and signals."""
    facts = load_facts()
    stated = [fact for fact in facts.values() if fact.answer]
    tables = keys(stated), values(stated), signals(facts)
    return "\n\n".join("\n".join(table) for table in tables)


def keys(stated: Iterable[Fact]) -> list[str]:
    """The table of keys."""
    rows = (
        [
            code(fact.answer),
            code(fact.flag) if fact.flag else "",
            allowed(fact),
            cell(fact.ask),
            "required" if fact.required else cell(fact.unknown),
        ]
        for fact in stated
    )
    return grid(["key", "flag", "value", "question", "if left out"], rows)


def allowed(fact: Fact) -> str:
    """What may stand there."""
    if fact.type == "choice":
        return f"one of {len(fact.values)}"
    words = "a whole number" if fact.integer else KINDS[fact.type]
    words += f" of {number(fact.min)} or more" if fact.min else ""
    return words + (f", in {fact.unit}" if fact.unit else "")


def values(stated: Iterable[Fact]) -> list[str]:
    """The table of the values of every choice."""
    rows = (
        [code(fact.answer), code(name), cell(value.label), cell(value.help)]
        for fact in stated
        if fact.type == "choice"
        for name, value in fact.values.items()
    )
    return grid(["key", "value", "label", "meaning"], rows)


def signals(facts: Mapping[str, Fact]) -> list[str]:
    """The table of signals."""
    rows = ([code(fact.id), cell(fact.ask)] for fact in facts.values() if fact.signal)
    return grid(["signal", "question"], rows)
