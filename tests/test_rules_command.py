"""`advise rules`: a list, an explanation of each name, and what two rule sets answer differently."""

import json

import pytest

from advisor.advice import linting
from advisor.methods.remedies import remedies, remedy
from tests.conftest import ROOT


def test_rules_can_be_listed_and_explained(call):
    """`advise rules` lists, `advise rules ID` explains with its source, METHOD says what it does."""
    for line, words in (
        ("rules", ["document/scenario-5"]),
        ("rules document/scenario-5", ["Scenario 5: Limited Budget, One GPU", "Wilson Wu"]),
        ("rules ppo", ["one answer to each prompt"]),
        ("rules grpo", ["answers to each prompt (key `generations`)"]),
    ):
        code, out, _ = call(*line.split())
        assert (code, [one for one in words if one not in out]) == (0, [])


def test_rules_diff_names_the_situations_that_change(call, monkeypatch):
    """`advise rules diff A B`: the step, the condition, the rules and an example with both answers,
    as text and as data.
    """
    compare, known = linting.compare_answers, {}

    def compared(first, second):
        """What takes seconds, and is the same for the text and for the data."""
        sets = (first.digest, second.digest)
        if sets not in known:
            known[sets] = compare(first, second)
        return known[sets]

    monkeypatch.setattr(linting, "compare_answers", compared)
    code, out, err = call("rules", "diff", "document", "shipped")
    assert code == 0, err
    for words in (
        "knowledge_source: where the facts that the answers need should come from",
        "base/knowledge-weights -> evidence/",
        ": sft+lora -> rag",
    ):
        assert words in out
    steps = json.loads(call("rules", "diff", "document", "shipped", "--json")[1])["steps"]
    assert {step["step"] for step in steps} >= {"chain", "rank", "settings"}
    code, out, _ = call("rules", "diff", "shipped", str(ROOT / "rules"))
    assert (code, out.endswith("every situation has the same answer\n")) == (0, True)


@pytest.mark.parametrize("words", [["shipped"], ["shipped", "nowhere"], ["a", "b", "c"]])
def test_rules_diff_says_what_a_rule_set_is(words, call):
    """One, three or an unknown one: bad input, and what is allowed."""
    code, out, err = call("rules", "diff", *words)
    assert (code, out) == (2, "")
    assert "`shipped`, `document` (the guide alone), a file of rules" in err


@pytest.mark.parametrize("name", remedies())
def test_what_helps_without_training_is_explained_like_a_method(call, name):
    """By the name that stands in an answer: how one begins, and the rules that lead to it."""
    _, out, _ = call("rules", name)
    assert remedy(name).meaning in " ".join(out.split())
    assert "recommended by" in out
    assert not remedy(name).first or "begin" in out
