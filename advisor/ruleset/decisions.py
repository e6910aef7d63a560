"""Who wins among rules that fire together, and the proof of what one table recommends and forbids:
holes, ties, and rules that never count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from advisor.ruleset.model import DecisionTable, Rule, Ruleset
from advisor.ruleset.space import Region, Shorten, Space

# Holes, ties and contradictions made general, for each table; the others are named only.
SHOWN_BOXES = 5
MAX_CULPRITS = 3


class Hole(Struct, frozen=True, kw_only=True):
    """Situations in which a table recommends nothing, or forbids all that it recommends."""

    box: Region
    forbidding: tuple[Rule, ...]  # of one situation: what forbids there, the latest layer first
    # Something may fit, but rules that do not look at the estimates forbid every outcome.
    by_policy: bool = False


class Clash(Struct, frozen=True, kw_only=True):
    """Two rules of one layer (and tier) that fire together and say different things."""

    first: Rule
    second: Rule
    box: Region | None  # None: not made general, there were many
    key: str = ""  # of a setting


class Idle(Struct, frozen=True, kw_only=True):
    """A rule without effect, and the rules that take it."""

    rule: Rule
    culprits: tuple[Rule, ...]
    key: str = ""  # of a setting that never takes effect


class TableProof(Struct, kw_only=True):
    """What was proved of one table. Empty lists: nothing wrong."""

    table: DecisionTable
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


def layer_of(ruleset: Ruleset, rule: Rule) -> int:
    return ("base", *ruleset.layers).index(rule.layer)


def same_value(one: Any, other: Any) -> bool:
    """Equal as a setting: true and 1 are two values."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def outcomes_of(rule: Rule, said: str) -> tuple[Any, ...]:
    """What a rule recommends or forbids."""
    named = rule.then[said]
    return tuple(named) if isinstance(named, list) else (named,)


def mask(bits: Iterable[int]) -> int:
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def by_precedence(ruleset: Ruleset, rules: Iterable[Rule]) -> list[Rule]:
    """The rules by precedence: prohibitions last, then layer, tier and id."""
    return sorted(
        rules,
        key=lambda rule: (
            rule.kind == "forbid",
            -layer_of(ruleset, rule),
            -ruleset.tiers.get(rule.tier, 0),
            rule.id,
        ),
    )


def deciding(ruleset: Ruleset, rules: Iterable[Rule]) -> list[Rule]:
    """The rules that recommend or forbid, in the judge's order."""
    return by_precedence(ruleset, (one for one in rules if one.kind in ("recommend", "forbid")))


class Precedence:
    """What rules recommend and forbid, or the values they set for one key, as bits in the order of
    precedence: the lowest bit wins.

    Who wins is found on shortened sets: what a decided prohibition forbids is taken out, and so is
    everything below a rule that is sure to fire and that nothing can forbid any more. Otherwise
    each way of not fitting would multiply with each way of ranking.

    Args:
        rules: In the order of precedence.
        said: What of their `then` is asked for: the table's conclusion, or a key.
        decided: For each number of facts gone through, the rules that are decided by then.
    """

    def __init__(self, rules: Sequence[Rule], said: str, decided: Sequence[int]) -> None:
        self.rules, self.said = rules, said
        recommending = [i for i, rule in enumerate(rules) if rule.kind != "forbid"]
        self.recommend = (1 << len(recommending)) - 1
        self.forbid = ((1 << len(rules)) - 1) & ~self.recommend
        self.outcome = {i: rules[i].then[said] for i in recommending}
        group = {i: (rules[i].layer, rules[i].tier) for i in recommending}
        self.same = {
            i: mask(j for j in recommending if same_value(self.outcome[j], self.outcome[i]))
            for i in recommending
        }
        self.peers = {
            i: mask(j for j in recommending if group[j] == group[i]) for i in recommending
        }
        self.below = {i: self.recommend & ~((1 << i) - 1) & ~self.peers[i] for i in recommending}
        self.kills = {
            i: mask(j for j in recommending if self.outcome[j] in outcomes_of(rule, said))
            for i, rule in enumerate(rules)
            if rule.kind == "forbid"
        }
        self.decided_forbids = [mask & self.forbid for mask in decided]
        self.decided = [mask & self.recommend for mask in decided]
        self._killed: dict[int, int] = {0: 0}

    def shadowed_by_forbid(self, forbids: int) -> int:
        """The recommendations that some prohibitions take away."""
        found = self._killed.get(forbids)
        if found is None:
            found = 0
            for i in bits(forbids):
                found |= self.kills[i]
            self._killed[forbids] = found
        return found

    def shorten(self, state: int, number: int) -> int:
        """A set without what no longer changes who wins."""
        fired = state & self.decided_forbids[number]
        if fired:
            state &= ~fired & ~self.shadowed_by_forbid(fired)
        threats = self.shadowed_by_forbid(state & self.forbid)
        sure = state & self.decided[number] & ~threats
        if sure:
            state &= ~self.below[(sure & -sure).bit_length() - 1]
        return state

    def winner(self, state: int) -> int:
        """The bit number of who wins in a shortened set; -1 if nobody does."""
        alive = state & self.recommend
        return (alive & -alive).bit_length() - 1

    def ties(self, state: int) -> tuple[int, int]:
        """The bit that wins a shortened set, or -1, and the bits that tie with another outcome."""
        winner = self.winner(state)
        if winner < 0:
            return -1, 0
        return winner, state & self.recommend & self.peers[winner] & ~self.same[winner]


class Decisions(Precedence):
    """The proof of what the rules of one table recommend and forbid."""

    def __init__(
        self, ruleset: Ruleset, table: DecisionTable, rules: Sequence[Rule], proof: TableProof
    ) -> None:
        self.ruleset, self.proof, self.space = ruleset, proof, Space(ruleset, rules)
        super().__init__(rules, table.concludes, self.space.decided())
        estimated = {
            fact_id for fact_id, fact in ruleset.facts.items() if fact.origin == "estimated"
        }
        # A prohibition that looks at estimates alone says "does not fit"; every other one is
        # somebody's decision.
        self.fit_bits = mask(
            i
            for i in self.kills
            if rules[i].when and all(condition.fact in estimated for condition in rules[i].when)
        )
        last_resorts = set(self.outcome.values()) - {
            outcome for i, outcome in self.outcome.items() if rules[i].layer != "base"
        }
        self.last_resort = (
            mask(i for i, outcome in self.outcome.items() if outcome in last_resorts)
            if self.fit_bits
            else 0
        )

    def shorten_policy(self, state: int, number: int) -> int:
        """The same where neither what does not fit nor the last resort counts."""
        return self.shorten(state & ~self.fit_bits & ~self.last_resort, number)

    def run(self, outcomes: Sequence[Any]) -> None:
        states = self.space.sets(shorten=self.shorten)
        won = 0
        clashes: dict[tuple[int, int], int] = {}
        for state in states:
            winner, ties = self.ties(state)
            if winner >= 0:
                won |= 1 << winner
            for other in bits(ties):
                clashes.setdefault((winner, other), state)
        self._holes(states)
        self._conflicts(states, clashes)
        self.proof.sets += len(states)
        self.proof.never_concluded = [
            outcome for outcome in outcomes if outcome not in {self.outcome[i] for i in bits(won)}
        ]
        fired = self._effects(list(bits(self.recommend)), won) | self._effects(
            list(bits(self.forbid)), self.forbid
        )
        twice = {idle.rule.id for idle in self.proof.redundant}
        idle = [i for i in bits(fired & self.recommend & ~won) if self.rules[i].id not in twice]
        self.proof.never_wins += [
            Idle(rule=self.rules[i], culprits=self._culprits(i)) for i in idle
        ]

    def _effects(self, part: Sequence[int], won: int) -> int:
        """The bits that fire; finds rules that never do and rules that nobody would miss."""
        space = Space(self.ruleset, [self.rules[i] for i in part])
        states = [sum(1 << part[i] for i in bits(state)) for state in space.sets()]
        self.proof.sets += len(states)
        fired = 0
        candidates = self._covers(part)
        for state in states:
            fired |= state
            for i in [
                i
                for i in candidates
                if state >> i & 1 and not self._covered(i, state, candidates[i])
            ]:
                del candidates[i]
        self.proof.unreachable += [self.rules[i] for i in part if not fired >> i & 1]
        # A rule that never wins is superfluous where an equal says the same; what a higher one
        # takes from it is another matter.
        covered = {
            i: cover if won >> i & 1 else cover & self.peers[i]
            for i, cover in candidates.items()
            if fired >> i & 1
        }
        self.proof.redundant += self._redundant(covered, bits(fired), states)
        return fired

    def _covers(self, part: Iterable[int]) -> dict[int, int]:
        covers = {}
        for i in part:
            if self.rules[i].kind == "recommend":
                covers[i] = self.same[i] & (self.peers[i] | (1 << i) - 1) & ~(1 << i)
            else:
                covers[i] = mask(
                    j
                    for j in self.kills
                    if j != i
                    and set(outcomes_of(self.rules[j], self.said))
                    & set(outcomes_of(self.rules[i], self.said))
                )
        return covers

    def _covered(self, i: int, state: int, cover: int) -> bool:
        if self.rules[i].kind == "recommend":
            others = state & cover
            if not others & ~((1 << i) - 1):
                return bool(others)
            if others & ((1 << i) - 1):
                return True
            # An equal that comes later by name takes the place, unless another outcome of the tier
            # comes between them.
            between = ((others & -others) - 1) & ~((1 << i + 1) - 1)
            return not state & between & ~self.same[i]
        named = set(outcomes_of(self.rules[i], self.said))
        for j in bits(state & cover):
            named -= set(outcomes_of(self.rules[j], self.said))
        return not named

    def _redundant(
        self, candidates: dict[int, int], fired: Iterable[int], states: Iterable[int]
    ) -> list[Idle]:
        """Superfluous rules, the narrowest first; one that is spread goes as a whole."""
        found: list[Idle] = []
        gone = 0
        whole: dict[str, list[int]] = {}
        for i in sorted(fired, key=lambda i: (-len(self.rules[i].when), self.rules[i].id)):
            whole.setdefault(self.rules[i].id, []).append(i)
        for own in whole.values():
            seen = [
                (i, candidates[i] & ~gone, state)
                for i in own
                if i in candidates
                for state in states
                if state >> i & 1
            ]
            if set(own) <= set(candidates) and all(
                self._covered(i, state, cover) for i, cover, state in seen
            ):
                gone |= mask(own)
                others = [j for _, cover, state in seen for j in bits(state & cover)]
                culprits = self._alone(others, len(seen)) or self._most(others)
                found.append(Idle(rule=self.rules[own[0]], culprits=culprits))
        return found

    def _holes(self, states: Mapping[int, Any]) -> None:
        shortenings = [(self.shorten, states, False)]
        if 0 not in states and self.last_resort:
            policy = self.space.sets(shorten=self.shorten_policy)
            self.proof.sets += len(policy)
            shortenings.append((self.shorten_policy, policy, True))
        for shorten, found, by_policy in shortenings:
            if 0 not in found:
                continue
            boxes: list[Region] = []
            for chain in self._other_holes(shorten, found[0], boxes):
                box = self.space.box(chain, lambda state: not state, shorten)
                boxes.append(box)
                fired = [
                    i
                    for i in self.kills
                    if self.rules[i].first_failing(box.facts) is None
                    and self.kills[i]
                    and not (by_policy and self.fit_bits >> i & 1)
                ]
                forbidding = sorted(
                    (self.rules[i] for i in fired),
                    key=lambda rule: (-layer_of(self.ruleset, rule), rule.id),
                )
                self.proof.holes.append(
                    Hole(box=box, forbidding=_unique_rules(forbidding), by_policy=by_policy)
                )

    def _other_holes(self, shorten: Shorten, first: Any, boxes: Sequence[Region]) -> Iterator[Any]:
        """A witness of a hole, then one outside each box found so far, a few at most."""
        yield first
        while len(boxes) < SHOWN_BOXES:
            outside = next(
                (
                    found[0]
                    for within in self.space.outside(boxes)
                    if 0 in (found := self.space.sets(within, shorten))
                ),
                None,
            )
            if outside is None:
                return
            yield outside

    def _conflicts(self, states: Mapping[int, Any], clashes: Mapping[tuple[int, int], int]) -> None:
        for number, ((winner, other), state) in enumerate(sorted(clashes.items())):
            box = None
            if number < SHOWN_BOXES:

                def tied(found: int, winner: int = winner, other: int = other) -> bool:
                    first, ties = self.ties(found)
                    return first == winner and bool(ties >> other & 1)

                box = self.space.box(states[state], tied, self.shorten)
            self.proof.conflicts.append(
                Clash(first=self.rules[winner], second=self.rules[other], box=box)
            )

    def _culprits(self, i: int) -> tuple[Rule, ...]:
        """The rules that take every case of one that never wins: winners or prohibitions."""
        within = self.space.cells_matching(self.rules[i])
        winners = Counter(self.ties(state)[0] for state in self.space.sets(within, self.shorten))
        killers = [j for j in self.kills if self.kills[j] >> i & 1]
        if killers:
            space = Space(self.ruleset, [self.rules[j] for j in (i, *killers)])
            fired = [state for state in space.sets() if state & 1]
            if all(state != 1 for state in fired):
                return self._most(killers[bit - 1] for state in fired for bit in bits(state & ~1))
        return self._most(bit for bit in winners.elements() if bit >= 0)

    def _alone(self, bits: Iterable[int], cases: int) -> tuple[Rule, ...]:
        counted = Counter(self.rules[j].id for j in bits)
        found = [rule for rule in _unique_rules(self.rules) if counted[rule.id] == cases]
        return tuple(found[:1])

    def _most(self, bits: Iterable[int]) -> tuple[Rule, ...]:
        found = _unique_rules(self.rules[j] for j, _ in Counter(bits).most_common())
        return found[:MAX_CULPRITS]


def _unique_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Each rule once: one that is asked for each scheme stands in the proof for each of them."""
    return tuple({rule.id: rule for rule in rules}.values())
