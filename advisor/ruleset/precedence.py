"""Who wins among the rules of one table that fire together, on bit masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.proved import bits, layer_of, mask, outcomes_of, same_value


def by_precedence(ruleset: Ruleset, rules: Iterable[Rule]) -> list[Rule]:
    """The rules in the judge's order: what recommends or sets first, then the latest layer, the
    highest tier, the id.
    """
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
        """Of a shortened set the winner's bit number (-1 without one) and the rules that tie with
        it for another outcome.
        """
        winner = self.winner(state)
        if winner < 0:
            return -1, 0
        return winner, state & self.recommend & self.peers[winner] & ~self.same[winner]
