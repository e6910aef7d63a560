"""Situations that experts answered in public: the advice keeps agreeing with them."""

import pytest

from advisor import advise_document
from tests.advice.public_situations import answers_of, compositions, read_situations, verdict_of

LEAST_SHARE_OF_HITS = 0.85
# An expert ruled the recommendation out; docs/experts.md says what is thought of each.
KNOWN_HARD_MISSES = {"p079", "p098"}


@pytest.fixture(scope="module")
def recommended():
    return compositions()


def test_most_recommendations_are_what_experts_said(recommended):
    situations = read_situations()
    missed = [s["id"] for s in situations if verdict_of(s, recommended[s["id"]]) != "hit"]
    assert 1 - len(missed) / len(situations) >= LEAST_SHARE_OF_HITS, missed


def test_nothing_is_recommended_that_an_expert_ruled_out(recommended):
    ruled_out = {
        s["id"] for s in read_situations() if verdict_of(s, recommended[s["id"]]) == "hard miss"
    }
    assert ruled_out <= KNOWN_HARD_MISSES


def test_the_short_way_recommends_what_the_advice_does(recommended):
    for situation in read_situations()[::15]:
        document = advise_document(answers_of(situation))
        assert document["recommendation"]["composition"] == recommended[situation["id"]]


def test_the_set_is_sound():
    situations = read_situations()
    assert len(situations) >= 80
    assert len({s["id"] for s in situations}) == len(situations)
    assert len({s["source"]["url"] for s in situations}) == len(situations)
    for situation in situations:
        expert = situation["expert_answer"]
        assert expert["accepted"], situation["id"]
        assert all(ruled_out["reason"] for ruled_out in expert["rejected"]), situation["id"]


@pytest.mark.parametrize(
    ("wanted", "got", "verdict"),
    [
        ("sft+*", "sft+lora", "hit"),
        ("sft+*", "cpt>sft+lora", "miss"),
        ("sft+*", "encoder:sft+full", "miss"),
        ("sft+lora@per_task", "sft+lora", "miss"),
        ("rag & sft+*", "sft+qlora & rag", "hit"),
        ("rag", "rag & sft+lora", "miss"),
        # A leading SFT may come or go.
        ("sft>grpo+*", "grpo+lora", "hit"),
        ("sft>grpo+*", "sft>grpo+lora", "hit"),
        ("sft>grpo+*", "cpt+lora", "hard miss"),
    ],
)
def test_compositions_are_compared_as_the_grammar_says(wanted, got, verdict):
    expert = {"accepted": [wanted], "rejected": [{"method": "cpt+*", "reason": "no checks"}]}
    assert verdict_of({"expert_answer": expert}, got) == verdict
