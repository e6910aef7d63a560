"""Why not: one sentence for each outcome that a table did not conclude.

It names a change that would put the outcome first, and is true: the tables are asked again with
that change. Where no change of a few facts does it, the sentence gives the reason of the rule that
puts another outcome before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.advice.case import LAST, REMEDIES_OF_GATE, decide
from advisor.advice.facts import OF_MODEL
from advisor.advice.types import Reason, Sizes
from advisor.advice.why import RANKS_BELOW, reason_of, scheme_of_fact, titles_of
from advisor.ground.units import about_usd, format_usd, gib
from advisor.methods import methods, schemes, update
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import Judgement, judge
from advisor.ruleset.model import Condition, DecisionTable, Rule, Ruleset
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
MAX_PATHS, MAX_TRIES = 200, 16  # of making a rule fire; of them those that are tried
FITS, TOO_BIG = "fits", "too_big"  # what a sentence supposes of a fit: the others are shades of it
NAMED = 2  # facts that a sentence names at most


class Path(Struct, frozen=True):
    """Facts that would put an outcome first."""

    wanted: Mapping[str, Condition]
    rule: Rule  # the one that would then recommend it
    by_size: bool = False  # the change is that the winner does not fit
    change: Change = field(default_factory=dict)


class LosingOutcome(Struct, frozen=True):
    """One outcome that a table did not conclude, and everything that is known."""

    judgement: Judgement
    outcome: str
    facts: Mapping[str, Any]
    ruleset: Ruleset
    sizes: Sizes = field(default_factory=dict)
    # Nobody named the model: another one is suggested if a small encoder is enough.
    is_suggested: bool = False

    @property
    def table(self) -> DecisionTable:
        return self.ruleset.tables[self.judgement.table]

    def reasons(self) -> list[Reason]:
        """What forbids it, a change that would put it first, or what puts another before it."""
        if self.outcome in self.judgement.forbidden:
            return [reason_of(one, self.ruleset) for one in self.judgement.forbidden[self.outcome]]
        trains = REMEDIES_OF_GATE[str(self.facts["train_decision"])][1]
        if not trains and self.table.id in (LAST, "chain", "train_decision"):
            return [self._nothing_is_trained()]
        named = self._recommending(self.table, (self.outcome,))
        winner = self.judgement.winner
        if not named or winner is None:
            return [Reason(text="None of the rules in use recommends it here.")]
        capacity = self._ruled_by_capacity(str(winner[0]))
        if capacity is None and (path := self._path_to_win(named)) is not None:
            return [self.would_come_first(path)]
        rule = capacity or self._ranking_rule() or winner[1]
        fact = self.ruleset.facts[self.table.concludes]
        return [self._ranks_below(value_words(fact, winner[0]), rule)]

    def _recommending(
        self, table: DecisionTable, outcomes: Sequence[Any] | frozenset[Any]
    ) -> list[Rule]:
        return [
            rule
            for rule in self.ruleset.rules[table.id]
            if rule.kind == "recommend" and rule.then.get(table.concludes) in outcomes
        ]

    # ------------------------------------------------------------------- rules that decide

    def _nothing_is_trained(self) -> Reason:
        """What led to a remedy in place of training, not the rule that joins it."""
        decided = judge(self.ruleset, "train_decision", self.facts).winner
        assert decided is not None
        # Where the decision leaves fewer outcomes of a step open, that step decided.
        behind = [
            (len(condition.values), winner[1])
            for condition in decided[1].when
            for table in self.ruleset.tables.values()
            if table.concludes == condition.fact
            and (winner := judge(self.ruleset, table.id, self.facts).winner) is not None
            and winner[1].layer != "base"
        ]
        rule = min(behind, key=lambda found: found[0])[1] if behind else decided[1]
        return self._ranks_below(
            value_words(self.ruleset.facts["train_decision"], decided[0]), rule
        )

    def _ranks_below(self, winner: str, rule: Rule) -> Reason:
        """'Ranks below LoRA: ...', with the amounts that the rule looked at."""
        amounts = [
            says(self.ruleset.facts[condition.fact], self.facts[condition.fact])
            for condition in rule.when
            if condition.intervals and isinstance(self.facts.get(condition.fact), int | float)
        ]
        because = inside_sentence(rule.because)
        if amounts:
            because = f"{because.rstrip('.')} ({clauses(amounts)})."
        text = f"{RANKS_BELOW} {winner.rstrip(',')}: {because}"
        return Reason(text=text, rule=rule.id, source=titles_of(rule, self.ruleset))

    def _ruled_by_capacity(self, winner: str) -> Rule | None:
        """The rule about every weight or a small module, if that sets the two apart."""
        if self.table.id != LAST or not {winner, self.outcome} <= schemes().keys():
            return None
        ours, other = (update(schemes()[name].update).trains for name in (winner, self.outcome))
        found = judge(self.ruleset, "required_capacity", self.facts).winner
        if ours == other or found is None or found[1].layer == "base":
            return None
        return found[1] if (ours == "all") == (found[0] == "full_rank") else None

    def _ranking_rule(self) -> Rule | None:
        """The least rule for the winner that puts it first; higher ones are about others."""
        placed = dict(self.judgement.ranking).get(self.outcome)
        if placed is None or self.judgement.winner is None:
            return None
        before = [
            rule
            for rule in self._recommending(self.table, (self.judgement.winner[0],))
            if self._rank(rule) > self._rank(placed) and rule.first_failing(self.facts) is None
        ]
        return min(before, key=lambda rule: (self._rank(rule), rule.id), default=None)

    def _rank(self, rule: Rule) -> tuple[int, int]:
        layers = ["base", *self.ruleset.layers]
        return layers.index(rule.layer), self.ruleset.tiers.get(rule.tier, 0)

    # ------------------------------------------------------------------- paths to win

    def _path_to_win(self, named: Sequence[Rule]) -> Path | None:
        """The easiest change after which the tables conclude the outcome, or None."""
        paths = [
            *self._if_the_winner_does_not_fit(),
            *(
                Path(wanted, rule)
                for rule in named
                for way in islice(self._unmet(rule), MAX_PATHS)
                if (wanted := _by_fact(way))
            ),
        ]
        # Nobody takes another task for a method's sake, and a machine without a GPU has none that
        # could be too small.
        never = {"task"} | ({"memory_bound"} if self.facts.get("device") == "cpu" else set())
        possible = sorted((one for one in paths if never.isdisjoint(one.wanted)), key=self._effort)
        tries = (replace(one, change=change) for one in possible for change in self._changes(one))
        return next((one for one in islice(tries, MAX_TRIES) if self._wins_with(one.change)), None)

    def _if_the_winner_does_not_fit(self) -> Iterator[Path]:
        """For a smaller scheme the change that needs no other rule: the winner does not fit."""
        before = [name for name, _ in self.judgement.ranking if name in schemes()]
        placed = dict(self.judgement.ranking).get(self.outcome)
        assert self.judgement.winner is not None
        winner, ours = str(self.judgement.winner[0]), self.outcome
        if placed is None or winner not in before or ours not in before:
            return
        if _weight(ours) >= _weight(winner):
            return
        between = before[1 : before.index(ours)]
        heavier = [name for name in between if _weight(name) > _weight(ours)]
        for too_big in ([winner], [winner, *heavier]):
            facts = [f"fits_{name}" for name in too_big]
            wanted = {name: Condition(fact=name, values=frozenset({TOO_BIG})) for name in facts}
            yield Path(wanted, placed, by_size=True)

    def _unmet(self, rule: Rule) -> Iterator[tuple[Condition, ...]]:
        """Each set of conditions, back to what a person stated, that makes a rule fire."""
        options: list[list[tuple[Condition, ...]]] = []
        concluding = {table.concludes: table for table in reversed([*self.ruleset.tables.values()])}
        for condition in rule.when:
            if condition.holds(self.facts.get(condition.fact)):
                continue
            if (table := concluding.get(condition.fact)) is None:
                options.append([(condition,)])
                continue
            leading = self._recommending(table, condition.values)
            ways = (way for other in leading for way in self._unmet(other) if way)
            options.append(list(islice(ways, MAX_PATHS)))  # no more would be read of the product
        for combination in product(*options):
            yield tuple(condition for part in combination for condition in part)

    def _effort(self, path: Path) -> tuple[Any, ...]:
        return (
            not path.by_size or self.facts.get(next(iter(path.wanted))) in (None, UNKNOWN),
            sum(map(self._effort_of, path.wanted)),
            len(path.wanted),
            not self._suits_chain(path.wanted.get("data_kind")),
            *(-part for part in self._rank(path.rule)),
            path.rule.id,
            *path.wanted,
        )

    def _effort_of(self, fact_id: str) -> int:
        fact = self.ruleset.facts[fact_id]
        if fact.instance_of:
            return LIMIT
        if fact.signal or fact_id in CHOICES:
            return ANSWER
        if fact.origin == "model":
            return OTHER_MODEL
        return OTHER_TASK if fact_id == "task" else EFFORT

    def _suits_chain(self, kinds: Condition | None) -> bool:
        """Whether a chain would get the kind of data that it is for, not one to be made into it."""
        if self.table.id != "chain" or kinds is None:
            return False
        first = self.outcome.removeprefix("encoder:").split(">")[0]
        return not kinds.values.isdisjoint(methods().objective(first).trains_on)

    def _changes(self, path: Path) -> Iterator[Change]:
        """Values that meet the conditions of a path, with what they imply."""
        facts = self.ruleset.facts
        values = [_samples(facts[name], condition) for name, condition in path.wanted.items()]
        for chosen in product(*values):
            change = dict(zip(path.wanted, chosen, strict=True))
            implied = [facts[name].implied_by(value) for name, value in change.items()]
            yield {**{other: True for others in implied for other in others}, **change}

    def _wins_with(self, change: Change) -> bool:
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

    def would_come_first(self, path: Path) -> Reason:
        """'QLoRA would win if LoRA did not fit; here LoRA fits with 4.2 GiB to spare.'"""
        names = sorted(path.wanted, key=self._effort_of)
        shown = [name for name in path.wanted if name in names[:NAMED]]
        wanted = " and ".join(self._wanted_fact(name, path) for name in shown)
        among = "if, among other things," if len(names) > NAMED else "if"
        method = value_words(self.ruleset.facts[self.table.concludes], self.outcome)
        text = f"{method} would win {among} {wanted}; {self._as_it_is(shown)}."
        return Reason(
            text=text[0].upper() + text[1:],
            rule=path.rule.id,
            source=titles_of(path.rule, self.ruleset),
        )

    def _wanted_fact(self, name: str, path: Path) -> str:
        fact, condition = self.ruleset.facts[name], path.wanted[name]
        if condition.intervals:
            return wants(fact, replace(condition, unknown=False), would=True)
        text = says(fact, path.change[name], would=True)
        own = bool(fact.instance_of) and scheme_of_fact(fact) == self.outcome
        return text.replace(method_words(self.outcome), "it", 1) if own else text

    def _as_it_is(self, names: Sequence[str]) -> str:
        """'you chose a medium budget, and you have not said what matters most'."""
        facts = [self.ruleset.facts[name] for name in names]
        known = [fact for fact in facts if self.facts.get(fact.id) not in (None, UNKNOWN)]
        parts = [self._known_fact(fact) for fact in known]
        missing = [fact for fact in facts if fact not in known]
        if fits := [fact for fact in missing if fact.instance_of]:
            verb = "is" if len(fits) == 1 else "are"
            parts.append(f"{joined(map(name_of, fits))} {verb} not known{self._why_unknown()}")
        stated = [fact for fact in missing if not fact.instance_of]
        if self.facts.get("budget_usd"):  # whoever names a limit has said how much it may cost
            parts += [self._limit() for fact in stated if fact.id == "budget"]
            stated = [fact for fact in stated if fact.id != "budget"]
        if stated:
            parts.append(not_known(stated, alone=not parts))
        if parts[0].startswith("here "):  # said once: 'here LoRA fits, and QLoRA fits'
            parts[1:] = [part.removeprefix("here ") for part in parts[1:]]
        return clauses(parts)

    def _limit(self) -> str:
        """'your limit is $50, and it would cost about $61', or that it is within the limit."""
        cost, limit = self.sizes.get(self.outcome), float(self.facts["budget_usd"])
        usd = None if cost is None else cost.cost_usd
        if usd and usd <= limit:
            return f"it would cost {about_usd(usd)}, within your limit of {format_usd(limit)}"
        would = f", and it would cost {about_usd(usd)}" if usd else ""
        return f"your limit is {format_usd(limit)}{would}"

    def _known_fact(self, fact: Fact) -> str:
        value = self.facts[fact.id]
        if not fact.instance_of:
            return says(fact, value)
        cost = self.sizes.get(scheme_of_fact(fact))
        if cost is not None and cost.memory is not None and cost.limit_bytes is not None:
            need, limit = cost.memory.need_bytes, cost.limit_bytes
            if value in ("fits", "tight") and limit >= need:
                # Of the numbers as they are shown: nobody should find another difference.
                spare = round(gib(limit), 1) - round(gib(need), 1)
                method = method_words(scheme_of_fact(fact))
                return f"here {method} fits with {spare:.1f} GiB to spare"
        return f"here {says(fact, value)}"

    def _why_unknown(self) -> str:
        """Why an estimate is no known fact, though numbers may stand beside it."""
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


def _by_fact(conditions: Sequence[Condition]) -> dict[str, Condition]:
    """The conditions joined by fact; empty if two can never hold together, or want two stretches of
    one amount.
    """
    found: dict[str, Condition] = {}
    for condition in conditions:
        known = found.get(condition.fact, condition)
        values = known.values & condition.values
        if known.intervals != condition.intervals or not (values or condition.intervals):
            return {}  # the last: it wants something not to be known, or two things at once
        found[condition.fact] = replace(condition, values=values)
    return found


def _samples(fact: Fact, condition: Condition) -> list[Any]:
    if not condition.intervals:
        flags = (True, False) if fact.type == "flag" else fact.values
        supposed = (TOO_BIG, FITS) if fact.instance_of else flags
        return [value for value in supposed if value in condition.values]
    found, step = [], 1 if fact.integer else 0.01
    for interval in condition.intervals:
        if interval.low is not None:
            found.append(interval.low if interval.low_included else interval.low + step)
        elif interval.high is not None:
            value = interval.high if interval.high_included else interval.high - step
            found.append(max(value, fact.min or 0))
    return found
