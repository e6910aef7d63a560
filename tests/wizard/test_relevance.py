"""How few questions are asked, which ones, and what is said about the others."""

from unittest.mock import Mock

import pytest

from advisor.ground.types import AnswerSet
from advisor.ruleset.facts import Fact
from advisor.ruleset.load import load_rules
from advisor.wizard.walk import Relevance, for_now, may_apply, open_questions, skipped_questions
from benchmarks.questions import rounds
from tests.conftest import scaled
from tests.wizard.scripted import FACTS, asked_set, known, walked

RULES = load_rules()
SUPPORT = {
    "task": "customer_service",
    "data_path": "support.jsonl",
    "facts_change_often": False,
    "depth": "style",
    "prompting_tried": False,
    "budget": "low",
    "gpu": "RTX 4090",
}
FILE = {"data_kind": "paired", "data_rows": 5000, "data_tokens": 800_000}
NOT_KNOWN = {
    f"fits_{scheme}": "unknown" for scheme in ("full", "lora", "qlora", "adapter", "prefix")
}


def facts_of(answers):
    """What the rules know of these answers, with a fixed file and card."""
    stated = known(answers)
    return {
        **{name: stated[name] for name in stated.keys() - {"data_path", "model", "gpu", "signals"}},
        **dict.fromkeys(answers.signals, True),
        **(FILE if "data_path" in stated else {}),
        **({"device": "gpu", "gpus": 1} if "gpu" in stated else {}),
    }


def put(replies, relevance=None):
    """Answers and questions in order, of somebody who answers so and knows nothing else."""
    return walked(replies, facts=RULES.facts, relevant=relevance or Relevance(RULES, facts_of))


def test_a_newcomer_with_examples_for_support_is_asked_ten_questions_at_most():
    """One card, little money, a file of examples: about half of what there is to ask."""
    answers, order = put(SUPPORT, Relevance(RULES, facts_of, lambda *_: NOT_KNOWN))
    assert order[:3] == ["task", "data_path", "facts_change_often"]
    assert {"model", "gpu"} <= set(order)
    assert len(order) <= 10
    assert len(order) + len(skipped_questions(RULES.facts, answers, order)) >= 15


def test_whoever_knows_nothing_is_asked_thirteen_questions_at_most():
    """Whatever the task: "I don't know" to everything else ends in an answer."""
    for task in RULES.facts["task"].values:
        relevance = Relevance(RULES, facts_of, lambda *_: NOT_KNOWN)
        order = put({"task": task}, for_now(RULES.facts, relevance))[1]
        assert len(order) <= 13, (task, order)


def test_no_more_is_asked_than_matters():
    """Without examples neither money, model nor GPU is asked for; with facts to look up, little."""
    _, order = put({"task": "generation", "data_kind": "none"})
    assert not {"budget", "model", "gpu", "serve_with", "priority"} & set(order)
    settled = {"data_kind": "raw_text", "facts_change_often": True, "prompting_tried": False}
    _, order = put({"task": "domain_expertise", **settled})
    assert order[-1] in ("prompting_tried", "teacher", "depth")
    assert len(order) <= 7


def test_who_has_a_model_that_scores_is_asked_where_it_is():
    """The stage that learns from scores reads its folder; who has none is not asked."""
    assistant = {"task": "chat_assistant", "depth": "alignment"}
    _, order = put({**assistant, "reward_model_available": True})
    assert order.index("reward_model") == order.index("reward_model_available") + 1
    assert "reward_model" not in put({**assistant, "reward_model_available": False})[1]


def test_a_question_is_asked_for_the_one_behind_it():
    """Whether instructions were tried matters only for whether they were good enough."""
    relevance, answers = Relevance(RULES, facts_of), asked_set(task="qa", data_path="x")
    opened = open_questions(RULES.facts, answers, ("task", "data_path"))
    assert relevance("prompting_tried", answers, opened)
    assert not relevance("prompting_tried", answers, frozenset({"prompting_tried"}))


def test_what_fits_is_estimated_once_everything_it_needs_is_answered():
    """It is estimated after the card, for the settled chain, and once for equal answers."""
    estimate = Mock(return_value=NOT_KNOWN)
    put(SUPPORT, Relevance(RULES, facts_of, estimate))
    calls = {(*call.args[1:], call.args[0].value("gpu")) for call in estimate.call_args_list}
    assert calls == {("sft", False, "RTX 4090")}


def test_every_way_through_the_questions_ends_as_if_all_were_asked():
    """In random situations half as many questions lead to the same composition."""
    found = list(rounds(RULES, scaled(150), seed=11))
    assert len(found) == scaled(150)
    assert [one for one in found if one.composition != one.in_full] == []
    assert sum(one.asked for one in found) < 0.65 * sum(one.of for one in found)


def test_a_question_that_waits_for_an_answer_is_open_as_long_as_the_answer_is():
    """It goes with the question it waits for, over several steps."""
    waits = {"a": {}, "b": {"a": (True,)}, "c": {"b": (True,)}}
    asked = {
        name: Fact(id=name, type="flag", origin="asked", order=place, ask=name, ask_when=when)
        for place, (name, when) in enumerate(waits.items())
    }
    assert open_questions(asked, AnswerSet(), ()) == {"a", "b", "c"}
    assert open_questions(asked, asked_set(a=False), ("a",)) == set()
    assert open_questions(asked, asked_set(a=True), ("a",)) == {"b", "c"}
    assert not may_apply(asked["b"], AnswerSet(), asked, ())


@pytest.mark.parametrize(
    ("answers", "closed"),
    [
        ({"task": "code"}, "needs_citations"),
        ({"task": "qa", "data_path": "x"}, "data_kind"),
        ({"task": "qa", "data_kind": "none"}, "data_rows"),
    ],
)
def test_a_question_that_can_no_longer_apply_is_not_open(answers, closed):
    """Neither another task's question nor one that the data file answers."""
    assert closed not in open_questions(FACTS, asked_set(**answers), tuple(answers))
