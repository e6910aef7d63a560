"""Why, what if, how sure and what it costs: each says something of this situation, not of any."""

import random

import pytest

from advisor import Answers
from advisor.advice.flips import MAX_SHOWN
from advisor.render.answer.page import WARNING, first_screen
from advisor.render.answer.why import ASSUMED, HINTS, ordered_warnings
from advisor.situation.build import situation_of
from tests.advice.public_situations import RECENT, answers_of, read_situations
from tests.advice.situations import RULES, UNKNOWN_MACHINE, advice_on, advised
from tests.conftest import scaled

SUPPORT = {
    "task": "customer_service", "data_kind": "paired", "data_rows": 5000, "budget": "low",
    "depth": "task", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B",
}  # fmt: skip


def reason(**stated):
    return advised(**{name: one for name, one in stated.items() if one is not None}).recommendation


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "high", "gpu": "H200", "data_rows": 1_000_000},
        {"gpu": "RTX 4060 8GB"},
        {"data_rows": 20},
        {"data_kind": "preference"},
        {"data_kind": "raw_text", "data_rows": None, "task": "domain_expertise"},
        {"depth": "domain_knowledge", "task": "qa"},
        {"n_tasks": 12},
        {"signals": ("facts_change_often",)},
        {"signals": ("prompt_meets_quality_bar",)},
    ],
)
def test_the_first_reason_names_the_fact_that_decided(change):
    """A situation that another fact decides begins with another reason, and states own facts."""
    usual, other = reason(**SUPPORT), reason(**SUPPORT | change)
    assert str(usual.composition) != str(other.composition)
    assert usual.because[0].text != other.because[0].text
    assert usual.because[0].text.startswith(
        "You have requests with the right answer (5,000 examples)"
    )
    assert "LoRA fits in 24.0 GiB" in usual.because[0].text
    assert usual.because[0].rule == "evidence/lora-where-it-fits"  # not what any answer would say


def test_what_ifs_are_few_and_of_this_person():
    """Nobody is told what other data, a teacher or a better prompt would lead to."""
    chosen = random.Random(7).sample(read_situations(RECENT)[1::2], scaled(16))
    for public in chosen:
        known = Answers.from_dict(answers_of(public))
        flips = advice_on(situation_of(known, probed=UNKNOWN_MACHINE), flips=True).flips
        changed = {name for flip in flips for name in flip.change}
        assert len(flips) <= MAX_SHOWN
        assert len({str(flip.to) for flip in flips}) == len(flips)
        assert "facts_change_often" not in changed
        if known.value("data_kind"):
            assert "data.kind" not in changed
        if not known.value("teacher"):
            assert "teacher" not in changed


@pytest.mark.parametrize(
    ("stated", "doubt"),
    [
        ({}, None),
        ({"budget": None, "gpu": None}, "how much it may cost"),
        ({"task": "other", "gpu": None}, "no rule is about your task"),
        ({"model": "meta-llama/Llama-3.1-70B-Instruct", "gpu": "RTX 4060 8GB"}, "another tool"),
        ({"task": "qa", "data_kind": "raw_text", "data_rows": None, "depth": "domain_knowledge",
          "signals": ["facts_change_often", "rag_tried"]}, "you have tried it"),
        ({"model": "gpt-4o"}, "can be done in other ways"),
        ({"model": "Llama 3"}, "nothing is known of the model"),
        ({"model": "google/flan-t5-large"}, "experts disagree here"),
    ],
)  # fmt: skip
def test_what_could_change_the_answer_makes_it_weak(stated, doubt):
    """One doubt is enough; a teacher nobody spoke of is none."""
    known = {name: one for name, one in (SUPPORT | stated).items() if one is not None}
    found = advice_on(
        situation_of(Answers.from_dict(_keyed(known)), probed=UNKNOWN_MACHINE), flips=True
    )
    assert found.certainty.strength == ("weak" if doubt else "strong"), found.certainty
    assert not doubt or doubt in " ".join(found.certainty.doubts)


def _keyed(known):
    dotted = {fact.id: fact.answer for fact in RULES.facts.values() if fact.answer}
    document = {}
    for name, value in known.items():
        *folder, last = dotted.get(name, name).split(".")
        (document.setdefault(folder[0], {}) if folder else document)[last] = value
    return document


@pytest.mark.parametrize(
    ("stated", "assumed"),
    [
        ({"data_tokens": 1_500_000}, []),
        ({}, ["tokens a row"]),
        ({"data_rows": None}, ["rows", "tokens a row"]),
        ({"data_rows": None, "gpu": None}, ["rows", "tokens a row", "gpu"]),
    ],
)
def test_a_cost_that_nobody_can_know_says_what_it_assumes(stated, assumed):
    """Time and cost are there, each assumption has its source, and no verdict is made of them."""
    known = {name: one for name, one in (SUPPORT | stated).items() if one is not None}
    advice = advice_on(
        situation_of(Answers.from_dict(_keyed(known)), probed=UNKNOWN_MACHINE), flips=False
    )
    estimate = advice.recommendation.estimate
    assert [one.what for one in estimate.assumed] == assumed
    assert None not in (estimate.duration_s, estimate.cost_usd)
    assert all(one.source for one in estimate.assumed)
    assert (estimate.fits == "unknown") == ("gpu" in assumed)
    assert ("assumed: " in first_screen(advice).labelled["Time"][0].text) == bool(assumed)


def test_a_warning_that_changes_what_one_does_is_never_folded():
    """Hints and assumptions may be left to the whole answer, nothing else."""
    advice = advised(
        task="chat_assistant", data_kind="paired", data_rows=80, depth="style", gpu="M3 Max",
        model="Qwen/Qwen3-30B-A3B", signals=("teacher_available",),
    )  # fmt: skip
    told = [one for one in ordered_warnings(advice) if not HINTS.search(one)]
    serious = [one for one in told if not ASSUMED.search(one)]
    assert len(serious) > 1
    assert len(first_screen(advice).labelled[WARNING]) >= len(serious)
