"""Two rule sets side by side: in which situations a step concludes something else.

Found from the tables, as the proof is (space.py): the rules of both sets are gone through together,
so nothing is sampled and nothing is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ruleset.decisions import Precedence, deciding, layer_of
from advisor.ruleset.facts import Fact
from advisor.ruleset.judge import judged_rules
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.space import Region, Space, TooManyCases

MAX_REGIONS = 3  # shown for one change of a conclusion; the others are counted by nobody


class Difference(Struct, frozen=True, kw_only=True):
    """Situations in which a step concludes `first` and `second`; None: nothing at all."""

    table: str
    key: str  # of a setting; empty for a conclusion
    first: Any
    second: Any
    rules: tuple[Rule | None, Rule | None]  # that decide in the situation of the region
    region: Region


class TableDifference(Struct, frozen=True, kw_only=True):
    """What changes in one step."""

    table: str
    differences: tuple[Difference, ...] = ()
    cut: bool = False  # more regions than are shown
    too_many: bool = False  # more cases than can be gone through
    only_in: int | None = None  # 0 or 1: the rule set that alone has the step


class RulesComparison(Struct, frozen=True, kw_only=True):
    """Everything that two rule sets conclude differently, and which rules are not the same."""

    tables: tuple[TableDifference, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]  # the same id, but another condition, conclusion, tier or kind

    @property
    def is_equal(self) -> bool:
        """Whether every situation gets the same answer."""
        return not self.tables


def compare_rules(first: Ruleset, second: Ruleset) -> RulesComparison:
    """Every situation in which a step of the second rule set concludes something else."""
    joint = _joined(first, second)
    own, other = _by_id(first), _by_id(second)
    names = list(dict.fromkeys([*first.tables, *second.tables]))
    tables = [_compare_table(first, second, joint, name) for name in names]
    return RulesComparison(
        tables=tuple(table for table in tables if table is not None),
        added=tuple(sorted(other.keys() - own.keys())),
        removed=tuple(sorted(own.keys() - other.keys())),
        changed=tuple(
            sorted(
                name for name in own.keys() & other.keys() if _say(own[name]) != _say(other[name])
            )
        ),
    )


def _by_id(ruleset: Ruleset) -> dict[str, Rule]:
    return {rule.id: rule for rules in ruleset.rules.values() for rule in rules}


def _say(rule: Rule) -> tuple[Any, ...]:
    """What a rule says, without its reason and sources."""
    return rule.table, rule.kind, rule.tier, set(rule.when), dict(rule.then)


def _joined(first: Ruleset, second: Ruleset) -> Ruleset:
    """The facts of both with all their values; what cannot occur is what neither lets occur."""
    facts: dict[str, Fact] = dict(first.facts)
    for fact_id, fact in second.facts.items():
        before = facts.get(fact_id)
        if before is not None:
            fact = replace(
                fact,
                values={**before.values, **fact.values},
                implies=tuple(name for name in fact.implies if name in before.implies),
            )
        facts[fact_id] = fact
    stated = {frozenset(one.never) for one in first.assume}
    assume = tuple(one for one in second.assume if frozenset(one.never) in stated)
    return replace(second, facts=facts, assume=assume)


def _compare_table(
    first: Ruleset, second: Ruleset, joint: Ruleset, table_id: str
) -> TableDifference | None:
    sides = (first, second)
    missing = [number for number, one in enumerate(sides) if table_id not in one.tables]
    if missing:
        return TableDifference(table=table_id, only_in=1 - missing[0])
    if first.tables[table_id].per:  # its rules count in the step that ranks the schemes
        return None
    found: list[Difference] = []
    cut = False
    try:
        for pair in _pairs(sides, joint, table_id):
            regions, more = pair.differences()
            found += regions
            cut = cut or more
    except TooManyCases:
        return TableDifference(table=table_id, too_many=True)
    return TableDifference(table=table_id, differences=tuple(found), cut=cut) if found else None


class _Pair:
    """The rules of both sets for one conclusion or key; the bits of the first stand below."""

    def __init__(
        self, joint: Ruleset, table_id: str, rules: Sequence[Sequence[Rule]], said: str
    ) -> None:
        self.table_id, self.rules = table_id, rules
        self.key = "" if said == joint.tables[table_id].concludes else said
        self.space = Space(joint, [*rules[0], *rules[1]])
        self.count = len(rules[0])
        self.own = (1 << self.count) - 1
        decided = list(zip(*map(self.parts, self.space.decided()), strict=True))
        self.sides = [Precedence(rules[side], said, decided[side]) for side in (0, 1)]

    def parts(self, state: int) -> tuple[int, int]:
        return state & self.own, (state & self.space.rule_bits) >> self.count

    def deciders(self, state: int) -> tuple[Rule | None, Rule | None]:
        first, second = (
            None if (bit := self.sides[side].winner(part)) < 0 else self.rules[side][bit]
            for side, part in enumerate(self.parts(state))
        )
        return first, second

    def shorten(self, state: int, number: int) -> int:
        """A set without what no longer changes who wins under either."""
        first, second = self.parts(state)
        rest = state & ~self.space.rule_bits  # of what cannot occur
        own = self.sides[0].shorten(first, number)
        return rest | own | self.sides[1].shorten(second, number) << self.count

    def outcomes(self, state: int) -> tuple[Any, Any]:
        first, second = (
            None if rule is None else rule.then[self.sides[0].said] for rule in self.deciders(state)
        )
        return first, second

    def differences(self) -> tuple[list[Difference], bool]:
        found: list[Difference] = []
        cut = False
        states = self.space.sets(shorten=self.shorten)
        changes = {
            _named(pair): pair for pair in map(self.outcomes, states) if len(set(_named(pair))) > 1
        }
        for change in changes.values():
            boxes: list[Region] = []
            while (state := self._state(change, boxes)) is not None:
                if len(boxes) == MAX_REGIONS:
                    cut = True
                    break
                key, chain = state
                box = self.space.box(chain, self._is(change), self.shorten)
                boxes.append(box)
                found.append(
                    Difference(
                        table=self.table_id, key=self.key, first=change[0], second=change[1],
                        rules=self.deciders(key), region=box,
                    )
                )  # fmt: skip
        return found, cut

    def _is(self, change: tuple[Any, Any]) -> Callable[[int], bool]:
        return lambda state: _named(self.outcomes(state)) == _named(change)

    def _state(self, change: tuple[Any, Any], boxes: Iterable[Region]) -> tuple[int, Any] | None:
        """A set of rules outside the boxes that fires with this change, and its witness."""
        same = self._is(change)
        for within in self.space.outside(boxes):
            for state, chain in self.space.sets(within, self.shorten).items():
                if same(state):
                    return state, chain
        return None


def _pairs(sides: Sequence[Ruleset], joint: Ruleset, table_id: str) -> Iterable[_Pair]:
    """What one step concludes, then each key that it sets."""
    rules = [judged_rules(one, table_id) for one in sides]
    if any(rule.kind == "recommend" for one in rules for rule in one):
        said = joint.tables[table_id].concludes
        yield _Pair(
            joint, table_id, [deciding(*one) for one in zip(sides, rules, strict=True)], said
        )
    for key in sorted(
        {k for one in rules for rule in one if rule.kind == "set" for k in rule.then}
    ):
        setting = [_setting(one, found, key) for one, found in zip(sides, rules, strict=True)]
        if [_say(rule) for rule in setting[0]] != [_say(rule) for rule in setting[1]]:
            yield _Pair(joint, table_id, setting, key)


def _setting(ruleset: Ruleset, rules: Iterable[Rule], key: str) -> list[Rule]:
    setting = [rule for rule in rules if rule.kind == "set" and key in rule.then]
    return sorted(setting, key=lambda rule: (layer_of(ruleset, rule), rule.id), reverse=True)


def _named(pair: tuple[Any, Any]) -> tuple[str, str]:
    """The pair as texts: true and 1 are two values, and a list is one, too."""
    return repr(pair[0]), repr(pair[1])
