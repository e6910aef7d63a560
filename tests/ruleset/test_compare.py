"""Two rule sets side by side: what differs is what an enumeration of every situation finds."""

from hypothesis import given
from msgspec.structs import replace

from advisor.advice.case import decide
from advisor.advice.linting import compare_answers
from advisor.ruleset.compare import compare_rules
from advisor.ruleset.judge import CompiledTable
from advisor.ruleset.load import load_rules, only_layer
from advisor.ruleset.model import Condition
from tests.conftest import examples
from tests.ruleset.random_rules import KEYS, made, rulesets, situations


def said(table, facts):
    """What a table concludes and sets."""
    judgement = table.judge(facts)
    settings = {key: value for key, (value, _) in judgement.settings.items()}
    return {
        "": judgement.winner and judgement.winner[0],
        **{key: settings.get(key) for key in KEYS},
    }


@examples(1.2)
@given(rulesets(assume=False), rulesets(assume=False))
def test_every_difference_is_found_and_true(first, second):
    """No situation that the two judge differently is missed, and each witness shows its change."""
    tables = [CompiledTable(one, "colours") for one in (first, second)]
    differences = [
        one for table in compare_rules(first, second).tables for one in table.differences
    ]
    found = {(one.key, one.first, one.second) for one in differences}
    expected = set()
    both = made(first.rules["colours"] + second.rules["colours"])
    for facts in situations(both):
        one, other = (said(table, facts) for table in tables)
        expected |= {(key, one[key], other[key]) for key in one if one[key] != other[key]}
    assert found == expected
    for difference in differences:
        one, other = (said(table, difference.region.facts) for table in tables)
        assert (one[difference.key], other[difference.key]) == (difference.first, difference.second)


def test_a_rule_set_answers_as_itself():
    """Nothing differs, and other names of the same rules are no difference of answers."""
    rules = load_rules()
    assert compare_rules(rules, rules).is_equal
    renamed = {
        table: tuple(replace(rule, id=f"{rule.id}-x") for rule in listed)
        for table, listed in rules.rules.items()
    }
    compared = compare_rules(rules, replace(rules, rules=renamed))
    assert compared.is_equal
    assert len(compared.added) == len(compared.removed) == sum(map(len, renamed.values()))


def test_examples_show_what_the_rules_answer():
    """Two answers, and no fact that is not needed; of one difference in three."""
    first, second = only_layer(load_rules(), "document"), load_rules()
    compared = compare_answers(first, second)
    differences = [one for table in compared.comparison.tables for one in table.differences]
    shown = [
        (difference, example)
        for difference in differences[::3]
        if (example := compared.example(difference)) is not None
    ]
    assert len(shown) > 16
    for difference, example in shown:
        for ruleset, answer, conclusion in (
            (first, example.first, difference.first),
            (second, example.second, difference.second),
        ):
            decision = decide(ruleset, example.facts)
            assert str(decision.composition) == answer
            assert decision.steps[difference.table].winner[0] == conclusion
    changing = [example for _, example in shown if example.first != example.second]
    assert len(changing) > len(shown) // 2


def test_a_threshold_that_moves_is_named():
    """One bound of one rule changes: the region between the two, and the rule by name."""
    rules = load_rules()
    moved = rules.rule("lora/rank-large-data")
    when = tuple(
        replace(one, intervals=(replace(one.intervals[0], low=200_000),))
        if one.fact == "data_rows"
        else one
        for one in moved.when
    )
    assert isinstance(when[0], Condition)
    listed = tuple(
        replace(rule, when=when) if rule is moved else rule for rule in rules.rules["settings"]
    )
    compared = compare_rules(rules, replace(rules, rules={**rules.rules, "settings": listed}))
    assert compared.changed == ("lora/rank-large-data",)
    assert compared.added == compared.removed == ()
    (table,) = compared.tables
    assert {one.key for one in table.differences} == {"rank"}, "another rule sets alpha there"
    for one in table.differences:
        assert one.second is None
        assert "data_rows is over 100,000 and at most 200,000" in one.region.text
