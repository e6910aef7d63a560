"""Part of docs/programs.md: every key of an answers file with its flag, from rules/facts.yaml."""

from collections.abc import Iterable

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
    """Keys, and the names of signals."""
    facts = load_facts()
    stated = (fact for fact in facts.values() if fact.answer)
    named = ", ".join(code(fact.id) for fact in facts.values() if fact.signal)
    return "\n".join([*keys(stated), "", f"Signals: {named}."])


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
        return " ".join(map(code, fact.values))
    words = "a whole number" if fact.integer else KINDS[fact.type]
    words += f" of {number(fact.min)} or more" if fact.min else ""
    return words + (f", in {fact.unit}" if fact.unit else "")
