"""The judge: masks say what a plain reading of the rules says, in whatever order the files come."""

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
from tests.ruleset.plain_reading import ruled_out

RULES = load_rules()


def naive(ruleset, table_id, facts):
    """The documented meaning, without masks: latest layer, highest tier, smallest id, less what is
    forbidden.
    """
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


def test_the_order_of_rules_changes_nothing():
    """Shuffled rules rank the same."""
    facts = {"candidate_schemes": "any", "budget": "low", "gpus": 1, "fits_qlora": "too_big"}
    expected = [outcome for outcome, _ in judge(RULES, "rank", facts).ranking]
    for seed in range(20):
        rules = dict(RULES.rules)
        for table_id in ("allowed", "rank"):
            shuffled = list(rules[table_id])
            random.Random(seed).shuffle(shuffled)
            rules[table_id] = tuple(shuffled)
        again = CompiledTable(replace(RULES, rules=rules), "rank").judge(facts)
        assert [outcome for outcome, _ in again.ranking] == expected
    assert expected[0] == "lora"


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
