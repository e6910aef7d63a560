"""Every rule about a configuration speaks where it should and is silent where it should be."""

import pytest

from advisor.extras.other_tools.findings import Known, by_rules, general_rules, generation_facts
from advisor.extras.other_tools.mapping import COMMAND, DATA_KIND
from advisor.extras.other_tools.tool import TOOLS, tool_named
from tests.extras.other_tools.finding_cases import CASES, FACTS, values_of

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
    """It is said of the one file and not of the other."""
    tool = name.split("/")[0]
    fires, silent = CASES[name]
    assert name in said(tool, fires)
    assert name not in said(tool, silent)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_small_file_that_is_right_has_no_errors(tool):
    """The base of the cases is refused by no rule."""
    found = said(tool, {})
    assert not [name for name in found if RULES[name]["severity"] == "error"]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "instead" in rule])
def test_what_is_said_instead_silences_the_rule(name):
    """A file with the values that a rule asks for is not found again."""
    tool = name.split("/")[0]
    fires, _ = CASES[name]
    mended = {key: value for key, value in RULES[name]["instead"].items() if "." not in key}
    evaluates = {"evaluates": True} if "evaluates" in fires else {}  # a fact that follows from it
    assert name not in said(tool, fires | mended | evaluates) or not mended
