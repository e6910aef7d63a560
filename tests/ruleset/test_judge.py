"""The judge: masks say what a plain reading of the rules says, of the shipped rules and of rule sets
that nobody wrote; and changes of form that must not change an answer.
"""

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.methods import objectives, schemes, updates
from advisor.ruleset.facts import UNKNOWN
from advisor.ruleset.judge import CompiledTable, judge
from advisor.ruleset.load import load_rules
from tests.conftest import examples
from tests.ruleset.random_rules import Plain, made, ruled_out, rulesets, situations, with_rules
from tests.ruleset.test_proof import rule as coloured

RULES = load_rules()


def naive(ruleset, table_id, facts):
    """Without masks: latest layer, highest tier, smallest id, less what is forbidden."""
    table = ruleset.tables[table_id]
    firing = [
        rule
        for rule in ruleset.rules[table_id]
        if all(condition.holds(facts.get(condition.fact)) for condition in rule.when)
    ]
    forbidden = set()
    for rule in firing:
        if rule.kind == "forbid":
            values = rule.then[table.concludes]
            forbidden.update(values if isinstance(values, list) else [values])
    if table_id == "rank":
        allowed = ruleset.rules["allowed"]
        forbidden |= {scheme for scheme in schemes() if ruled_out(allowed, scheme, facts)}
    layers = ["base", *ruleset.layers]
    recommended = sorted(
        (rule for rule in firing if rule.kind == "recommend"),
        key=lambda rule: (-layers.index(rule.layer), -ruleset.tiers[rule.tier], rule.id),
    )
    ranking = list(
        dict.fromkeys(
            rule.then[table.concludes]
            for rule in recommended
            if rule.then[table.concludes] not in forbidden
        )
    )
    return ranking, forbidden


@st.composite
def facts_of_a_table(draw):
    judged = [table.id for table in RULES.tables.values() if not table.per]
    table_id = draw(st.sampled_from([table for table in judged if table != "settings"]))
    facts = {}
    for fact_id in RULES.tables[table_id].seen:
        fact = RULES.facts[fact_id]
        if fact.type == "number":
            value = draw(st.one_of(st.none(), st.integers(0, 10), st.integers(0, 10**6)))
        elif fact.type == "flag":
            value = draw(st.sampled_from([None, True, False]))
        else:
            value = draw(st.sampled_from([UNKNOWN, *fact.values]))
        if value is not None:
            facts[fact_id] = value
    return table_id, facts


@examples(8, deadline=200)
@given(facts_of_a_table())
def test_masks_agree_with_a_plain_reading(case):
    """The compiled table and the naive one give the same ranking and the same prohibitions."""
    table_id, facts = case
    judgement = judge(RULES, table_id, facts)
    ranking, forbidden = naive(RULES, table_id, facts)
    assert [outcome for outcome, _ in judgement.ranking] == ranking
    assert set(judgement.forbidden) == forbidden


def test_no_two_settings_of_one_key_hold_at_once():
    """Every combination of axes, size, data and device gives each key one value from each layer."""
    compiled = CompiledTable(RULES, "settings")
    names = ("objective", "update", "quantization", "params_b", "data_rows")
    devices = [("cpu", None), ("gpu", 7.5), ("gpu", 8.0), ("gpu", None), ("unknown", None)]
    always = {"learning_rate", "weights_dtype", "optimizer", "epochs", "effective_batch_size"}
    cells = 0
    for *values, (device, capability) in product(
        RULES.facts["objective"].values,
        updates(),
        ("none", "nf4", "int8"),
        (None, 0.1, 0.7, 4.9, 7.0, 13.0, 32.0, 70.0),
        (None, 10, 999, 1000, 10_000, 50_000, 100_000, 100_001),
        devices,
    ):
        facts = dict(zip(names, values, strict=True))
        facts |= {"device": device, "compute_capability": capability}
        firing = compiled.firing(facts)
        fired = [one for i, one in enumerate(compiled.rules) if firing >> i & 1]
        keys = [key for rule in fired if rule.layer == "base" for key in rule.then]
        assert len(keys) == len(set(keys)), (facts, keys)
        assert always <= set(keys), (facts, keys)
        cells += 1
    assert cells == len(objectives()) * len(updates()) * 3 * 8 * 8 * 5 >= 9 * 4 * 3 * 8 * 8 * 5


# --------------------------------------------------------------------------- random rules


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
    shuffled = list(ruleset.rules["colours"])
    random.Random(seed).shuffle(shuffled)
    assert answers(with_rules(ruleset, tuple(shuffled))) == answers(ruleset)


@examples(1.2)
@given(rulesets(assume=False), st.integers(0, 1000))
def test_names_of_rules_matter_only_between_equals(ruleset, seed):
    """Where no two rules of one layer and tier can disagree, other names answer alike."""
    rules = ruleset.rules["colours"]
    seen, apart = set(), []
    for rule in rules:  # one recommendation a layer and tier, one set rule a layer: no name decides
        place = (rule.kind, rule.layer, rule.tier)
        if rule.kind in ("forbid", "warn") or place not in seen:
            apart.append(rule)
        seen.add(place)
    names = list(range(len(apart)))
    random.Random(seed).shuffle(names)
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
        listed = next((condition for condition in rule.when if len(condition.values) > 1), None)
        if listed is None:
            split.append(rule)
            continue
        values = sorted(listed.values, key=str)
        for i, value in enumerate(values):
            part = replace(listed, values=frozenset([value]), unknown=listed.unknown and i == 0)
            when = tuple(part if condition is listed else condition for condition in rule.when)
            split.append(replace(rule, id=f"{rule.id}.{i}", when=when))
    assert answers(with_rules(ruleset, tuple(split))) == answers(ruleset)


def test_a_later_layer_sets_the_value():
    """Between two set rules the later layer's value stands, in whatever order they are read."""
    one = replace(coloured("base/rank", kind="set", layer="base"), then={"rank": 8})
    other = replace(coloured("acme/rank", kind="set", layer="acme"), then={"rank": 64})
    for rules in ((one, other), (other, one)):
        assert CompiledTable(made(rules), "colours").judge({}).settings["rank"][0] == 64
