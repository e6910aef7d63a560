"""What rules say that a tool refuses, against the tool: it refuses those files, and the files that
are right beside them it takes.

Run as test_tables_long.py, with the same environments.
"""

import pytest
import yaml

from advisor.other_tools.tables.mapping import COMMAND
from advisor.other_tools.tables.tool import tool_named
from tests.other_tools.finding_cases import CASES, values_of
from tests.other_tools.test_tables_long import NOT_HERE, TOOLS, python_of
from tools.other_tools.table import refusals

pytestmark = pytest.mark.long

LATER = {  # refused when the model, the tokenizer or the data are there, which no file of a test has
    "llamafactory/prompt-of-template", "axolotl/no-targets",
    *(f"trl/{name}" for name in (
        "no-data", "quantised-without-lora", "answers-of-no-conversation", "adapter-on-the-head",
        "padding-free-cuts-nothing", "packing-without-length", "selective-of-nothing",
        "router-of-no-mixture", "exo-without-smoothing", "weighting-of-aot", "divergence-of-loss",
        "reference-of-lora", "reference-kept-and-moved", "precomputed-of-a-stream", "kto-one-row",
        "kto-order",
    )),
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_refuses_what_rules_say_it_refuses(tool):
    """Each file of a rule with `refused` is refused by the tool, the one beside it is not."""
    rules = [rule.id for rule in tool_named(tool).findings if rule.refused]
    asked = [name for name in rules if name not in LATER]
    assert len(asked) > 10
    cases = [(name, case, case is CASES[name][0]) for name in asked for case in CASES[name]]
    usual = "sft" if tool == "trl" else "train"
    files = [
        (yaml.safe_dump(values_of(tool, case)), case.get(COMMAND, usual)) for _, case, _ in cases
    ]
    said = refusals(tool, python_of(tool), files, together=True)
    wrong = [
        f"{name}, {'wrong' if is_wrong else 'right'} {case}: {refusal!r}"
        for (name, case, is_wrong), refusal in zip(cases, said, strict=True)
        if bool(refusal) != is_wrong and not refusal.startswith(NOT_HERE)
    ]
    assert not wrong, "\n".join(wrong)
