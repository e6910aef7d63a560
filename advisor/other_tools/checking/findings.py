"""What is wrong with a configuration, worst first: rules as data over what it says.

The rules of one tool stand in its own file, those that hold for every tool in
rules/tools/findings.yaml. A condition names a key of theirs, or a fact: `plan.KEY` (the same in our
words), `data.X`, `model.X`, `machine.X`, `rate.X`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, number_words
from advisor.ground.yaml_cache import read_shipped
from advisor.other_tools.tables.mapping import ABSENT, at_key, same_value
from advisor.other_tools.tables.tool import FINDING, FindingRule, Tool, finding_rule

SEVERITIES = ("error", "warning", "note")  # from the worst
FINDINGS_FILE = Keys(
    help="What is wrong with the configuration of any tool",
    keys={"version": Choice(values=(1,)), "findings": ListOf(of=FINDING)},
    required=("version", "findings"),
)
UNSET, SET = "unset", "set"  # conditions on whether the file names a key
BOUNDS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
PLACE = re.compile(r"\{([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One thing that is said of a configuration."""

    id: str
    severity: str  # error | warning | note
    text: str
    where: str = ""  # file:line:column
    instead: Mapping[str, Any] | None = (
        None  # key of theirs, or plan.KEY -> the value that mends it
    )
    sources: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # what the rule looked at
    refused: bool = False  # the tool does not start with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the rules may ask for."""

    values: Mapping[str, Any]  # of the file
    defaults: Mapping[str, Any]  # of the tool
    facts: Mapping[str, Any]  # dotted name -> value; a name that is not there is not known

    def value(self, name: str) -> Any:
        """A fact, or the value of a key, given or by default; None where neither is known."""
        if name in self.facts:
            return self.facts[name]
        found = at_key(self.values, name)
        found = at_key(self.defaults, name) if found is ABSENT else found
        return None if found is ABSENT else found

    def is_set(self, name: str) -> bool:
        """Whether the file names the key."""
        return at_key(self.values, name) is not ABSENT


@cache
def general_rules() -> tuple[FindingRule, ...]:
    """Those of every tool."""
    data = read_shipped(rules_dir() / "tools" / "findings.yaml", shape=FINDINGS_FILE).data
    return tuple(finding_rule(one) for one in data["findings"])


def by_rules(tool: Tool, known: Known) -> Iterator[Found]:
    """What the rules of the tool and those of every tool say."""
    for rule in (*tool.findings, *general_rules()):
        if all(holds(known, name, wanted) for name, wanted in rule.when.items()):
            yield Found(
                id=rule.id,
                severity=rule.severity,
                text=filled(rule.say, known),
                instead=_values(rule.instead, known) or None,
                sources=tuple(_sources(rule.sources, known)),
                asked=tuple(rule.when),
                refused=rule.refused,
            )


def holds(known: Known, name: str, wanted: Any) -> bool:
    """Whether one condition holds. What is not known satisfies only a null."""
    if wanted == UNSET:
        return not known.is_set(name)
    if wanted == SET:
        return known.is_set(name)
    value = known.value(name)
    if isinstance(wanted, Mapping):
        if set(wanted) == {"not"}:
            return not holds(known, name, wanted["not"])
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return all(BOUNDS[key](value, bound) for key, bound in wanted.items())
    if isinstance(wanted, list):
        return any(same_value(value, one) for one in wanted)
    return same_value(value, wanted)


def filled(text: str, known: Known) -> str:
    """The text with `{name}` replaced by what is known of it."""
    return PLACE.sub(lambda match: _said(known.value(match[1])), text)


def _values(instead: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """The values that mend it; `{name}` alone stands for a fact."""
    return {key: _fact_or_same(value, known) for key, value in instead.items()}


def _sources(names: Sequence[str], known: Known) -> Iterator[str]:
    for name in names:
        found = _fact_or_same(name, known)
        yield from found if isinstance(found, list) else [found]


def _fact_or_same(value: Any, known: Known) -> Any:
    whole = PLACE.fullmatch(value) if isinstance(value, str) else None
    return value if whole is None else known.value(whole[1])


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_words(value)
    return "not set" if value is None else str(value)


def worst_first(found: Sequence[Found]) -> tuple[Found, ...]:
    """Errors, then warnings, then notes; each once, in the order they were found."""
    each = {(one.id, one.where, one.text): one for one in found}
    return tuple(sorted(each.values(), key=lambda one: SEVERITIES.index(one.severity)))
