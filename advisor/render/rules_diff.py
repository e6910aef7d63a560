"""Two rule sets side by side, as text and as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from advisor.advice.comparing import Answered, ComparedRules
from advisor.ruleset.compare import Difference, TableDifference
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import number_words

LISTED_RULES = 8


def diff_text(compared: ComparedRules, names: tuple[str, str], sides: tuple[Ruleset, ...]) -> str:
    """Which rules differ, then step by step what is concluded otherwise, each with an example."""
    found = compared.comparison
    lines = [
        f"{name}: {one.digest}, {sum(map(len, one.rules.values()))} rules"
        for name, one in zip(names, sides, strict=True)
    ]
    for word, rules in (
        ("only in the second", found.added),
        ("only in the first", found.removed),
        ("changed", found.changed),
    ):
        if rules:
            more = f" and {len(rules) - LISTED_RULES} more" if len(rules) > LISTED_RULES else ""
            lines.append(f"{word}: {', '.join(rules[:LISTED_RULES])}{more}")
    if found.is_equal:
        return "\n".join([*lines, "every situation has the same answer"])
    for table in found.tables:
        lines += ["", *_table_lines(table, compared, sides)]
    return "\n".join(lines)


def _table_lines(
    table: TableDifference, compared: ComparedRules, sides: tuple[Ruleset, ...]
) -> Iterable[str]:
    about = next(one.tables[table.table].about for one in sides if table.table in one.tables)
    yield f"{table.table}: {about}"
    if table.only_in is not None:
        yield f"  only the {('first', 'second')[table.only_in]} rule set has this step"
    if table.too_many:
        yield "  too many cases to compare"
    changes: dict[tuple[str, str, str], list[Difference]] = {}
    for one in table.differences:
        changes.setdefault((one.key, _value(one.first), _value(one.second)), []).append(one)
    for (key, first, second), differences in changes.items():
        yield f"  {f'{key}: ' if key else ''}{first} -> {second}"
        shown: set[str] = set()
        for number, difference in enumerate(differences):
            yield f"    {'or ' if number else ''}if {difference.region.text}"
            yield f"      {' -> '.join(_rule(rule) for rule in difference.rules)}"
            example = compared.example(difference)
            if example is not None and (text := _example(example)) not in shown:
                shown.add(text)
                yield f"      {text}"
    if table.cut:
        yield "  some of these changes have further conditions, which are not shown"


def _rule(rule: Any) -> str:
    return "no rule" if rule is None else str(rule.id)


def _value(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _example(example: Answered) -> str:
    stated = ", ".join(f"{name}: {_stated(value)}" for name, value in example.facts.items())
    if example.first == example.second:
        return f"for example {stated}: the answer stays {example.first}"
    return f"for example {stated}: {example.first} -> {example.second}"


def _stated(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_words(value) if isinstance(value, int | float) else str(value)


def diff_json(
    compared: ComparedRules, names: tuple[str, str], sides: tuple[Ruleset, ...]
) -> dict[str, Any]:
    """The same as one JSON document."""
    found = compared.comparison
    return {
        "schema_version": 1,
        "first": {"name": names[0], "digest": sides[0].digest},
        "second": {"name": names[1], "digest": sides[1].digest},
        "rules": {
            "only_in_first": list(found.removed),
            "only_in_second": list(found.added),
            "changed": list(found.changed),
        },
        "steps": [
            {
                "step": table.table,
                "only_in": None if table.only_in is None else ("first", "second")[table.only_in],
                "compared": not table.too_many,
                "all_shown": not table.cut,
                "differences": [_difference(one, compared) for one in table.differences],
            }
            for table in found.tables
        ],
    }


def _difference(difference: Difference, compared: ComparedRules) -> Mapping[str, Any]:
    example = compared.example(difference)
    return {
        "key": difference.key or None,
        "first": difference.first,
        "second": difference.second,
        "rules": [None if rule is None else rule.id for rule in difference.rules],
        "if": difference.region.text,
        "example": None
        if example is None
        else {"facts": dict(example.facts), "first": example.first, "second": example.second},
    }
