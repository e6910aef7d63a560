"""What the sets of rules that can fire together prove of a table: no hole, no tie, no dead rule, no two values for a setting.

Rules that recommend and forbid are looked at together; the settings key by key, since keys do not touch one another; a
warning by itself. That keeps the sets few without losing a case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advisor.ruleset.domain import cells_of
from advisor.ruleset.model import Rule, Ruleset, Table
from advisor.ruleset.space import Box, Space

SHOWN_BOXES = 5  # holes, ties and contradictions made general, for each table; the others are counted
MAX_CULPRITS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Hole:
    """Situations in which a table recommends nothing: no rule fires, or every outcome that one names is forbidden."""

    box: Box
    forbidding: tuple[Rule, ...]  # of one situation: what forbids there, the latest layer first
    by_policy: bool = False  # something may fit, but rules that do not look at the estimates forbid every outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Clash:
    """Two rules of one layer (and tier) that fire together and say different things."""

    first: Rule
    second: Rule
    box: Box | None  # None: not made general, there were many
    key: str = ""  # of a setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """A rule without effect, and the rules that take it."""

    rule: Rule
    culprits: tuple[Rule, ...]
    key: str = ""  # of a setting that never takes effect


@dataclass(kw_only=True)
class TableProof:
    """What was proved of one table. Empty lists: nothing wrong."""

    table: Table
    rules: int
    cells: int = 0  # situations that differ for some rule
    sets: int = 0  # distinct sets of firing rules that stand for them
    holes: list[Hole] = field(default_factory=list)
    conflicts: list[Clash] = field(default_factory=list)
    contradictions: list[Clash] = field(default_factory=list)
    unreachable: list[Rule] = field(default_factory=list)
    never_wins: list[Idle] = field(default_factory=list)
    redundant: list[Idle] = field(default_factory=list)
    never_concluded: list[Any] = field(default_factory=list)
    unused_inputs: list[str] = field(default_factory=list)
    uncounted: int = 0  # clashes beyond those listed


def prove(ruleset: Ruleset, table_id: str) -> TableProof:
    """Everything that can be said of one table of the merged rules. Raises TooManyCases."""
    table, rules = ruleset.tables[table_id], ruleset.rules[table_id]
    proof = TableProof(table=table, rules=len(rules))
    deciding = sorted((rule for rule in rules if rule.kind in ("recommend", "forbid")), key=lambda rule: _rank(ruleset, rule))
    space = Space(ruleset, rules)
    proof.cells = space.size
    proof.unused_inputs = [fact_id for fact_id in table.inputs if not any(condition.fact == fact_id for rule in rules for condition in rule.when)]
    outcomes = [outcome for outcome in ruleset.facts[table.concludes].values if outcome != "unknown"]
    if outcomes:
        _Decisions(ruleset, table, deciding, proof).run(outcomes)
    _settings(ruleset, [rule for rule in rules if rule.kind == "set"], proof)
    for rule in rules:
        if rule.kind == "warn" and not Space(ruleset, [rule]).sets().keys() - {0}:
            proof.unreachable.append(rule)
    return proof


def _rank(ruleset: Ruleset, rule: Rule) -> tuple[bool, int, int, str]:
    """The judge's order: recommendations first, latest layer, highest tier, id."""
    return rule.kind != "recommend", -_layer(ruleset, rule), -ruleset.tiers.get(rule.tier, 0), rule.id


def _layer(ruleset: Ruleset, rule: Rule) -> int:
    return ("base", *ruleset.layers).index(rule.layer)


def outcomes_of(rule: Rule, table: Table) -> tuple[Any, ...]:
    """What a rule recommends or forbids."""
    named = rule.then[table.concludes]
    return tuple(named) if isinstance(named, list) else (named,)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Decisions:
    """The recommendations and prohibitions of one table, as bits in the order of precedence: the lowest bit wins."""

    def __init__(self, ruleset: Ruleset, table: Table, rules: Sequence[Rule], proof: TableProof) -> None:
        self.ruleset, self.table, self.rules, self.proof = ruleset, table, rules, proof
        self.space = Space(ruleset, rules)
        recommending = [i for i, rule in enumerate(rules) if rule.kind == "recommend"]
        self.recommend = (1 << len(recommending)) - 1
        self.forbid = self.space.rule_bits & ~self.recommend
        outcome = {i: rules[i].then[table.concludes] for i in recommending}
        group = {i: (rules[i].layer, rules[i].tier) for i in recommending}
        self.same = {i: _mask(j for j in recommending if outcome[j] == outcome[i]) for i in recommending}
        self.peers = {i: _mask(j for j in recommending if group[j] == group[i]) for i in recommending}
        self.kills = {i: _mask(j for j in recommending if outcome[j] in outcomes_of(rule, table)) for i, rule in enumerate(rules) if rule.kind == "forbid"}
        estimated = {fact_id for fact_id, fact in ruleset.facts.items() if fact.origin == "estimated"}
        # A prohibition that looks at estimates alone says "does not fit"; every other one is somebody's decision.
        self.fit_bits = _mask(i for i in self.kills if rules[i].when and all(condition.fact in estimated for condition in rules[i].when))
        last_resorts = {outcome[i] for i in recommending} - {outcome[i] for i in recommending if rules[i].layer != "base"}
        self.last_resort = _mask(i for i in recommending if outcome[i] in last_resorts) if self.fit_bits else 0
        self._killed: dict[int, int] = {0: 0}

    def killed(self, forbids: int) -> int:
        """The recommendations that some prohibitions take away."""
        found = self._killed.get(forbids)
        if found is None:
            found = 0
            for i in _bits(forbids):
                found |= self.kills[i]
            self._killed[forbids] = found
        return found

    def alive(self, state: int) -> int:
        return state & self.recommend & ~self.killed(state & self.forbid)

    def no_answer(self, state: int) -> bool:
        return not self.alive(state)

    def no_way_out(self, state: int) -> bool:
        """Whatever the hardware: what is not a matter of fitting forbids all but the last resort."""
        left = state & self.recommend & ~self.killed(state & self.forbid & ~self.fit_bits)
        return not left & ~self.last_resort

    def ties(self, state: int) -> tuple[int, int]:
        """The winner's bit number (-1 without one) and the rules that tie with it for another outcome."""
        alive = self.alive(state)
        if not alive:
            return -1, 0
        winner = (alive & -alive).bit_length() - 1
        return winner, alive & self.peers[winner] & ~self.same[winner]

    def run(self, outcomes: Sequence[Any]) -> None:
        states = self.space.sets()
        self.proof.sets += len(states)
        fired = won = 0
        concluded: set[Any] = set()
        candidates = self._covers()
        clashes: dict[tuple[int, int], int] = {}
        for state in states:
            fired |= state
            winner, ties = self.ties(state)
            if winner >= 0:
                won |= 1 << winner
            for other in _bits(ties):
                clashes.setdefault((winner, other), state)
            for i in [i for i in candidates if state >> i & 1 and not self._covered(i, state, candidates[i])]:
                del candidates[i]
        concluded = {self.rules[i].then[self.table.concludes] for i in _bits(won)}
        self._holes(states)
        self._conflicts(states, clashes)
        proof = self.proof
        proof.unreachable += [rule for i, rule in enumerate(self.rules) if not fired >> i & 1]
        idle = fired & self.recommend & ~won
        proof.never_wins += [Idle(rule=self.rules[i], culprits=self._culprits(i, states)) for i in _bits(idle)]
        proof.redundant += self._redundant({i: cover for i, cover in candidates.items() if fired >> i & 1 and not idle >> i & 1}, states)
        proof.never_concluded = [outcome for outcome in outcomes if outcome not in concluded]

    def _covers(self) -> dict[int, int]:
        """Rule -> the rules of which one must fire with it to make it superfluous: the same outcome, no lower."""
        covers = {}
        for i, rule in enumerate(self.rules):
            if rule.kind == "recommend":
                own = self.peers[i]
                covers[i] = self.same[i] & (own | (1 << i) - 1) & ~(1 << i)
            else:
                covers[i] = _mask(j for j in self.kills if j != i and self.kills[j] & self.kills[i])
        return covers

    def _covered(self, i: int, state: int, cover: int) -> bool:
        if self.rules[i].kind == "recommend":
            others = state & cover
            if not others & ~((1 << i) - 1):
                return bool(others)
            if others & ((1 << i) - 1):
                return True
            # An equal that comes later by name takes the place, unless another outcome of the tier comes between them.
            between = ((others & -others) - 1) & ~((1 << i + 1) - 1)
            return not state & between & ~self.same[i]
        named = set(outcomes_of(self.rules[i], self.table))
        for j in _bits(state & cover):
            named -= set(outcomes_of(self.rules[j], self.table))
        return not named

    def _redundant(self, candidates: dict[int, int], states: Iterable[int]) -> list[Idle]:
        """Of rules that cover each other the narrowest goes first; what it covered is then needed."""
        found: list[Idle] = []
        gone = 0
        for i in sorted(candidates, key=lambda i: (-len(self.rules[i].when), self.rules[i].id)):
            cover = candidates[i] & ~gone
            seen = [state for state in states if state >> i & 1]
            if all(self._covered(i, state, cover) for state in seen):
                gone |= 1 << i
                found.append(Idle(rule=self.rules[i], culprits=self._most(j for state in seen for j in _bits(state & cover))))
        return found

    def _holes(self, states: Mapping[int, Any]) -> None:
        empty = [state for state in states if self.no_answer(state)]
        policy = [] if empty else [state for state in states if self.last_resort and self.no_way_out(state)]
        for found, by_policy in ((empty, False), (policy, True)):
            holds = self.no_way_out if by_policy else self.no_answer
            shown: list[Box] = []
            for state in found:
                if len(shown) == SHOWN_BOXES:
                    break
                witness = self.space.witness(states[state])
                if any(all(witness[fact_id] in held for fact_id, held in box.within.items()) for box in shown):
                    continue
                box = self.space.box(states[state], holds)
                shown.append(box)
                forbidding = [self.rules[i] for i in _bits(state & self.forbid & ~(self.fit_bits if by_policy else 0)) if self.kills[i] & state]
                forbidding.sort(key=lambda rule: (-_layer(self.ruleset, rule), rule.id))
                self.proof.holes.append(Hole(box=box, forbidding=tuple(forbidding), by_policy=by_policy))

    def _conflicts(self, states: Mapping[int, Any], clashes: Mapping[tuple[int, int], int]) -> None:
        for number, ((winner, other), state) in enumerate(sorted(clashes.items())):
            box = None
            if number < SHOWN_BOXES:

                def tied(found: int, winner: int = winner, other: int = other) -> bool:
                    first, ties = self.ties(found)
                    return first == winner and bool(ties >> other & 1)

                box = self.space.box(states[state], tied)
            self.proof.conflicts.append(Clash(first=self.rules[winner], second=self.rules[other], box=box))

    def _culprits(self, i: int, states: Iterable[int]) -> tuple[Rule, ...]:
        """The rules that take every case of a rule that never wins: who forbids its outcome there, else who wins."""
        taken: Counter[int] = Counter()
        for state in states:
            if state >> i & 1:
                killers = [j for j in _bits(state & self.forbid) if self.kills[j] >> i & 1]
                winner = self.ties(state)[0]
                taken.update(killers or ([winner] if winner >= 0 else []))
        return tuple(self.rules[j] for j, _ in taken.most_common(MAX_CULPRITS))

    def _most(self, bits: Iterable[int]) -> tuple[Rule, ...]:
        return tuple(self.rules[j] for j, _ in Counter(bits).most_common(MAX_CULPRITS))


def _mask(bits: Iterable[int]) -> int:
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result


class _Setting:
    """The set rules of one key, as bits: the lowest bit that fires has the value."""

    def __init__(self, ruleset: Ruleset, key: str, rules: Iterable[Rule]) -> None:
        self.key = key
        self.rules = sorted((rule for rule in rules if key in rule.then), key=lambda rule: (-_layer(ruleset, rule), rule.id))
        self.bit = {rule.id: i for i, rule in enumerate(self.rules)}
        self.space = Space(ruleset, self.rules)
        self.states = self.space.sets()
        self.layer = [_mask(j for j, other in enumerate(self.rules) if other.layer == rule.layer) for rule in self.rules]
        self.equal = [_mask(j for j, other in enumerate(self.rules) if same_value(other.then[key], rule.then[key])) for rule in self.rules]

    def top(self, state: int) -> int:
        """Of the rules that fire, those of the latest layer."""
        return state & self.layer[(state & -state).bit_length() - 1] if state else 0

    def needs(self, i: int, state: int) -> bool:
        """Whether the value changes where one rule is taken away."""
        rest = state & ~(1 << i)
        return bool(self.top(state) >> i & 1) and not (rest and self.equal[i] & rest & -rest)

    def clashes(self) -> dict[tuple[int, int], int]:
        """Pairs of one layer that fire together with two values -> a state."""
        found: dict[tuple[int, int], int] = {}
        for state in self.states:
            top = self.top(state)
            if top:
                first = (top & -top).bit_length() - 1
                for other in _bits(top & ~self.equal[first]):
                    found.setdefault((first, other), state)
        return found


def _settings(ruleset: Ruleset, rules: Sequence[Rule], proof: TableProof) -> None:
    """Each key by itself: two values in one layer, values that never count, rules that change nothing."""
    settings = [_Setting(ruleset, key, rules) for key in sorted({key for rule in rules for key in rule.then})]
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
            proof.contradictions.append(Clash(first=setting.rules[first], second=setting.rules[other], box=box, key=setting.key))
        for i in _bits(fired & ~counted):
            culprits = Counter(j for state in setting.states if state >> i & 1 for j in _bits(setting.top(state)))
            masked.add(setting.rules[i].id)
            proof.never_wins.append(Idle(rule=setting.rules[i], key=setting.key, culprits=tuple(setting.rules[j] for j, _ in culprits.most_common(MAX_CULPRITS))))
    proof.unreachable += [rule for rule in rules if rule.id not in fired_ids]
    gone: set[str] = set()
    for rule in sorted(rules, key=lambda rule: (-len(rule.when), rule.id)):  # of rules that cover each other the narrowest goes first
        own = [setting for setting in settings if rule.id in setting.bit]
        if rule.id not in fired_ids - masked or any(_needed(setting, rule.id, gone) for setting in own):
            continue
        gone.add(rule.id)
        others = Counter(
            other.id for setting in own for state in setting.states if state >> setting.bit[rule.id] & 1
            for other in (setting.rules[j] for j in _bits(state & setting.equal[setting.bit[rule.id]])) if other.id not in gone
        )  # fmt: skip
        known = {other.id: other for other in rules}
        proof.redundant.append(Idle(rule=rule, culprits=tuple(known[name] for name, _ in others.most_common(MAX_CULPRITS))))


def _needed(setting: _Setting, rule_id: str, gone: set[str]) -> bool:
    left = setting.space.rule_bits & ~_mask(setting.bit[name] for name in gone if name in setting.bit)
    i = setting.bit[rule_id]
    return any(setting.needs(i, state & left) for state in setting.states if state >> i & 1)


def same_value(one: Any, other: Any) -> bool:
    """Equal as a setting: true and 1 are two values."""
    return type(one) is type(other) and bool(one == other) if isinstance(one, bool) or isinstance(other, bool) else bool(one == other)


def alike(ruleset: Ruleset, fact_id: str) -> list[tuple[Any, ...]]:
    """Groups of a fact's values that no rule of any table tells apart: asking for the difference is for nothing."""
    conditions = [condition for rules in ruleset.rules.values() for rule in rules for condition in rule.when if condition.fact == fact_id]
    groups: dict[tuple[bool, ...], list[Any]] = {}
    for cell in cells_of(ruleset.facts[fact_id], conditions):
        if cell.value is not None:
            groups.setdefault(tuple(condition.holds(cell.value) for condition in conditions), []).append(cell.value)
    return [tuple(group) for group in groups.values() if len(group) > 1]
