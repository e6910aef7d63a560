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
    generation_facts,
    holds,
    worst_first,
)
from advisor.extras.other_tools.mapping import COMMAND, DATA_KIND
from advisor.extras.other_tools.tool import TOOLS, tool_named
from advisor.ground.yaml_files import LINK, shipped_sources
from tests.extras.other_tools.finding_cases import CASES, FACTS, values_of

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


def test_every_rule_has_an_id_of_its_own_and_sources_that_exist():
    """An id of rules/sources.yaml or a link; places in texts are names that conditions may ask."""
    rules = [*general_rules(), *(rule for name in TOOLS for rule in tool_named(name).findings)]
    assert len(rules) == len({rule["id"] for rule in rules}) > 100
    for rule in rules:
        for source in rule["sources"]:
            if PLACE.fullmatch(source) is None:
                assert source in shipped_sources() or re.fullmatch(LINK, source), rule["id"]


def test_worst_come_first_and_once():
    """Errors, warnings, notes."""
    some = [
        ToolFinding(id=name, severity=severity, text="t")
        for name, severity in (("b", "note"), ("a", "error"), ("b", "note"))
    ]
    assert [one.id for one in worst_first(some)] == ["a", "b"]


# -------------------------------------------------------------------------- each rule


RULES = {rule["id"]: rule for name in TOOLS for rule in tool_named(name).findings}
USUAL = {DATA_KIND: "rows", "evaluates": True}  # facts, unless a case says another thing


def said(tool, case):
    """The ids of what the rules of the tool say of these keys and facts."""
    command = case.get(COMMAND, "train" if tool != "trl" else "sft")
    about, values = tool_named(tool), values_of(tool, case)
    defaults = about.defaults_of(command)
    facts = USUAL | {COMMAND: command} | {key: case[key] for key in FACTS if key in case}
    facts |= generation_facts(tool, {**defaults, **values}, 1)
    known = Known(values=values, defaults=defaults, facts=facts)
    general = {rule["id"] for rule in general_rules()}
    return {one.id for one in by_rules(about, known)} - general


def test_every_rule_of_a_tool_has_its_case():
    """A new rule comes with keys that it is about."""
    assert set(RULES) == set(CASES)
    assert len(CASES) > 100


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_of_what_is_wrong_alone(name):
    """It is said of the one file, not of the other, nor of the first once it is mended."""
    tool = name.split("/")[0]
    fires, silent = CASES[name]
    assert name in said(tool, fires)
    assert name not in said(tool, silent)
    instead = RULES[name].get("instead", {})
    mended = {key: value for key, value in instead.items() if "." not in key}
    evaluates = {"evaluates": True} if "evaluates" in fires else {}  # a fact that follows from it
    assert not mended or name not in said(tool, fires | mended | evaluates)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_small_file_that_is_right_has_no_errors(tool):
    """The base of the cases is refused by no rule."""
    found = said(tool, {})
    assert not [name for name in found if RULES[name]["severity"] == "error"]
