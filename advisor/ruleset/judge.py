"""Rules x facts -> findings. A pure function: no clock, no network, no order of files.

Each rule of a table is a bit. Which rules a fact's value lets through is found once for each value;
judging is then one AND a fact.

A rule names a fact of each candidate once: `fits: too_big` is about the scheme that the rule speaks
of, `fits: {lora: tight, qlora: fits}` about others, and `update_trains: module` stands for every
update whose file says so. Judge and proof see one fact for each scheme, and the updates by name.
The rules of the table `allowed` are asked for each scheme: they become prohibitions of the table
that ranks the schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import chain
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.methods import methods, schemes
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Condition, DecisionTable, Rule, Ruleset
from advisor.ruleset.phrases import method_words
from advisor.ruleset.space import conditions_by_fact, letting_through


class Judgement(Struct, frozen=True, kw_only=True):
    """What one table says of one set of facts."""

    table: str
    # Outcome and the rule that placed it, best first; forbidden ones left out.
    ranking: tuple[tuple[Any, Rule], ...]
    forbidden: Mapping[Any, tuple[Rule, ...]]
    settings: Mapping[str, tuple[Any, Rule]]
    warnings: tuple[Rule, ...]
    wanted: tuple[tuple[Any, Rule], ...]  # the ranking as it would be if nothing were forbidden

    @property
    def winner(self) -> tuple[Any, Rule] | None:
        return self.ranking[0] if self.ranking else None


class CompiledTable:
    """The rules of one table as bits; for each value of a fact, those that it lets through."""

    def __init__(self, ruleset: Ruleset, table_id: str) -> None:
        self.table = ruleset.tables[table_id]
        self.rules = judged_rules(ruleset, table_id)
        self.every = (1 << len(self.rules)) - 1
        self.conditions = conditions_by_fact(rule.when for rule in self.rules)
        self.passing = lru_cache(4096)(
            lambda fact_id, value: letting_through(self.every, self.conditions[fact_id], value)
        )
        layers = ["base", *ruleset.layers]
        # A later layer wins over an earlier one, a higher tier inside a layer, then the id: never
        # the order of files.
        self.order = sorted(
            (i for i, rule in enumerate(self.rules) if rule.kind == "recommend"),
            key=lambda i: (
                -layers.index(self.rules[i].layer),
                -ruleset.tiers[self.rules[i].tier],
                self.rules[i].id,
            ),
        )
        self.forbidding: dict[Any, list[int]] = {}
        for i, rule in enumerate(self.rules):
            if rule.kind == "forbid":
                for outcome in self._forbidden_by(rule):
                    self.forbidding.setdefault(outcome, []).append(i)
        # Settings likewise: the value of the latest layer stands. Two values inside one layer are a
        # fault that the linter finds.
        self.set_order = sorted(
            (i for i, rule in enumerate(self.rules) if rule.kind == "set"),
            key=lambda i: (layers.index(self.rules[i].layer), self.rules[i].id),
        )

    def firing(self, facts: Mapping[str, Any]) -> int:
        """The rules that fire, as a bit mask."""
        result = self.every
        for fact_id in self.conditions:
            result &= self.passing(fact_id, facts.get(fact_id))
        return result

    def _forbidden_by(self, rule: Rule) -> list[Any]:
        outcomes = rule.then[self.table.concludes]
        return outcomes if isinstance(outcomes, list) else [outcomes]

    def winner(self, facts: Mapping[str, Any], late: Mapping[str, Callable[[], Any]]) -> Any:
        """The first outcome of the ranking, or None; a late fact is only asked for where a rule
        turns on it, since it may take an estimate.
        """
        alive = self.every
        for fact_id in self.conditions.keys() - late.keys():
            alive &= self.passing(fact_id, facts.get(fact_id))

        def fires(i: int) -> bool:
            asked = (one.fact for one in self.rules[i].when if one.fact in late)
            return bool(alive >> i & 1) and all(
                self.passing(fact_id, late[fact_id]()) >> i & 1 for fact_id in asked
            )

        for i in filter(fires, self.order):
            outcome = self.rules[i].then[self.table.concludes]
            if not any(map(fires, self.forbidding.get(outcome, ()))):
                return outcome
        return None

    def judge(self, facts: Mapping[str, Any]) -> Judgement:
        firing = self.firing(facts)
        forbidden: dict[Any, list[Rule]] = {}
        settings: dict[str, tuple[Any, Rule]] = {}
        warnings: list[Rule] = []
        for i, rule in enumerate(self.rules):
            if not firing >> i & 1:
                continue
            if rule.kind == "forbid":
                for outcome in self._forbidden_by(rule):
                    forbidden.setdefault(outcome, []).append(rule)
            elif rule.kind == "warn":
                warnings.append(rule)
        for i in self.set_order:
            if firing >> i & 1:
                then = self.rules[i].then.items()
                settings.update({key: (value, self.rules[i]) for key, value in then})
        wanted: dict[Any, Rule] = {}
        for i in self.order:
            if firing >> i & 1:
                wanted.setdefault(self.rules[i].then[self.table.concludes], self.rules[i])
        return Judgement(
            table=self.table.id,
            ranking=tuple(
                (outcome, rule) for outcome, rule in wanted.items() if outcome not in forbidden
            ),
            forbidden={outcome: tuple(rules) for outcome, rules in forbidden.items()},
            settings=settings,
            warnings=tuple(warnings),
            wanted=tuple(wanted.items()),
        )


@cache
def compile_table(ruleset: Ruleset, table_id: str) -> CompiledTable:
    """The table ready to judge; rule sets are told apart by identity."""
    return CompiledTable(ruleset, table_id)


def judge(ruleset: Ruleset, table_id: str, facts: Mapping[str, Any]) -> Judgement:
    """What the table says of the facts; a fact that is missing is not known."""
    return compile_table(ruleset, table_id).judge(facts)


def instance(fact: Fact, scheme: str) -> str:
    """The id of a candidate's own fact: `fits` of lora is `fits_lora`."""
    return f"{fact.id}_{scheme}"


def instances(fact: Fact) -> dict[str, Fact]:
    """The facts of all candidates, by id."""
    return {
        instance(fact, scheme): replace(
            fact,
            id=instance(fact, scheme),
            per="",
            instance_of=fact.id,
            phrase=fact.phrase.replace("{scheme}", method_words(scheme)),
            name=fact.name.replace("{scheme}", method_words(scheme)),
        )
        for scheme in schemes()
    }


def seen_inputs(table: DecisionTable, facts: Mapping[str, Fact]) -> tuple[str, ...]:
    """The inputs as the judge sees them: a fact of each candidate in place of the one in rules."""
    found: list[str] = []
    for name in table.inputs:
        fact = facts[name]
        if fact.per:
            found += [instance(fact, scheme) for scheme in schemes()]
        elif fact.compared_with:
            found.append(fact.compared_with)
        elif not fact.trait:
            found.append(name)
    return tuple(dict.fromkeys(found))


def spread_given(given: Mapping[str, Any], facts: Mapping[str, Fact]) -> dict[str, Any]:
    """Facts of an example or a scenario, with `fits: {lora: tight}` as the facts of the schemes."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in facts and facts[name].per and isinstance(value, Mapping):
            found |= {instance(facts[name], str(scheme)): one for scheme, one in value.items()}
        else:
            found[name] = value
    return found


def with_methods(conditions: Iterable[Condition], facts: Mapping[str, Fact]) -> list[Condition]:
    """The conditions with what methods' files tell turned into the names of those methods."""
    found: dict[str, Condition] = {}
    for condition in conditions:
        fact = facts[condition.fact]
        if fact.trait:
            names = frozenset(
                name
                for name, one in methods().updates.items()
                if condition.holds(getattr(one, fact.trait))
            )
            condition = Condition(
                fact="update", values=names, text=condition.text, named=condition.fact
            )
        known = found.get(condition.fact)
        if known is not None:
            condition = replace(condition, values=known.values & condition.values)
        found[condition.fact] = condition
    return list(found.values())


@cache
def judged_rules(ruleset: Ruleset, table_id: str) -> tuple[Rule, ...]:
    """The rules that a table judges with: its own, and those of the table that it asks, spread."""
    table = ruleset.tables[table_id]
    asked = ruleset.rules[table.asks] if table.asks else ()
    return (
        *ruleset.rules[table_id],
        *(one for rule in asked for one in for_candidates(rule, table, ruleset.facts)),
    )


def conditions_on(ruleset: Ruleset, fact_id: str) -> list[Condition]:
    """What the rules of all tables want of a fact."""
    return [
        condition
        for table_id in ruleset.tables
        for rule in judged_rules(ruleset, table_id)
        for condition in rule.when
        if condition.fact == fact_id
    ]


def fires(ruleset: Ruleset, rule: Rule, facts: Mapping[str, Any]) -> bool:
    """Whether a rule fires; one that is asked for each scheme needs the fact `scheme`."""
    asked = ruleset.tables[rule.table]
    if not asked.per:
        return rule.first_failing(facts) is None
    ranking = next(table for table in ruleset.tables.values() if table.asks == asked.id)
    scheme = str(facts.get("scheme"))
    own = {
        instance(ruleset.facts[name], scheme): value
        for name, value in facts.items()
        if name in ruleset.facts and ruleset.facts[name].per
    }
    return any(
        one.candidate == scheme and one.first_failing({**facts, **own}) is None
        for one in for_candidates(rule, ranking, ruleset.facts)
    )


def for_candidates(rule: Rule, table: DecisionTable, facts: Mapping[str, Fact]) -> Iterator[Rule]:
    """A rule of the table `allowed` as one prohibition of the ranking table for each scheme."""
    for scheme in schemes():
        when = list(_of_scheme(rule, scheme, facts))
        if None not in when:
            yield replace(
                rule,
                table=table.id,
                when=tuple(condition for condition in when if condition is not None),
                then={table.concludes: scheme},
                candidate=scheme,
            )


def _of_scheme(rule: Rule, scheme: str, facts: Mapping[str, Fact]) -> Iterator[Condition | None]:
    """The rule's conditions for one scheme; None where one of them can never hold for it."""
    update = methods().updates[schemes()[scheme].update]
    for condition in rule.when:
        fact = facts[condition.fact]
        if fact.compared_with:
            # Whether another fact's value is among what the method's file lists.
            other = facts[fact.compared_with]
            listed = getattr(update, fact.trait)
            # What no method's file lists can be compared with nothing.
            known = (getattr(one, fact.trait) for one in methods().updates.values())
            comparable = set(chain.from_iterable(known)) - {UNKNOWN}
            values = frozenset(
                value
                for value in other.values
                if condition.holds(value in listed if value in comparable else None)
            )
            compared = Condition(
                fact=other.id, values=values, unknown=condition.unknown, text=condition.text
            )
            yield compared if values or condition.unknown else None
        elif condition.fact == "scheme" or fact.trait:
            value = scheme if condition.fact == "scheme" else getattr(update, fact.trait)
            if not condition.holds(value):
                yield None
        elif fact.per:
            own = instance(fact, scheme)
            yield replace(
                condition, fact=own, text=condition.text.replace(fact.id, own.replace("_", " "), 1)
            )
        else:
            yield condition
