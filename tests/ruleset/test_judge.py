"""The judge against plain reading: masks, changes of form, and the differences of two rule sets."""

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice.case import decide
from advisor.advice.linting import compare_answers
from advisor.methods import objectives, schemes, updates
from advisor.ruleset.compare import compare_rules
from advisor.ruleset.facts import UNKNOWN
from advisor.ruleset.judge import CompiledTable, judge
from advisor.ruleset.load import load_rules, only_layer
from tests.conftest import examples
from tests.ruleset.random_rules import (
    KEYS,
    Plain,
    coloured,
    made,
    ruled_out,
    rulesets,
    situations,
    with_rules,
)

RULES = load_rules()
JUDGED = [one.id for one in RULES.tables.values() if not one.per and one.id != "settings"]


def facts_of(table):
    """What the table looks at, each fact known or not."""
    values = {"number": st.one_of(st.integers(0, 10), st.integers(0, 10**6)), "flag": st.booleans()}
    facts = (RULES.facts[name] for name in RULES.tables[table].seen)
    return st.fixed_dictionaries(
        {},
        optional={
            fact.id: values.get(fact.type, st.sampled_from([UNKNOWN, *fact.values]))
            for fact in facts
        },
    )


@examples(8, deadline=200)
@given(st.sampled_from(JUDGED).flatmap(lambda table: st.tuples(st.just(table), facts_of(table))))
def test_masks_agree_with_a_plain_reading(case):
    """The compiled table gives the ranking and the prohibitions of a reading without masks."""
    table, facts = case
    judged, plain = judge(RULES, table, facts), Plain(RULES, facts, table)
    asked = schemes() if table == "rank" else ()
    forbidden = plain.forbidden | {
        scheme for scheme in asked if ruled_out(RULES.rules["allowed"], scheme, facts)
    }
    assert (set(judged.forbidden), [one for one, _ in judged.ranking]) == (
        forbidden,
        [one for one in plain.ranking if one not in forbidden],
    )


def test_no_two_settings_of_one_key_hold_at_once():
    """Every combination of axes, size, data and device gives each key one value from each layer."""
    compiled = CompiledTable(RULES, "settings")
    names = ("objective", "update", "quantization", "params_b", "data_rows")
    always = {"learning_rate", "weights_dtype", "optimizer", "epochs", "effective_batch_size"}
    cells = 0
    for *values, (device, capability) in product(
        RULES.facts["objective"].values,
        updates(),
        ("none", "nf4", "int8"),
        (None, 0.1, 0.7, 4.9, 7.0, 13.0, 32.0, 70.0),
        (None, 10, 999, 1000, 10_000, 50_000, 100_000, 100_001),
        (("cpu", None), ("gpu", 7.5), ("gpu", 8.0), ("gpu", None), ("unknown", None)),
    ):
        facts = dict(zip(names, values, strict=True))
        facts |= {"device": device, "compute_capability": capability}
        firing = compiled.firing(facts)
        fired = [one for i, one in enumerate(compiled.rules) if firing >> i & 1]
        keys = [key for one in fired if one.layer == "base" for key in one.then]
        assert len(keys) == len(set(keys)), (facts, keys)
        assert always <= set(keys), (facts, keys)
        cells += 1
    assert cells == len(objectives()) * len(updates()) * 3 * 8 * 8 * 5 >= 9 * 4 * 3 * 8 * 8 * 5


def answers(ruleset):
    """The judge's answer to every situation."""
    table = CompiledTable(ruleset, "colours")
    return [
        (
            [outcome for outcome, _ in judged.ranking],
            [outcome for outcome, _ in judged.wanted],
            set(judged.forbidden),
            {key: value for key, (value, _) in judged.settings.items()},
            len(judged.warnings),
        )
        for judged in map(table.judge, situations(ruleset))
    ]


@examples(1.2)
@given(rulesets(assume=False))
def test_the_judge_agrees_with_a_plain_reading(ruleset):
    """Masks rank, forbid, set and warn as reading every rule does."""
    table = CompiledTable(ruleset, "colours")
    for facts in situations(ruleset):
        judged, plain = table.judge(facts), Plain(ruleset, facts)
        assert [outcome for outcome, _ in judged.ranking] == plain.ranking
        assert [outcome for outcome, _ in judged.wanted] == plain.wanted
        assert (judged.winner[1] if judged.winner else None) == plain.winner
        assert set(judged.forbidden) == plain.forbidden
        assert set(judged.settings) == set(plain.settings)
        assert all(
            value in plain.settings[key] and rule in plain.setting_rules[key]
            for key, (value, rule) in judged.settings.items()
        )
        assert list(judged.warnings) == [rule for rule in plain.fired if rule.kind == "warn"]


@examples(1.2)
@given(rulesets(assume=False), st.integers(0, 1000))
def test_the_order_of_rules_changes_nothing(ruleset, seed):
    """Shuffled rules answer alike, settings included."""
    rules = ruleset.rules["colours"]
    shuffled = random.Random(seed).sample(rules, len(rules))
    assert answers(with_rules(ruleset, tuple(shuffled))) == answers(ruleset)


@examples(1.2)
@given(rulesets(assume=False), st.integers(0, 1000))
def test_names_of_rules_matter_only_between_equals(ruleset, seed):
    """Where no two rules of one layer and tier can disagree, other names answer alike."""
    seen, apart = set(), []
    for rule in ruleset.rules[
        "colours"
    ]:  # one recommendation a layer and tier, one set rule a layer: no name decides
        place = (rule.kind, rule.layer, rule.tier)
        if rule.kind in ("forbid", "warn") or place not in seen:
            apart.append(rule)
        seen.add(place)
    names = random.Random(seed).sample(range(len(apart)), len(apart))
    renamed = tuple(
        replace(rule, id=f"{rule.layer}/n{name}") for rule, name in zip(apart, names, strict=True)
    )
    assert answers(with_rules(ruleset, renamed)) == answers(with_rules(ruleset, tuple(apart)))


@examples(1.2)
@given(rulesets(assume=False))
def test_a_list_says_what_two_rules_say(ruleset):
    """A rule with a list, split into one rule a value, answers alike."""
    split = []
    for rule in ruleset.rules["colours"]:
        listed = next((one for one in rule.when if len(one.values) > 1), None)
        split += [rule] if listed is None else []
        for i, value in enumerate(sorted(listed.values, key=str) if listed else ()):
            part = replace(listed, values=frozenset([value]), unknown=listed.unknown and i == 0)
            when = tuple(part if condition is listed else condition for condition in rule.when)
            split.append(replace(rule, id=f"{rule.id}.{i}", when=when))
    assert answers(with_rules(ruleset, tuple(split))) == answers(ruleset)


def test_a_later_layer_sets_the_value():
    """Between two set rules the later layer's value stands, in whatever order they are read."""
    one = coloured("base/rank", kind="set", layer="base", then={"rank": 8})
    other = coloured("acme/rank", kind="set", layer="acme", then={"rank": 64})
    for rules in ((one, other), (other, one)):
        assert CompiledTable(made(rules), "colours").judge({}).settings["rank"][0] == 64


def said(table, facts):
    """What a table concludes and sets."""
    judgement = table.judge(facts)
    settings = {key: judgement.settings.get(key, (None,))[0] for key in KEYS}
    return {"": judgement.winner and judgement.winner[0], **settings}


@examples(1.2)
@given(rulesets(assume=False), rulesets(assume=False))
def test_every_difference_is_found_and_true(first, second):
    """No situation that the two judge differently is missed, and each witness shows its change."""
    tables = [CompiledTable(one, "colours") for one in (first, second)]
    differences = [
        one for table in compare_rules(first, second).tables for one in table.differences
    ]
    expected = set()
    for facts in situations(made(first.rules["colours"] + second.rules["colours"])):
        one, other = (said(table, facts) for table in tables)
        expected |= {(key, one[key], other[key]) for key in one if one[key] != other[key]}
    assert {(one.key, one.first, one.second) for one in differences} == expected
    for difference in differences:
        one, other = (said(table, difference.region.facts) for table in tables)
        assert (one[difference.key], other[difference.key]) == (difference.first, difference.second)


def test_a_rule_set_answers_as_itself():
    """Nothing differs, and other names of the same rules are no difference of answers."""
    assert compare_rules(RULES, RULES).is_equal
    renamed = {
        table: tuple(replace(rule, id=f"{rule.id}-x") for rule in listed)
        for table, listed in RULES.rules.items()
    }
    compared = compare_rules(RULES, replace(RULES, rules=renamed))
    assert compared.is_equal
    assert len(compared.added) == len(compared.removed) == sum(map(len, renamed.values()))


def test_examples_show_what_the_rules_answer():
    """Two answers, and no fact that is not needed; of one difference in three."""
    first = only_layer(RULES, "document")
    compared = compare_answers(first, RULES)
    differences = [one for table in compared.comparison.tables for one in table.differences][::3]
    shown = [(one, found) for one in differences if (found := compared.example(one)) is not None]
    assert len(shown) > 16
    for (difference, example), (name, ruleset) in product(
        shown, (("first", first), ("second", RULES))
    ):
        decision = decide(ruleset, example.facts)
        assert str(decision.composition) == getattr(example, name)
        assert decision.steps[difference.table].winner[0] == getattr(difference, name)
    assert sum(example.first != example.second for _, example in shown) > len(shown) // 2


def test_a_threshold_that_moves_is_named():
    """One bound of one rule changes: the region between the two, and the rule by name."""
    moved = RULES.rule("lora/rank-large-data")
    when = tuple(
        replace(one, intervals=(replace(one.intervals[0], low=200_000),))
        if one.fact == "data_rows"
        else one
        for one in moved.when
    )
    listed = tuple(
        replace(rule, when=when) if rule is moved else rule for rule in RULES.rules["settings"]
    )
    compared = compare_rules(RULES, replace(RULES, rules={**RULES.rules, "settings": listed}))
    assert (compared.changed, compared.added, compared.removed) == ((moved.id,), (), ())
    (table,) = compared.tables
    # Another rule sets alpha there.
    assert {(one.key, one.second) for one in table.differences} == {("rank", None)}
    between = "data_rows is over 100,000 and at most 200,000"
    assert all(between in one.region.text for one in table.differences)
