"""What is wrong with a configuration, worst first: rules as data over what it says.

The rules of one tool stand in its own file, those that hold for every tool in
rules/tools/findings.yaml. A condition names a key of theirs, or a fact: `plan.KEY` (the same in our
words), `data.X`, `model.X`, `machine.X`, `rate.X`. `a | b` holds if one of the two does, and in
`datasets.*.type` the star stands for any item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from typing import Any

from advisor.extras.other_tools.mapping import ABSENT, at_key, is_one
from advisor.extras.other_tools.tool import FINDING, Tool
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, number_words
from advisor.ground.yaml_files import read_shipped

SEVERITIES = ("error", "warning", "note")  # from the worst
FINDINGS_FILE = Keys(
    help="What is wrong with the configuration of any tool",
    keys={"version": Choice(values=(1,)), "findings": ListOf(of=FINDING)},
    required=("version", "findings"),
)
UNSET, SET = "unset", "set"  # conditions on whether the file names a key
GIVEN = "given"  # what an `if` of Python takes for true: not null, false, 0 or empty
NOT, WRITTEN, LIKE = "not", "written", "like"  # conditions in a map of their own
EITHER, ANY_ITEM = " | ", "*"
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
    instead: Mapping[str, Any] | None = None  # their key, or plan.KEY -> the value that mends it
    sources: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # what the rule looked at
    refused: bool = False  # the tool does not start with it


@dataclass(frozen=True, slots=True)
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

    def items(self, name: str) -> tuple[Any, ...]:
        """The values at a name with `*` for the items of a list; one value is a list of one."""
        first, *rest = name.split(f".{ANY_ITEM}")
        found = [self.value(first)]
        for step in rest:
            found = [item for one in found for item in (one if isinstance(one, list) else [one])]
            if step:
                maps = [one for one in found if isinstance(one, Mapping)]
                found = [at_key(one, step[1:]) for one in maps]
        return tuple(one for one in found if one is not ABSENT and one is not None)


@cache
def general_rules() -> Sequence[Mapping[str, Any]]:
    """Those of every tool."""
    path = rules_dir() / "tools" / "findings.yaml"
    return tuple(read_shipped(path, shape=FINDINGS_FILE).data["findings"])


def by_rules(tool: Tool, known: Known) -> Iterator[Found]:
    """What the rules of the tool and those of every tool say."""
    for rule in (*tool.findings, *general_rules()):
        if all(holds(known, name, wanted) for name, wanted in rule["when"].items()):
            named = [_fact_or_same(name, known) for name in rule["sources"]]
            named = [one if isinstance(one, list) else [one] for one in named]
            yield Found(
                id=rule["id"],
                severity=rule["severity"],
                text=filled(rule["say"], known),
                instead={
                    key: _fact_or_same(value, known)
                    for key, value in rule.get("instead", {}).items()
                }
                or None,
                sources=tuple(chain.from_iterable(named)),
                asked=tuple(rule["when"]),
                refused="refused" in rule,
            )


def holds(known: Known, name: str, wanted: Any) -> bool:
    """Whether one condition holds: a value, a list of values, `set` or `unset` (whether the file
    names it), `given`, bounds such as `{gt: N}`, `{not: wanted}`, `{like: pattern}`, or
    `{written: wanted}` of what the file itself names. What is not known satisfies only a null.
    """
    if EITHER in name:
        return any(holds(known, one, wanted) for one in name.split(EITHER))
    if isinstance(wanted, Mapping) and set(wanted) == {NOT}:
        return not holds(known, name, wanted[NOT])
    if isinstance(wanted, Mapping) and set(wanted) == {WRITTEN}:
        return known.is_set(name) and holds(known, name, wanted[WRITTEN])
    if wanted in (UNSET, SET):
        return known.is_set(name) is (wanted == SET)
    if ANY_ITEM in name.split("."):
        return any(_fits(item, wanted) for item in known.items(name))
    return _fits(known.value(name), wanted)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is what a condition wants."""
    if isinstance(wanted, str) and wanted == GIVEN:
        return bool(value)
    if not isinstance(wanted, Mapping):
        return is_one(value, wanted)
    if set(wanted) == {LIKE}:
        patterns = wanted[LIKE] if isinstance(wanted[LIKE], list) else [wanted[LIKE]]
        return isinstance(value, str) and any(fnmatchcase(value.lower(), one) for one in patterns)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return all(BOUNDS[key](value, bound) for key, bound in wanted.items())


def filled(text: str, known: Known) -> str:
    """The text with `{name}` replaced by what is known of it."""
    return PLACE.sub(lambda match: _said(known.value(match[1])), text)


def _fact_or_same(value: Any, known: Known) -> Any:
    """The fact that `{name}` alone stands for, else the value."""
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
