"""Rules about configurations: what their conditions mean, and that each rests on something."""

import re

import pytest

from advisor.extras.other_tools.findings import (
    PLACE,
    Known,
    ToolFinding,
    by_rules,
    fill_values,
    general_rules,
    holds,
    worst_first,
)
from advisor.extras.other_tools.tool import TOOLS, tool_named
from advisor.ground.yaml_files import LINK, shipped_sources

KNOWN = Known(
    values={"a": 1, "m": {"b": None}, "l": [{"t": "sharegpt"}, {"r": ["user"]}]},
    defaults={"c": 3, "a": 2},
    facts={"plan.x": 5, "f": False},
)


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("a", 1, True), ("a", 2, False), ("c", 3, True), ("c", "unset", True), ("a", "set", True),
        ("m.b", None, True), ("m.b", "set", True), ("nowhere", None, True), ("nowhere", 1, False),
        ("plan.x", {"gte": 5}, True), ("plan.x", {"gt": 5}, False), ("plan.x", [1, 5], True),
        ("nowhere", {"gt": 0}, False), ("f", False, True), ("f", 0, False),
        ("a | c", 3, True), ("a | c", {"not": 1}, True), ("a", "given", True), ("f", "given", False),
        ("m.b", "given", False), ("c", {"written": 3}, False), ("a", {"written": 1}, True),
        ("l.*.t", {"like": "shar*"}, True), ("l.*.t", {"like": ["x", "y*"]}, False),
        ("l.*.r.*", "user", True), ("l.*.r.*", {"not": "user"}, False), ("l.*.r.*", "tool", False),
        ("a", {"not": 1}, False), ("a", {"not": 7}, True), ("a", {"gt": 0, "lt": 2}, True),
    ],
)  # fmt: skip
def test_conditions(name, wanted, expected):
    """A value, one of several, bounds, not, set or unset; what is not known is null."""
    assert holds(KNOWN, name, wanted) is expected


def test_texts_are_filled_in():
    """Facts stand in the sentence as a person writes them."""
    assert fill_values("{a}, {f} and {nowhere}", KNOWN) == "1, false and not set"


@pytest.mark.parametrize(
    "rule",
    [*general_rules(), *(r for t in TOOLS for r in tool_named(t).findings)],
    ids=lambda rule: rule["id"],
)
def test_every_rule_has_sources_that_exist(rule):
    """An id of rules/sources.yaml or a link; places in texts are names that conditions may ask."""
    for source in rule["sources"]:
        if PLACE.fullmatch(source) is None:
            assert source in shipped_sources() or re.fullmatch(LINK, source)


def test_ids_are_used_once():
    """Each finding has a name of its own."""
    ids = [rule["id"] for rule in general_rules()]
    ids += [rule["id"] for name in TOOLS for rule in tool_named(name).findings]
    assert len(ids) == len(set(ids))


def test_a_rate_far_above_names_what_is_documented():
    """The value that mends it is a number, the sources those of the rule that sets it."""
    facts = {
        "rate.times": 10, "rate.usual": 2e-4, "rate.because": "usual", "rate.sources": ["unsloth"],
        "plan.learning_rate": 2e-3,
    }  # fmt: skip
    found = list(by_rules(tool_named("trl"), Known(values={}, defaults={}, facts=facts)))
    far = next(one for one in found if one.id == "rate/far-above")
    assert far.instead == {"plan.learning_rate": 2e-4}
    assert far.sources == ("unsloth",)
    assert "0.002" in far.text


def test_worst_come_first_and_once():
    """Errors, warnings, notes."""
    some = [
        ToolFinding(id="b", severity="note", text="t"), ToolFinding(id="a", severity="error", text="t"),
        ToolFinding(id="b", severity="note", text="t"),
    ]  # fmt: skip
    assert [one.id for one in worst_first(some)] == ["a", "b"]
