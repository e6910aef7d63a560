"""A model that shall call functions: what changes comes from a function unless there are documents."""

import itertools

import pytest

from tests.advice.public_situations import recommended

STATED = list(
    itertools.product(
        (None, "style", "task", "domain_knowledge"),
        (None, "low", "high"),
        (None, "quality", "cost", "privacy"),
        (None, 0.5, 8, 70),
    )
)


@pytest.mark.parametrize(("depth", "budget", "priority", "params_b"), STATED[::7])
def test_without_documents_nothing_is_searched(depth, budget, priority, params_b):
    answers = {"task": "tool_use", "data": {"kind": "none"}, "signals": ["facts_change_often"]}
    more = {"depth": depth, "budget": budget, "priority": priority, "model_params_b": params_b}
    given = {name: value for name, value in more.items() if value is not None}
    assert recommended({"gpu": "unknown", **answers, **given}) == "tool_use"


@pytest.mark.parametrize("wish", ["facts_change_often", "needs_citations", "access_control"])
def test_documents_are_searched_where_facts_come_from_them(wish):
    answers = {"task": "tool_use", "data": {"kind": "raw_text"}, "signals": [wish]}
    assert recommended({"gpu": "unknown", **answers}) == "rag"


@pytest.mark.parametrize("wish", ["needs_citations", "access_control"])
def test_a_source_can_be_named_only_for_what_was_found(wish):
    answers = {"task": "tool_use", "data": {"kind": "none"}}
    signals = ["facts_change_often", wish]
    assert recommended({"gpu": "unknown", **answers, "signals": signals}) == "rag"
