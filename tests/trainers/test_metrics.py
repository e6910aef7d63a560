"""Scores against values by hand, intervals against known behaviour, verdicts in words."""

import random
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

from trainers.evaluation.loss import Sample
from trainers.evaluation.metrics import (
    choose_metrics,
    classification,
    compare,
    proportion_interval,
    score_answer,
    verdict,
)
from trainers.evaluation.saved_result import check_stops


@pytest.mark.parametrize(
    ("metric", "said", "expected", "value"),
    [
        ("exact_match", "The Paris", "paris", 1.0),  # SQuAD drops articles, case and punctuation
        ("exact_match", "London", "Paris", 0.0),
        ("token_f1", "the red kettle", "red cup", 2 * (1 / 2 * 1 / 2) / (1 / 2 + 1 / 2)),
        ("json_validity", '{"a": 1}', "{}", 1.0),
        ("json_validity", "{a: 1}", "{}", 0.0),
        ("json_validity", "3", "{}", 0.0),  # a bare number is no form to fill in
        ("exact_match", '{"b": 2, "a": 1}', '{"a": 1, "b": 2}', 1.0),  # in whatever order
        ("rouge_l", "a b c d", "a c d", 2 * (3 / 4 * 1) / (3 / 4 + 1)),
        ("rouge_l", "", "a c d", 0.0),
    ],
)
def test_scores_by_hand(metric, said, expected, value):
    """Each metric on cases small enough to work out."""
    assert score_answer(metric, said, expected) == pytest.approx(value, abs=1e-4)


@pytest.mark.light
def test_the_metric_follows_the_expected_answers():
    """Forms, short answers and long answers are judged differently."""
    for answers, wanted in (
        (['{"a": 1}', "[]"], ("json_validity", "exact_match")),
        (["Paris", "seven days"], ("exact_match", "token_f1")),
        (["a long answer with very many words in it, indeed"] * 3, ("rouge_l", "token_f1")),
        # Sentences of a character are a style; the few replies of a bot and a sum are not.
        (["Hrm. Me knees say rain.", "Twelve copper. Heh. Ye'll drown!"], ("rouge_l", "token_f1")),
        (["We call you back tomorrow."] * 2, ("exact_match", "token_f1")),
        (["The answer is 12.", "The answer is 7."], ("exact_match", "token_f1")),
        ([], ()),
    ):
        assert choose_metrics(answers) == wanted


@pytest.mark.parametrize(
    ("before", "after", "higher", "word", "interval"),
    [
        ([1.0] * 10, [0.0] * 10, False, "better", (-1.0, -1.0)),  # all improve by exactly one
        ([0.0] * 10, [1.0] * 10, False, "worse", (1.0, 1.0)),
        # By Student's t that is no chance: four rows, all alike.
        ([2.4, 2.5, 2.6, 2.4], [0.8, 0.7, 0.9, 0.6], False, "better", ANY),
        # Too few that turned from wrong to right, since they have no spread to judge by.
        ([0.0] * 3, [1.0] * 3, True, ANY, None),
    ],
)
def test_rows_are_told_from_chance_where_they_say_something(before, after, higher, word, interval):
    """An interval excludes zero where every row got better."""
    found = compare(before, after, higher_is_better=higher)
    assert (found.word, found.interval) == (word, interval)


def test_a_mean_per_token_counts_a_long_row_more():
    """And rows before and after are as many."""
    found = compare([1.0, 2.0], [1.0, 4.0], higher_is_better=True, weights=[3.0, 1.0])
    assert (found.before, found.after, found.interval) == (1.25, 1.75, None)
    with pytest.raises(ValueError, match="rows before"):
        compare([1.0], [], higher_is_better=True)


def test_noise_around_nothing_is_not_distinguishable_and_says_what_would_be():
    """Fifty rows name the difference that would have been seen, and two rows tell nothing."""
    draw = random.Random(3)
    before = [draw.gauss(0, 1) for _ in range(50)]
    noise = compare(before, [value + draw.gauss(0, 0.5) for value in before], higher_is_better=True)
    low, high = noise.interval
    assert low < 0 < high
    assert noise.word == "not distinguishable"
    told = float(verdict({"reward": noise})[1].rsplit(" ", 1)[1])
    assert told == pytest.approx((high - low) / 2, rel=0.1)
    said = verdict({"held-out loss": compare([1.0, 2.0], [1.1, 1.9], higher_is_better=False)})[1]
    assert said.endswith("on 2 held-out rows, which are too few to tell")


@pytest.mark.parametrize("rows", [3, 5, 16, 40])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(rows):
    """A 95 % interval misses a true difference in about one experiment of twenty."""
    draw, missed = random.Random(rows), 0
    for _ in range(400):
        weights = [draw.randint(20, 80) for _ in range(rows)]
        before = [draw.gauss(0, 1) for _ in range(rows)]
        after = [value + 0.3 + draw.gauss(0, 1) for value in before]
        found = compare(before, after, higher_is_better=True, weights=weights)
        missed += not found.interval[0] <= 0.3 <= found.interval[1]
    assert 8 <= missed <= 36


@pytest.mark.light
def test_a_share_has_wilson_s_interval():
    """8 of 10: 0.490 to 0.943 in published tables; all right is not certainty."""
    low, high = proportion_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert proportion_interval(10, 10)[0] < 0.75
    assert proportion_interval(0, 0) is None


def test_classes_are_counted():
    """Accuracy, macro-F1 and the confusion table of ten texts in two classes."""
    true, told = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    found = classification(told, true, ["ham", "spam"])
    assert found["confusion"] == {"labels": ["ham", "spam"], "counts": [[5, 1], [1, 3]]}
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["macro_f1"] == pytest.approx((5 / 6 + 3 / 4) / 2, abs=1e-6)
    assert found["accuracy_interval"][0] < 0.8 < found["accuracy_interval"][1]
    assert found["macro_f1_interval"][0] <= found["macro_f1"] <= found["macro_f1_interval"][1]


def test_the_verdict_is_a_word_and_a_sentence():
    """The first metric decides; others are told where they are distinguishable."""
    loss = compare([4.0] * 10, [2.0] * 10, higher_is_better=False)
    answers = compare([0.0] * 6, [1.0] * 6, higher_is_better=True)
    word, text = verdict({"held-out loss": loss, "exact_match": answers})
    assert word == "better"
    assert "held-out loss 4 before, 2 after (difference -2.00 to -2.00) on 10 held-out rows" in text
    assert "exact match 0 before, 1 after" in text
    assert verdict({}) == ("not distinguishable", "nothing was held out to compare on")


@pytest.mark.parametrize(
    ("ended", "of", "max_steps", "ok"),
    [(3, 4, None, True), (2, 4, None, False), (1, 2, 5, True), (0, 2, 5, False)],
)
def test_answers_of_which_half_do_not_end_are_warned_of(ended, of, max_steps, ok):
    """After a whole training most answers have to end; after a few steps of a trial some."""
    samples = [Sample(text="yes", stopped=number < ended, tokens=1) for number in range(of)]
    base = [Sample(text="yes", stopped=False, tokens=9)] * of
    (check,) = check_stops(SimpleNamespace(max_steps=max_steps), samples, base, 9)
    assert check.ok is ok
    assert f"{ended} of {of} sample answers end by themselves within 9 tokens" in check.text
    assert "(of the base model's: 0)" in check.text
    said = "has not learned where an answer ends" if max_steps is None else "says little"
    assert (said in check.text) is not ok
