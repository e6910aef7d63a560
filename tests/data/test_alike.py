"""Rows that say nearly the same, in one file and in the rows that are held out."""

import random

import pytest

from advisor.data import profile
from advisor.data.checks import RandomSample
from advisor.data.checks.repeats import SAMPLED_ROWS, resemblance, sketch
from advisor.data.measure import Depth
from advisor.ground.errors import InputError
from tests.data.conftest import findings, jsonl

THOROUGH = Depth(thorough=True)
WORDS = [f"word{number}" for number in range(2000)]


def sentence(seed: int, length: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def test_resemblance_is_the_share_of_three_word_sequences():
    """Nine of eleven sequences in common is 9 / 11, counted by hand: one word of the last position
    differs by one sequence a side.
    """
    # 12 words have ten sequences; changing the last word changes one: nine in common, eleven in
    # all.
    left, right = b"a b c d e f g h i j k l", b"a b c d e f g h i j k m"
    assert resemblance(sketch(left), sketch(right)) == 9 / 11
    assert resemblance(sketch(left), sketch(left)) == 1
    assert resemblance(sketch(left), sketch(b"n o p q r s t")) == 0
    assert sketch(b"two words") == ()
    # The smallest 64 hashes estimate the overlap of a thousand words within a tenth or so.
    words = sentence(1, 1000)
    changed = " ".join([*words.split()[:900], sentence(2, 100)])
    estimate = resemblance(sketch(words.encode()), sketch(changed.encode()))
    assert estimate == pytest.approx(898 / (998 + 998 - 898), abs=0.12)


def test_rows_typed_differently_are_near_duplicates(tmp_path):
    """Other capitals and punctuation are found in the whole file, and told from an exact repeat. The
    quick profile, which advice pays for, looks for exact repeats alone.
    """
    rows = [
        {"question": f"What is the price of {sentence(n, 5)}?", "answer": f"It is {n}."}
        for n in range(60)
    ]
    rows += [{"question": rows[3]["question"].upper(), "answer": "It is 3"}, rows[4]]
    path = jsonl(tmp_path, rows)
    near, exact = {"near-duplicate-rows": (1, (61,))}, {"duplicate-rows": (1, (62,))}
    for depth, expected in ((THOROUGH, near | exact), (None, exact)):
        found = findings(path, depth).items()
        assert {
            name: (one.count, one.rows) for name, one in found if "duplicate" in name
        } == expected


def test_rows_of_similar_wording_are_found_with_their_twins(tmp_path):
    """Rows with two words of forty changed are named with their twins; a common opening is none."""
    rows = [{"text": sentence(number)} for number in range(60)]
    rows += [{"text": " ".join([*rows[n]["text"].split()[:-2], "other", "end"])} for n in (10, 20)]
    found = findings(jsonl(tmp_path, rows), THOROUGH)["similar-rows"]
    assert (found.count, found.rows) == (2, (61, 62))
    assert "row 61 is like row 11, row 62 is like row 21" in found.text
    rows = [
        {"question": f"Please tell me about {sentence(n, 30)}", "answer": sentence(n + 1000, 30)}
        for n in range(200)
    ]
    assert findings(jsonl(tmp_path, rows), THOROUGH) == {}


def test_a_large_file_is_compared_on_a_sample_of_flat_size():
    """Beyond the sample's size rows replace others at random, the same ones every time."""
    first, second = RandomSample(SAMPLED_ROWS), RandomSample(SAMPLED_ROWS)
    for row in range(1, 3 * SAMPLED_ROWS):
        first.offer(lambda row=row: row)
        second.offer(lambda row=row: row)
    assert first.kept == second.kept
    assert len(first.kept) == SAMPLED_ROWS
    late = sum(row > SAMPLED_ROWS for row in first.kept)
    assert 0.6 < late / SAMPLED_ROWS < 0.73  # two thirds of the rows came late


# -------------------------------------------------------------------------- rows that are held out


def pair(number, **more):
    row = {
        "question": f"What is the number after {number}?",
        "answer": f"The number is {number + 1}.",
    }
    return row | more


ROWS = [pair(number) for number in range(60)]


def compared(folder, held, rows=ROWS):
    """Id -> finding where these rows are held out."""
    evaluation = Depth(evaluation=jsonl(folder, held, "b.jsonl"), strict=False)
    return findings(jsonl(folder, rows), evaluation)


def test_rows_in_both_files_are_counted_and_named(tmp_path):
    """A repeated row, one typed differently, and a repeated question are told apart."""
    typed = {"question": "what is the number after 5", "answer": "THE NUMBER IS 6"}
    found = compared(tmp_path, [pair(3), pair(100), typed, pair(7, answer="Eight.")])
    same, asked = (found[f"evaluation-{what}-in-training"] for what in ("rows", "requests"))
    assert (same.severity, same.count, same.rows) == ("warning", 2, (4, 6))
    assert "row 1 of b.jsonl is row 4" in same.text
    assert (asked.count, asked.rows) == (1, (8,))
    path = tmp_path / "b.jsonl"
    measured = profile(tmp_path / "a.jsonl", Depth(evaluation=path)).measures["evaluation"]
    assert measured == {"path": str(path), "rows": 4, "same_rows": 2, "same_requests": 1}


def test_an_evaluation_file_of_another_kind_is_said(tmp_path):
    """Texts cannot evaluate questions; nothing is said where nothing overlaps, or a gap is named."""
    assert compared(tmp_path, [pair(100), pair(101)]) == {}
    assert "evaluation-of-another-kind" in compared(tmp_path, [{"text": "A story."}])
    with pytest.raises(InputError, match="nowhere"):
        profile(tmp_path / "a.jsonl", Depth(evaluation=tmp_path / "nowhere.jsonl"))


def test_all_of_a_large_file_is_compared(tmp_path):
    """A sample of the beginning would miss the row at the end. Calls are part of a row on both
    sides.
    """
    rows = [
        {"question": f"Question {n} " + "x" * 500, "answer": f"Answer {n}"} for n in range(10_000)
    ]
    assert compared(tmp_path, rows[-1:], rows)["evaluation-rows-in-training"].rows == (10_000,)
    call = {"type": "function", "function": {"name": "track", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "Where is it?"}, answer]}
    found = compared(tmp_path, [row], [row])
    assert "evaluation-rows-in-training" in found
    assert "evaluation-requests-in-training" not in found
