"""What the sets of rules that can fire together prove of a table: no hole, no tie, no dead rule, no
two values for a setting.

Rules that recommend and forbid are looked at together; the settings key by key, since keys do not
touch one another; a warning by itself. That keeps the sets few without losing a case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from advisor.ruleset.decisions import (
    MAX_CULPRITS,
    SHOWN_BOXES,
    Clash,
    Decisions,
    Idle,
    Precedence,
    TableProof,
    bits,
    by_precedence,
    deciding,
    mask,
)
from advisor.ruleset.judge import conditions_on, judged_rules
from advisor.ruleset.model import DecisionTable, Rule, Ruleset
from advisor.ruleset.space import Space, cells_of


class _Setting(Precedence):
    """The set rules of one key: the lowest bit that fires has the value."""

    def __init__(self, ruleset: Ruleset, key: str, rules: Iterable[Rule]) -> None:
        found = by_precedence(ruleset, (rule for rule in rules if key in rule.then))
        self.bit = {rule.id: i for i, rule in enumerate(found)}
        self.space = Space(ruleset, found)
        self.states = self.space.sets()
        super().__init__(found, key, ())

    def top(self, state: int) -> int:
        """Of the rules that fire, those of the latest layer."""
        return state & self.peers[self.winner(state)] if state else 0

    def needs(self, i: int, state: int) -> bool:
        rest = state & ~(1 << i)
        stays = rest and not self.top(rest) & ~self.same[i]
        return bool(self.top(state) >> i & 1) and not stays

    def is_needed(self, rule_id: str, gone: set[str]) -> bool:
        left = self.space.rule_bits & ~mask(self.bit[name] for name in gone if name in self.bit)
        i = self.bit[rule_id]
        return any(self.needs(i, state & left) for state in self.states if state >> i & 1)

    def clashes(self) -> dict[tuple[int, int], int]:
        """Pairs of one layer that fire together with two values -> a state."""
        found: dict[tuple[int, int], int] = {}
        for state in self.states:
            winner, ties = self.ties(state)
            for other in bits(ties):
                found.setdefault((winner, other), state)
        return found


def prove_settings(ruleset: Ruleset, rules: Sequence[Rule], proof: TableProof) -> None:
    """Find contradictions and idle rules, key by key."""
    settings = [
        _Setting(ruleset, key, rules)
        for key in sorted({key for rule in rules for key in rule.then})
    ]
    fired_ids: set[str] = set()
    masked: set[str] = set()
    for setting in settings:
        proof.sets += len(setting.states)
        fired = counted = 0
        for state in setting.states:
            fired |= state
            counted |= setting.top(state)
        fired_ids |= {rule.id for i, rule in enumerate(setting.rules) if fired >> i & 1}
        for number, ((first, other), state) in enumerate(sorted(setting.clashes().items())):

            def clash(found: int, first: int = first, other: int = other) -> bool:
                return bool(found >> first & 1 and found >> other & 1)

            box = setting.space.box(setting.states[state], clash) if number < SHOWN_BOXES else None
            one, two = setting.rules[first], setting.rules[other]
            proof.contradictions.append(Clash(first=one, second=two, box=box, key=setting.said))
        for i in bits(fired & ~counted):
            culprits = Counter(
                j for state in setting.states if state >> i & 1 for j in bits(setting.top(state))
            )
            masked.add(setting.rules[i].id)
            most = tuple(setting.rules[j] for j, _ in culprits.most_common(MAX_CULPRITS))
            proof.never_wins.append(Idle(rule=setting.rules[i], key=setting.said, culprits=most))
    proof.unreachable += [rule for rule in rules if rule.id not in fired_ids]
    gone: set[str] = set()
    # Of rules that cover each other the narrowest goes first.
    for rule in sorted(rules, key=lambda rule: (-len(rule.when), rule.id)):
        own = [setting for setting in settings if rule.id in setting.bit]
        if rule.id not in fired_ids - masked or any(
            setting.is_needed(rule.id, gone) for setting in own
        ):
            continue
        gone.add(rule.id)
        others = Counter(
            setting.rules[j].id
            for setting in own
            for state in setting.states
            if state >> setting.bit[rule.id] & 1
            for j in bits(state & setting.same[setting.bit[rule.id]])
            if setting.rules[j].id not in gone
        )
        known = {other.id: other for other in rules}
        most = tuple(known[name] for name, _ in others.most_common(MAX_CULPRITS))
        proof.redundant.append(Idle(rule=rule, culprits=most))


def prove(ruleset: Ruleset, table_id: str) -> TableProof:
    """Everything that can be said of one table of the merged rules. Raises TooManyCases."""
    table, rules = ruleset.tables[table_id], judged_rules(ruleset, table_id)
    proof = TableProof(table=table, rules=sum(not rule.candidate for rule in rules))
    proof.unused_inputs = _unused(table, rules)
    if table.per:  # spread over the schemes, its rules are proved with the table that ranks them
        return proof
    proof.cells = Space(ruleset, rules).size
    outcomes = [
        outcome for outcome in ruleset.facts[table.concludes].values if outcome != "unknown"
    ]
    if outcomes:
        Decisions(ruleset, table, deciding(ruleset, rules), proof).run(outcomes)
    prove_settings(ruleset, [rule for rule in rules if rule.kind == "set"], proof)
    for rule in rules:
        if rule.kind == "warn" and not Space(ruleset, [rule]).sets().keys() - {0}:
            proof.unreachable.append(rule)
    _join_candidates(proof, rules, ruleset.rules.get(table.asks, ()))
    return proof


def _unused(table: DecisionTable, rules: Sequence[Rule]) -> list[str]:
    """Inputs that no rule of the table looks at; a fact of each scheme counts where one is used."""
    own = [rule for rule in rules if not rule.candidate]
    used = {c.named or c.fact for rule in own for c in rule.when}
    return [
        name
        for name in table.inputs
        if name not in used and not any(fact.startswith(f"{name}_") for fact in used)
    ]


def _join_candidates(proof: TableProof, rules: Sequence[Rule], asked: Iterable[Rule]) -> None:
    """A rule that is asked for each scheme can never fire only if it cannot for every one of them.

    Args:
        proof: What was found of each rule, those of single schemes included.
        rules: The rules that the table judges with.
        asked: The rules of the table that is asked, as they are written.
    """
    counted = Counter(rule.id for rule in rules if rule.candidate)
    dead = Counter(rule.id for rule in proof.unreachable)
    found = {
        rule.id: rule
        for rule in proof.unreachable
        if not rule.candidate or dead[rule.id] == counted[rule.id]
    }
    for rule in asked:
        if rule.kind == "forbid" and rule.id not in counted:
            found[rule.id] = rule
    proof.unreachable = list(found.values())


def indistinguishable_values(ruleset: Ruleset, fact_id: str) -> list[tuple[Any, ...]]:
    """Groups of a fact's values that no rule of any table tells apart."""
    conditions = conditions_on(ruleset, fact_id)
    groups: dict[tuple[bool, ...], list[Any]] = {}
    for cell in cells_of(ruleset.facts[fact_id], conditions):
        if cell.value is not None:
            held = tuple(condition.holds(cell.value) for condition in conditions)
            groups.setdefault(held, []).append(cell.value)
    return [tuple(group) for group in groups.values() if len(group) > 1]
