"""The proof of what one table recommends and forbids: holes, ties, and rules that never count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from advisor.ruleset.model import Rule, Ruleset, Table
from advisor.ruleset.precedence import Precedence
from advisor.ruleset.proved import (
    MAX_CULPRITS,
    SHOWN_BOXES,
    Clash,
    Hole,
    Idle,
    TableProof,
    bits,
    layer_of,
    mask,
    outcomes_of,
)
from advisor.ruleset.space import Region, Shorten, Space


class Decisions(Precedence):
    """The proof of what the rules of one table recommend and forbid."""

    def __init__(
        self, ruleset: Ruleset, table: Table, rules: Sequence[Rule], proof: TableProof
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
        """What holds of the recommendations, or of the prohibitions, by themselves: whether they
        fire, and whether anybody would miss them.
        """
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
        """Rule -> the rules of which one must fire with it to make it superfluous: the same
        outcome, no lower.
        """
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
        """Of rules that cover each other the narrowest goes first; what it covered is then
        needed.

        A rule that is asked for each scheme goes with all that it forbids, or not at all.
        """
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
                    Hole(box=box, forbidding=_once(forbidding), by_policy=by_policy)
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
        """The rules that take every case of a rule that never wins: who wins there, or who forbids
        its outcome.
        """
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
        """The first rule that is there in every case, or none."""
        counted = Counter(self.rules[j].id for j in bits)
        found = [rule for rule in _once(self.rules) if counted[rule.id] == cases]
        return tuple(found[:1])

    def _most(self, bits: Iterable[int]) -> tuple[Rule, ...]:
        found = _once(self.rules[j] for j, _ in Counter(bits).most_common())
        return found[:MAX_CULPRITS]


def _once(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Each rule once: one that is asked for each scheme stands in the proof for each of them."""
    return tuple({rule.id: rule for rule in rules}.values())
