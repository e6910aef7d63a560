"""Rows written as understood are read back as the same rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.data import read_examples, recognise
from advisor.data.convert import write_jsonl
from advisor.ground.errors import InputError

TURNS = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"n": 1}}}
CASES: dict[str, tuple[dict[str, Any], dict[str, str] | None]] = {
    "pair": ({"Frage": "Q?", "Antwort": "A."}, {"question": "Frage", "answer": "Antwort"}),
    "context": ({"instruction": "Do", "input": "this", "output": "Done."}, None),
    "system": ({"system": "Be kind.", "question": "Q?", "answer": "A."}, None),
    "conversation": ({"messages": [*TURNS, *TURNS]}, None),
    "weights": ({"messages": [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS]}, None),
    "calls": (
        {
            "messages": [
                TURNS[0],
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "7", "name": "find"},
                TURNS[1],
            ],
            "tools": TOOLS,
        },
        None,
    ),
    "label": ({"mail": "Buy now", "kind": "spam"}, {"text": "mail", "label": "kind"}),
    "text": ({"body": "A chapter."}, {"text": "body"}),
    "preference": ({"prompt": "Q?", "chosen": "Good.", "rejected": "Bad."}, None),
    "preference turns": (
        {"prompt": [*TURNS, TURNS[0]], "chosen": [TURNS[1]], "rejected": "Bad."},
        {"question": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    "OpenAI pair": (
        {
            "input": {"messages": [TURNS[0]], "tools": TOOLS, "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}],
            "non_preferred_output": [TURNS[1]],
        },
        None,
    ),
    "feedback": ({"prompt": "Q?", "completion": "A.", "label": True}, None),
    "feedback turns": ({"messages": [*TURNS, *TURNS], "label": False}, None),
    "checked": ({"question": "1 + 1?", "ground_truth": "2"}, None),
    "worked": ({"problem": "1 + 1?", "solution": "It is 2.", "answer": "2"}, None),
    "nested": ({"a": {"q": "Q?"}, "b": "A."}, {"question": "a.q", "answer": "b"}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_back(tmp_path, name):
    """Every kind of data keeps what it taught, without a mapping."""
    row, mapping = CASES[name]
    path, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    written = write_jsonl(path, target, mapping=mapping)
    assert written.rows == 2
    before, after = recognise(path, mapping=mapping), recognise(target)
    assert after.kind == before.kind
    # Whether a pair is trained without a chat template is known by its columns alone.
    kept = [
        [replace(one, plain=False) for one in read_examples(file, mapping=columns)]
        for file, columns in ((path, mapping), (target, None))
    ]
    assert kept[0] == kept[1]


def test_nothing_is_left_of_a_file_that_is_refused(tmp_path):
    """More unusable rows than may be left out are an error, and no half file."""
    path: Path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Q", "answer": ""}\n{"question": "Q", "answer": "A"}\n')
    with pytest.raises(InputError, match="cannot be used"):
        write_jsonl(path, tmp_path / "b.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
