"""Evaluation rows that the training data holds too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.data import profile
from advisor.data.measure import Depth
from advisor.ground.errors import InputError


def jsonl(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(*numbers: int) -> list[dict[str, object]]:
    return [
        {
            "question": f"What is the number after {number}?",
            "answer": f"The number is {number + 1}.",
        }
        for number in numbers
    ]


def test_rows_in_both_files_are_counted_and_named(tmp_path):
    """The same row, the same row typed differently, and the same question with another answer are
    told apart.
    """
    held = [
        *pairs(3, 100),
        {"question": "what is the number after 5", "answer": "THE NUMBER IS 6"},
        {"question": "What is the number after 7?", "answer": "Eight."},
    ]
    result = profile(
        jsonl(tmp_path, "a.jsonl", pairs(*range(60))),
        Depth(evaluation=jsonl(tmp_path, "b.jsonl", held)),
    )
    found = {finding.id: finding for finding in result.findings}
    assert (
        found["evaluation-rows-in-training"].severity,
        found["evaluation-rows-in-training"].count,
        found["evaluation-rows-in-training"].rows,
    ) == ("warning", 2, (4, 6))
    assert "row 1 of b.jsonl is row 4" in found["evaluation-rows-in-training"].text
    assert (
        found["evaluation-requests-in-training"].count,
        found["evaluation-requests-in-training"].rows,
    ) == (1, (8,))
    assert result.measures["evaluation"] == {
        "path": str(tmp_path / "b.jsonl"),
        "rows": 4,
        "same_rows": 2,
        "same_requests": 1,
    }


def test_files_without_common_rows_are_fine(tmp_path):
    """Nothing is said where nothing overlaps."""
    result = profile(
        jsonl(tmp_path, "a.jsonl", pairs(*range(60))),
        Depth(evaluation=jsonl(tmp_path, "b.jsonl", pairs(100, 101))),
    )
    assert result.findings == ()


def test_all_of_a_large_file_is_compared(tmp_path):
    """A sample of the beginning would miss the row at the end."""
    rows = [
        {"question": f"Question {number} " + "x" * 500, "answer": f"Answer {number}"}
        for number in range(10_000)
    ]
    result = profile(
        jsonl(tmp_path, "a.jsonl", rows), Depth(evaluation=jsonl(tmp_path, "b.jsonl", [rows[9999]]))
    )
    assert next(
        finding.rows for finding in result.findings if finding.id == "evaluation-rows-in-training"
    ) == (10_000,)


def test_an_evaluation_file_of_another_kind_is_said(tmp_path):
    """Texts cannot evaluate question answering."""
    result = profile(
        jsonl(tmp_path, "a.jsonl", pairs(*range(60))),
        Depth(evaluation=jsonl(tmp_path, "b.jsonl", [{"text": "A story."}])),
    )
    assert any(finding.id == "evaluation-of-another-kind" for finding in result.findings)


def test_a_missing_evaluation_file_is_an_error(tmp_path):
    """The error names the file that is not there."""
    with pytest.raises(InputError, match="nowhere"):
        profile(jsonl(tmp_path, "a.jsonl", pairs(1)), Depth(evaluation=tmp_path / "nowhere.jsonl"))


def test_a_row_that_calls_functions_stands_in_a_copy_of_its_file(tmp_path):
    """Calls are part of a row on both sides."""
    call = {"type": "function", "function": {"name": "track", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "Where is it?"}, answer]}
    path = jsonl(tmp_path, "a.jsonl", [row])
    found = {one.id for one in profile(path, Depth(evaluation=path, strict=False)).findings}
    assert "evaluation-rows-in-training" in found
    assert "evaluation-requests-in-training" not in found
