"""What a rule says of each candidate: one fact `fits`, and what the file of a method tells.

Rules name the fact once. `fits: too_big` is about the scheme that the rule speaks of,
`fits: {lora: tight, qlora: fits}` about others; `update_trains: module` stands for every update
whose file says `trains: module`. The judge and the proof see one fact for each scheme, and the
updates by name.

The rules of the table `allowed` are asked for each scheme: they are spread here into prohibitions
of the table that ranks the schemes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from advisor.methods import methods, schemes
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Condition, DecisionTable, Rule, Ruleset
from advisor.ruleset.phrases import method_words


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
            listed, comparable = getattr(update, fact.trait), _comparable(fact)
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


def _comparable(fact: Fact) -> set[str]:
    """The values that any method's file lists: of the others nothing is known."""
    return {value for one in methods().updates.values() for value in getattr(one, fact.trait)} - {
        UNKNOWN
    }
