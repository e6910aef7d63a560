"""The judge against a plain reading, on rule sets that nobody wrote; and changes of form that must
not change an answer.
"""

import random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.ruleset.judge import CompiledTable
from tests.conftest import examples
from tests.ruleset.random_rules import LAYERS, TIERS, Plain, rulesets, situations, with_rules


def answers(ruleset):
    """The judge's answer to every situation: ranking, prohibitions, settings, number of
    warnings.
    """
    table = CompiledTable(ruleset, "colours")
    result = []
    for facts in situations(ruleset):
        judged = table.judge(facts)
        settings_ = {key: value for key, (value, _) in judged.settings.items()}
        result.append(
            (
                [outcome for outcome, _ in judged.ranking],
                [o for o, _ in judged.wanted],
                set(judged.forbidden),
                settings_,
                len(judged.warnings),
            )
        )
    return result


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
    """Where no two rules of one layer and tier (or two settings of one layer) can disagree, any
    other names answer alike.
    """
    rules = ruleset.rules["colours"]
    seen = set()
    apart = []
    for (
        rule
    ) in rules:  # one recommendation a layer and tier, one set rule a layer: then no name decides
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
    """A rule with a list, split into one rule a value, answers alike (warnings are said by
    whichever fires).
    """
    split = []
    for rule in ruleset.rules["colours"]:
        listed = next((condition for condition in rule.when if len(condition.values) > 1), None)
        if listed is None:
            split.append(rule)
            continue
        values = sorted(listed.values, key=str)
        for i, value in enumerate(values):
            part = replace(listed, values=frozenset([value]), unknown=listed.unknown and i == 0)
            split.append(
                replace(
                    rule,
                    id=f"{rule.id}.{i}",
                    when=tuple(
                        part if condition is listed else condition for condition in rule.when
                    ),
                )
            )
    assert answers(with_rules(ruleset, tuple(split))) == answers(ruleset)


def test_a_later_layer_sets_the_value():
    """Between two set rules the later layer's value stands, in whatever order they are read."""
    assert LAYERS == ("base", "document", "acme")
    assert TIERS["high"] > TIERS["low"]
    from tests.ruleset.random_rules import made
    from tests.ruleset.test_proof import rule

    one = replace(rule("base/rank", kind="set", layer="base"), then={"rank": 8})
    other = replace(rule("acme/rank", kind="set", layer="acme"), then={"rank": 64})
    for rules in ((one, other), (other, one)):
        assert CompiledTable(made(rules), "colours").judge({}).settings["rank"][0] == 64
