"""Why not: one sentence for each outcome that a table did not conclude.

It names a change that would put the outcome first, and is true: the tables are asked again with
that change. Where no change of a few facts does it, the sentence gives the reason of the rule that
puts another outcome before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

from advisor.advice.decide import LAST, REMEDIES_OF_GATE, decide
from advisor.advice.explain import (
    NO_SIZES,
    RANKS_BELOW,
    Sizes,
    reason_of,
    scheme_of_fact,
    titles_of,
)
from advisor.advice.facts_of_situation import OF_MODEL
from advisor.advice.types import Reason
from advisor.ground.units import gib
from advisor.methods import methods, schemes, update
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import Judgement, judge
from advisor.ruleset.model import Condition, Interval, Rule, Ruleset, Table
from advisor.ruleset.phrases import (
    clauses,
    inside_sentence,
    joined,
    method_words,
    name_of,
    not_known,
    says,
    value_words,
    wants,
)

Change = Mapping[str, Any]  # fact id -> the value that it would have
CHOICES = ("budget", "depth", "serve_with", "priority", "teacher")  # can be answered otherwise
# How much it takes to make a condition true, the least first: what the memory decides, another
# answer, other data or another GPU, another model, another task.
LIMIT, ANSWER, EFFORT, OTHER_MODEL, OTHER_TASK = 0, 1, 2, 4, 8
MAX_WAYS, MAX_TRIES = 200, 16  # of making a rule fire; of them those that are tried
FITS, TOO_BIG = "fits", "too_big"  # what a sentence supposes of a fit: the others are shades of it
NAMED = 2  # facts that a sentence names at most


def why_not_outcome(
    judgement: Judgement,
    outcome: str,
    facts: Mapping[str, Any],
    ruleset: Ruleset,
    sizes: Sizes = NO_SIZES,
    *,
    is_suggested: bool = False,
) -> list[Reason]:
    """Why a table did not conclude an outcome: the rules that forbid it, a change that would put it
    first, or the rule that puts another one before it.

    Args:
        is_suggested: Nobody named the model: another one is suggested where a small encoder does.
    """
    if outcome in judgement.forbidden:
        return [reason_of(rule, ruleset) for rule in judgement.forbidden[outcome]]
    table, winner = ruleset.tables[judgement.table], judgement.winner
    trains = REMEDIES_OF_GATE[str(facts["train_decision"])][1]
    if not trains and table.id in (LAST, "chain", "train_decision"):
        return [_nothing_is_trained(facts, ruleset)]
    named = [
        rule
        for rule in ruleset.rules[table.id]
        if rule.kind == "recommend" and rule.then.get(table.concludes) == outcome
    ]
    if not named or winner is None:
        return [Reason(text="None of the rules in use recommends it here.")]
    question = _WhyNot(table, outcome, facts, ruleset, sizes, is_suggested)
    capacity = question.ruled_by_capacity(str(winner[0]))
    if capacity is None and (way := question.way_to_win(judgement, named)) is not None:
        return [question.would_come_first(way)]
    rule = capacity or _ranking_rule(judgement, outcome, facts, ruleset) or winner[1]
    return [
        _ranks_below(value_words(ruleset.facts[table.concludes], winner[0]), rule, facts, ruleset)
    ]


def _nothing_is_trained(facts: Mapping[str, Any], ruleset: Ruleset) -> Reason:
    """What led to a remedy in place of training: the rules behind the decision, not the one that
    only joins them.
    """
    decided = judge(ruleset, "train_decision", facts).winner
    assert decided is not None
    remedy = value_words(ruleset.facts["train_decision"], decided[0])
    # Where the decision leaves fewer outcomes of a step open, that step decided.
    behind = [
        (len(condition.values), winner[1])
        for condition in decided[1].when
        for table in ruleset.tables.values()
        if table.concludes == condition.fact
        and (winner := judge(ruleset, table.id, facts).winner) is not None
        and winner[1].layer != "base"
    ]
    rule = min(behind, key=lambda found: found[0])[1] if behind else decided[1]
    return _ranks_below(remedy, rule, facts, ruleset)


def _ranks_below(winner: str, rule: Rule, facts: Mapping[str, Any], ruleset: Ruleset) -> Reason:
    """'Ranks below LoRA: near full performance for very little memory.', with the amounts that the
    rule looked at.
    """
    amounts = [
        says(ruleset.facts[condition.fact], facts[condition.fact])
        for condition in rule.when
        if condition.intervals and isinstance(facts.get(condition.fact), int | float)
    ]
    because = inside_sentence(rule.because)
    if amounts:
        because = f"{because.rstrip('.')} ({clauses(amounts)})."
    return Reason(
        text=f"{RANKS_BELOW} {winner.rstrip(',')}: {because}",
        rule=rule.id,
        source=titles_of(rule, ruleset),
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """Facts that would put an outcome first."""

    change: Change
    wanted: Mapping[str, Condition]
    rule: Rule  # the one that would then recommend it
    by_size: bool = False  # the change is that the winner does not fit


@dataclass(frozen=True, slots=True)
class _WhyNot:
    """One outcome that lost, and everything that is known."""

    table: Table
    outcome: str
    facts: Mapping[str, Any]
    ruleset: Ruleset
    sizes: Sizes
    is_suggested: bool

    # ------------------------------------------------------------------- ways to win

    def ruled_by_capacity(self, winner: str) -> Rule | None:
        """The rule that asks for every weight or for a small module, where that is what sets the
        outcome and the winner apart.
        """
        if self.table.id != LAST or winner not in schemes() or self.outcome not in schemes():
            return None
        trains = {update(schemes()[name].update).trains for name in (winner, self.outcome)}
        found = judge(self.ruleset, "required_capacity", self.facts).winner
        if len(trains) == 1 or found is None or found[1].layer == "base":
            return None
        wants_all = found[0] == "full_rank"
        return found[1] if (update(schemes()[winner].update).trains == "all") == wants_all else None

    def way_to_win(self, judgement: Judgement, named: Sequence[Rule]) -> _Way | None:
        """The easiest change after which the tables conclude the outcome, or None."""
        ways = [
            *self._where_the_winner_does_not_fit(judgement),
            *(_Way(change={}, wanted=way, rule=rule) for rule in named for way in self._ways(rule)),
        ]
        ways = [way for way in ways if self._can_be_done(way)]
        ways.sort(key=self._effort)
        tries = 0
        for way in ways:
            for change in self._changes(way):
                tries += 1
                if tries > MAX_TRIES:
                    return None
                if self._wins(change):
                    return replace(way, change=change)
        return None

    def _where_the_winner_does_not_fit(self, judgement: Judgement) -> Iterator[_Way]:
        """For a smaller scheme the change that needs no other rule: the winner does not fit."""
        placed = dict(judgement.ranking).get(self.outcome)
        assert judgement.winner is not None
        winner = str(judgement.winner[0])
        if (
            placed is not None
            and winner in schemes()
            and self.outcome in schemes()
            and _weight(self.outcome) < _weight(winner)
        ):
            before = [name for name, _ in judgement.ranking if name in schemes()]
            between = before[1 : before.index(self.outcome)]
            heavier = [name for name in between if _weight(name) > _weight(self.outcome)]
            for too_big in ([winner], [winner, *heavier]):
                wanted = {
                    fact.id: Condition(fact=fact.id, values=frozenset({TOO_BIG}))
                    for name in too_big
                    for fact in self.ruleset.facts.values()
                    if fact.instance_of and scheme_of_fact(fact) == name
                }
                yield _Way(change={}, wanted=wanted, rule=placed, by_size=True)

    def _ways(self, rule: Rule) -> Iterator[Mapping[str, Condition]]:
        for way in islice(self._unmet(rule), MAX_WAYS):
            merged = _merged(way)
            if merged:
                yield merged

    def _unmet(self, rule: Rule) -> Iterator[tuple[Condition, ...]]:
        """Each set of conditions that would make a rule fire. What another table concluded is
        followed back to what a person stated.
        """
        options: list[list[tuple[Condition, ...]]] = []
        for condition in rule.when:
            if condition.holds(self.facts.get(condition.fact)):
                continue
            table = next(
                (one for one in self.ruleset.tables.values() if one.concludes == condition.fact),
                None,
            )
            if table is None:
                options.append([(condition,)])
                continue
            leading = [
                other
                for other in self.ruleset.rules[table.id]
                if other.kind == "recommend" and other.then.get(table.concludes) in condition.values
            ]
            options.append([way for other in leading for way in self._unmet(other) if way])
        for combination in product(*options):
            yield tuple(condition for part in combination for condition in part)

    def _effort(self, way: _Way) -> tuple[Any, ...]:
        return (
            not way.by_size or self.facts.get(next(iter(way.wanted))) in (None, UNKNOWN),
            sum(map(self._effort_of, way.wanted)),
            len(way.wanted),
            not self._learns_from(way.wanted.get("data_kind")),
            *(-part for part in _rank(way.rule, self.ruleset)),
            way.rule.id,
            *way.wanted,
        )

    def _can_be_done(self, way: _Way) -> bool:
        """Whether a person could bring it about: nobody takes another task for a method's sake, and
        a machine without a GPU has none that could be too small.
        """
        no_gpu = self.facts.get("device") == "cpu" and "memory_bound" in way.wanted
        return "task" not in way.wanted and not no_gpu

    def _learns_from(self, kinds: Condition | None) -> bool:
        """Whether a chain would get the kind of data that it is for, not one to be made into it."""
        if self.table.id != "chain" or kinds is None:
            return False
        first = self.outcome.removeprefix("encoder:").split(">")[0]
        return not kinds.values.isdisjoint(methods().objective(first).trains_on)

    def _effort_of(self, fact_id: str) -> int:
        fact = self.ruleset.facts[fact_id]
        if fact.instance_of:
            return LIMIT
        if fact.signal or fact_id in CHOICES:
            return ANSWER
        if fact.origin == "model":
            return OTHER_MODEL
        return OTHER_TASK if fact_id == "task" else EFFORT

    def _changes(self, way: _Way) -> Iterator[Change]:
        """Values that meet the conditions of a way, with what they imply."""
        values = [list(_samples(self.ruleset.facts[name], one)) for name, one in way.wanted.items()]
        for chosen in product(*values):
            change: dict[str, Any] = dict(zip(way.wanted, chosen, strict=True))
            implied = [
                other
                for name, value in change.items()
                for other in self.ruleset.facts[name].implied_by(value)
            ]
            yield {**dict.fromkeys(implied, True), **change}

    def _wins(self, change: Change) -> bool:
        """Whether the tables conclude the outcome after the change, and nothing else before it."""
        facts = {**self.facts, **change}
        if self.ruleset.contradictions(facts):
            return False
        decision = decide(self.ruleset, facts)
        if decision.facts[self.table.concludes] != self.outcome:
            return False
        if self.is_suggested:
            plain = {name: value for name, value in facts.items() if name not in OF_MODEL}
            if decide(self.ruleset, plain).facts["architecture"] != decision.facts["architecture"]:
                return False
        if self.table.id not in (LAST, "chain"):
            return not decision.trains
        same = ("chain", "adapters_per") if self.table.id == LAST else ()
        return decision.trains and all(decision.facts[name] == facts[name] for name in same)

    # ------------------------------------------------------------------- in words

    def would_come_first(self, way: _Way) -> Reason:
        """'QLoRA would win if LoRA did not fit; here LoRA fits with 4.2 GiB to spare.'"""
        names = sorted(way.wanted, key=self._effort_of)
        shown = [name for name in way.wanted if name in names[:NAMED]]
        wanted = " and ".join(self._would_be(name, way) for name in shown)
        among = "if, among other things," if len(names) > NAMED else "if"
        method = value_words(self.ruleset.facts[self.table.concludes], self.outcome)
        text = f"{method} would win {among} {wanted}; {self._here(shown)}."
        return Reason(
            text=text[0].upper() + text[1:],
            rule=way.rule.id,
            source=titles_of(way.rule, self.ruleset),
        )

    def _would_be(self, name: str, way: _Way) -> str:
        fact, condition = self.ruleset.facts[name], way.wanted[name]
        if condition.intervals:
            return wants(fact, replace(condition, unknown=False), would=True)
        text = says(fact, way.change[name], would=True)
        own = bool(fact.instance_of) and scheme_of_fact(fact) == self.outcome
        return text.replace(method_words(self.outcome), "it", 1) if own else text

    def _here(self, names: Sequence[str]) -> str:
        """What is so instead: 'you chose a medium budget, and you have not said what matters
        most'.
        """
        facts = [self.ruleset.facts[name] for name in names]
        known = [fact for fact in facts if self.facts.get(fact.id) not in (None, UNKNOWN)]
        parts = [self._is(fact) for fact in known]
        missing = [fact for fact in facts if fact not in known]
        fits = [fact for fact in missing if fact.instance_of]
        if fits:
            verb = "is" if len(fits) == 1 else "are"
            parts.append(f"{joined(map(name_of, fits))} {verb} not known{self._why_unknown()}")
        if stated := [fact for fact in missing if not fact.instance_of]:
            parts.append(not_known(stated, alone=not parts))
        # Said once: 'here LoRA fits, and QLoRA fits'.
        return clauses(
            [*parts[:1], *(part.removeprefix("here ") for part in parts[1:])]
            if parts[0].startswith("here ")
            else parts
        )

    def _is(self, fact: Fact) -> str:
        value = self.facts[fact.id]
        if not fact.instance_of:
            return says(fact, value)
        cost = self.sizes.get(scheme_of_fact(fact))
        method = method_words(scheme_of_fact(fact))
        if (
            value in ("fits", "tight")
            and cost is not None
            and cost.memory is not None
            and cost.limit_bytes is not None
            and cost.limit_bytes >= cost.memory.need_bytes
        ):
            # Of the numbers as they are shown: nobody should find another difference.
            shown = round(gib(cost.limit_bytes), 1) - round(gib(cost.memory.need_bytes), 1)
            return f"here {method} fits with {shown:.1f} GiB to spare"
        return f"here {says(fact, value)}"

    def _why_unknown(self) -> str:
        """Why an estimate is no known fact, though numbers of a suggested model may stand beside
        it.
        """
        if self.facts.get("device") in (None, UNKNOWN):
            return ", since the hardware is not known"
        if "params_b" in self.facts:
            return ""
        if "model" in self.facts:
            return ", since the size of the model is not known"
        return ", since you named no model and did not say what your data are"


def _weight(scheme: str) -> int:
    """What a scheme keeps in memory, coarsely: the whole training state, a 16-bit base, or less."""
    one = schemes()[scheme]
    return 2 if update(one.update).trains == "all" else 0 if one.quantization else 1


def _merged(way: Iterable[Condition]) -> dict[str, Condition]:
    """The conditions joined by fact; empty where two of them can never hold together."""
    found: dict[str, Condition] = {}
    for condition in way:
        known = found.get(condition.fact)
        if known is not None:
            intervals = tuple(
                both
                for one in known.intervals
                for other in condition.intervals
                if (both := _both(one, other)) is not None
            )
            condition = replace(
                condition, values=known.values & condition.values, intervals=intervals
            )
        if not condition.values and not condition.intervals:
            return {}  # it wants something not to be known, or two things at once
        found[condition.fact] = condition
    return found


def _both(one: Interval, other: Interval) -> Interval | None:
    lows = [interval.low for interval in (one, other) if interval.low is not None]
    highs = [interval.high for interval in (one, other) if interval.high is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low >= high:
        return None
    return Interval(
        low=low,
        low_included=low in one and low in other if low is not None else True,
        high=high,
        high_included=high in one and high in other if high is not None else False,
    )


def _samples(fact: Fact, condition: Condition) -> Iterator[Any]:
    """Values that meet a condition."""
    if condition.intervals:
        for interval in condition.intervals:
            step = 1 if fact.integer else 0.01
            if interval.low is not None:
                yield interval.low if interval.low_included else interval.low + step
            elif interval.high is not None:
                value = interval.high if interval.high_included else interval.high - step
                yield max(value, fact.min or 0)
    elif fact.type == "flag":
        yield from (value for value in (True, False) if value in condition.values)
    else:
        supposed = (TOO_BIG, FITS) if fact.instance_of else fact.values
        yield from (value for value in supposed if value in condition.values)


def _ranking_rule(
    judgement: Judgement, outcome: str, facts: Mapping[str, Any], ruleset: Ruleset
) -> Rule | None:
    """Of the rules that speak for the winner, the least one that puts it before the outcome: a
    higher one is about another rival.
    """
    placed = dict(judgement.ranking).get(outcome)
    if placed is None or judgement.winner is None:
        return None
    concludes = ruleset.tables[judgement.table].concludes
    before = [
        rule
        for rule in ruleset.rules[judgement.table]
        if rule.kind == "recommend"
        and rule.then.get(concludes) == judgement.winner[0]
        and _rank(rule, ruleset) > _rank(placed, ruleset)
        and rule.first_failing(facts) is None
    ]
    return min(before, key=lambda rule: (_rank(rule, ruleset), rule.id), default=None)


def _rank(rule: Rule, ruleset: Ruleset) -> tuple[int, int]:
    return (["base", *ruleset.layers].index(rule.layer), ruleset.tiers.get(rule.tier, 0))
