"""Evaluation rows that the training data holds too."""

import pytest

from advisor.data import profile
from advisor.data.measure import Depth
from advisor.ground.errors import InputError
from tests.data.conftest import findings, jsonl


def pair(number, **more):
    return {
        "question": f"What is the number after {number}?", "answer": f"The number is {number + 1}.",
        **more,
    }  # fmt: skip


ROWS = [pair(number) for number in range(60)]


def compared(folder, held, rows=ROWS):
    """Id -> finding where these rows are held out."""
    evaluation = Depth(evaluation=jsonl(folder, held, "b.jsonl"))
    return findings(jsonl(folder, rows), evaluation)


def test_rows_in_both_files_are_counted_and_named(tmp_path):
    """The same row, the same row typed differently, and the same question with another answer are
    told apart.
    """
    typed = {"question": "what is the number after 5", "answer": "THE NUMBER IS 6"}
    held = [pair(3), pair(100), typed, pair(7, answer="Eight.")]
    found = compared(tmp_path, held)
    same, asked = (found[f"evaluation-{what}-in-training"] for what in ("rows", "requests"))
    assert (same.severity, same.count, same.rows) == ("warning", 2, (4, 6))
    assert "row 1 of b.jsonl is row 4" in same.text
    assert (asked.count, asked.rows) == (1, (8,))
    path = tmp_path / "b.jsonl"
    measured = profile(tmp_path / "a.jsonl", Depth(evaluation=path)).measures["evaluation"]
    assert measured == {"path": str(path), "rows": 4, "same_rows": 2, "same_requests": 1}


def test_an_evaluation_file_of_another_kind_is_said(tmp_path):
    """Texts cannot evaluate question answering; nothing is said where nothing overlaps, and a file
    that is not there is named.
    """
    assert compared(tmp_path, [pair(100), pair(101)]) == {}
    assert "evaluation-of-another-kind" in compared(tmp_path, [{"text": "A story."}])
    with pytest.raises(InputError, match="nowhere"):
        profile(tmp_path / "a.jsonl", Depth(evaluation=tmp_path / "nowhere.jsonl"))


def test_all_of_a_large_file_is_compared(tmp_path):
    """A sample of the beginning would miss the row at the end."""
    rows = [
        {"question": f"Question {n} " + "x" * 500, "answer": f"Answer {n}"} for n in range(10_000)
    ]
    assert compared(tmp_path, rows[-1:], rows)["evaluation-rows-in-training"].rows == (10_000,)


def test_a_row_that_calls_functions_stands_in_a_copy_of_its_file(tmp_path):
    """Calls are part of a row on both sides."""
    call = {"type": "function", "function": {"name": "track", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "Where is it?"}, answer]}
    path = jsonl(tmp_path, [row])
    found = findings(path, Depth(evaluation=path, strict=False))
    assert "evaluation-rows-in-training" in found
    assert "evaluation-requests-in-training" not in found
