"""A data profile as JSON and as a page."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from advisor.checking import checked
from advisor.data import profile
from advisor.render.data import print_check, profile_json, visible


def page(path, **options) -> str:
    """The page at 80 columns without colour, as text."""
    console = Console(width=80, no_color=True, file=io.StringIO(), force_terminal=False)
    print_check(*checked(str(path), **options), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def pairs_path(tmp_path):
    """A file of sixty pairs with one answer missing."""
    rows = [{"question": f"What is {index}?\nTell me.", "answer": f"It is {index}."} for index in range(60)]
    rows[4]["answer"] = ""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_has_the_documented_keys(pairs_path):
    """The document holds every key of the contract and survives JSON."""
    document = json.loads(json.dumps(profile_json(profile(pairs_path))))
    assert {"schema_version", "path", "kind", "format", "mapping", "rows", "tokens", "objectives", "findings", "digest", "sample"} == set(document)
    assert (document["kind"], document["format"], document["rows"], document["objectives"]) == ("paired", "question_answer", 60, ["sft"])
    assert document["mapping"] == {"question": "question", "answer": "answer"}
    assert {"total", "mean", "p50", "p90", "p95", "p99", "longest", "counted_by", "sampled_rows", "histogram"} == set(document["tokens"])
    assert document["findings"][0] == {
        "id": "row-without-answer",
        "severity": "warning",
        "text": "1 of 60 rows: no answer to learn from; left out of the training (row 5)",
        "count": 1,
        "rows": [5],
        "blocks": [],
    }


def test_page_fits_eighty_columns_and_tells_everything(pairs_path):
    """What it is, one row, findings with row numbers, lengths and what it can train, without colour."""
    text = page(pairs_path)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for part in (
        "requests with the right answer",
        "One row as understood (row 1)",
        "1 warning",
        "(row 5)",
        "Length of a row in tokens",
        "█",
        "characters / 4",
        "What it can train",
        "sft",
    ):
        assert part in " ".join(text.split())


def test_page_of_broken_data_says_that_nothing_can_be_trained(tmp_path, monkeypatch):
    """Each unreadable place stands on its own line, and nothing is promised."""
    monkeypatch.chdir(tmp_path)
    path = "a.jsonl"
    (tmp_path / path).write_text('{"question": "Q", "answer": "A"}\n{oops\n{"question"\n')
    text = " ".join(page(path).split())
    assert "a.jsonl:2:2: invalid JSON" in text
    assert "a.jsonl:3:12: invalid JSON" in text
    assert "nothing, before the errors above are repaired" in text


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, ("chosen: assistant", "rejected: assistant", "on the chosen answers")),
        ({"text": "Buy now", "label": "spam"}, ("label", "spam")),
        ({"prompt": "1+1", "ground_truth": "2"}, ("right answer", "grpo")),
        ({"text": "A story."}, ("plain documents", "cpt")),
    ],
)
def test_every_kind_has_its_page(tmp_path, row, parts):
    """Preferences, classes, checkable prompts and texts are each shown in their own words."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    text = page(tmp_path / "a.jsonl")
    for part in parts:
        assert part in text


def test_terminal_codes_in_data_are_made_visible(tmp_path):
    """A row cannot clear the screen or colour the page."""
    assert visible("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb ⏎ c\\u202e"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\x1b[2Jgone [bold]not markup[/bold]"}) + "\n")
    text = page(tmp_path / "a.jsonl")
    assert "\x1b" not in text
    assert "[bold]not markup[/bold]" in text
