"""Rules and facts for people: the list by table, and one rule explained with its sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advisor.ground.errors import InputError, unknown_name
from advisor.plan.keys import setting_keys
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import joined, method_words, says, value_words, wants

if TYPE_CHECKING:
    from rich.console import Console


def print_rules(ruleset: Ruleset, console: Console) -> None:
    """Every active rule with its conditions and reason, table by table in the order of decision."""
    from rich.text import Text

    for table_id, table in ruleset.tables.items():
        console.print(Text.assemble("\n", (table_id, "bold"), f": {table.about}"))
        for rule in sorted(ruleset.rules[table_id], key=lambda rule: (rule.layer, rule.id)):
            console.print(f"  {rule.id}  [{rule.kind}]", markup=False)
            console.print(
                f"    {conditions(rule, ruleset)} -> {outcome(rule, ruleset)}", markup=False
            )
    if ruleset.disabled:
        console.print(Text.assemble("\n", ("disabled", "bold")))
        for rule_id, because in ruleset.disabled.items():
            console.print(f"  {rule_id}: {because}", markup=False)
    console.print(
        f"\nlayers: {' < '.join(('base', *ruleset.layers))}; digest {ruleset.digest}; one rule in"
        " full: advise rules ID",
        markup=False,
    )


def print_rule(ruleset: Ruleset, rule_id: str, console: Console) -> None:
    """One rule in full. Raises InputError with the nearest id where there is none of that name."""
    rule = ruleset.rule(rule_id)
    if rule is None:
        ids = [rule.id for rules in ruleset.rules.values() for rule in rules]
        fault = unknown_name("rule", rule_id, ids, at="advise rules")
        raise InputError(
            f"unknown rule '{rule_id}'",
            where="advise rules",
            hint=(
                "a key of plan.yaml: a written plan says why it has its value, docs/plan.md what"
                " it may be"
                if rule_id in setting_keys()
                else fault.hint or "`advise rules` lists them; a method is explained by its name"
            ),
        )
    lines = [
        ("rule", rule.id),
        ("table", f"{rule.table}: {ruleset.tables[rule.table].about}"),
        ("kind", f"{rule.kind}{f', tier {rule.tier}' if rule.tier else ''}, layer {rule.layer}"),
        ("when", conditions(rule, ruleset)),
        ("then", outcome(rule, ruleset)),
        ("because", rule.because),
        ("row", rule.row),
        ("but", rule.unless_note),
        ("confidence", rule.confidence),
        ("review by", rule.review_by),
        ("stands in", rule.at),
    ]
    for name, text in lines:
        if text:
            console.print(f"{name:>10}  {text}", markup=False)
    for source_id in rule.sources:
        source = ruleset.sources[source_id]
        told = [source.title, *([source.url] if source.url else [])]
        read = f" (read {source.checked})" if source.checked else ""
        console.print(f"{'source':>10}  {', '.join(told)}{read}", markup=False)


def print_facts(ruleset: Ruleset, console: Console) -> None:
    """Every fact the rules may look at: its values, where it comes from, its flag."""
    for fact in ruleset.facts.values():
        values = ", ".join(map(str, fact.values)) or {
            "number": f"a number ({fact.unit})" if fact.unit else "a number",
            "flag": "stated or not",
        }.get(fact.type, fact.type)
        how = f"--signal {fact.id}" if fact.signal else fact.flag or ""
        console.print(f"{fact.id}  ({fact.origin}{f', {how}' if how else ''})", markup=False)
        console.print(f"    {values}{f'. {fact.ask}' if fact.ask else ''}", markup=False)


def conditions(rule: Rule, ruleset: Ruleset) -> str:
    """A rule's `when` as a sentence says it."""
    asked_of = ruleset.tables[rule.table].per
    said = [
        f"the scheme is {joined(map(method_words, sorted(condition.values)), 'or')}"
        if asked_of and condition.fact == asked_of
        else wants(ruleset.facts[condition.fact], condition)
        for condition in rule.when
    ]
    return "; ".join(said) or "always"


def outcome(rule: Rule, ruleset: Ruleset) -> str:
    """A rule's `then` as a sentence says it; settings as a plan writes them."""
    table = ruleset.tables[rule.table]
    if rule.kind == "warn":
        return f"a warning: {rule.then['say']}"
    if rule.kind == "set":
        return ", ".join(f"{key}: {value}" for key, value in rule.then.items())
    if table.per:
        return "the scheme is ruled out"
    fact, values = ruleset.facts[table.concludes], rule.then[table.concludes]
    listed = values if isinstance(values, list) else [values]
    if rule.kind == "forbid":
        return f"ruled out: {'; '.join(value_words(fact, value) for value in listed)}"
    return says(fact, listed[0])
