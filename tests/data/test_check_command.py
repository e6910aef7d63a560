"""`advise check`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from advisor.cli import main

ROWS = "".join(
    json.dumps({"question": f"What is {number}?", "answer": f"It is {number}."}) + "\n"
    for number in range(60)
)


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """Run `advise check ...` in a folder of its own; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["advise", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    return run


def test_a_path_is_enough(check):
    """No registration, no flag: the format is recognised and shown."""
    Path("a.jsonl").write_text(ROWS)
    code, out, err = check("a.jsonl")
    assert (code, err) == (0, "")
    assert "question and answer columns" in out
    assert "A plan for sft with LoRA on one GPU takes" in out


def test_a_missing_column_names_the_file_the_columns_and_the_nearest_format(check):
    """A file that is not understood is an error with everything a person needs, never a
    traceback.
    """
    Path("a.jsonl").write_text('{"left": "The tower is high.", "right": "It has thirty metres."}\n')
    code, out, err = check("a.jsonl")
    assert (code, out) == (2, "")
    assert "a.jsonl: no known columns. Columns: left (text), right (text)" in err
    assert "nearest: question_answer" in err
    assert "advise check a.jsonl --map question=left answer=right" in err


def test_a_clear_guess_is_taken_and_said(check):
    """Columns in another language are read, with a warning that says how to say otherwise."""
    Path("a.jsonl").write_text(
        '{"Frage": "Wie hoch ist der Turm?", "Antwort": "Dreissig Meter."}\n' * 3
        + '{"Frage": "Wie alt ist er?", "Antwort": "Hundert Jahre."}\n'
    )
    code, out, _ = check("a.jsonl")
    assert code == 0
    assert "guessed from their names" in " ".join(out.split())
    assert "--map question=Frage answer=Antwort" in " ".join(out.split())


@pytest.mark.parametrize(
    "spelling",
    [
        ("--map", "question=Frage", "answer=Antwort"),
        ("--map", "question=Frage", "--map", "answer=Antwort"),
    ],
)
def test_a_mapping_may_be_written_either_way(check, spelling):
    """Both spellings of --map are read, as the error prints them."""
    Path("a.jsonl").write_text('{"Frage": "F", "Antwort": "A"}\n')
    code, out, _ = check("a.jsonl", *spelling)
    assert code == 0
    assert "as stated with --map" in out
    assert "\nNext: advise --task other --data a.jsonl --map question=Frage answer=Antwort\n" in out


def test_json_is_one_document(check):
    """Standard output holds the document alone."""
    Path("a.jsonl").write_text(ROWS)
    code, out, err = check("a.jsonl", "--json")
    document = json.loads(out)
    assert (code, err, document["schema_version"], document["rows"]) == (0, "", 1, 60)
    assert document["suggested"]["seq_len"] > 0


def test_what_blocks_everything_is_exit_code_two_with_the_page(check):
    """A fault that blocks every objective still shows what the data is."""
    Path("a.jsonl").write_text(ROWS + "{oops\n")
    code, out, _ = check("a.jsonl", "--json")
    document = json.loads(out)
    assert (code, document["kind"], document["objectives"]) == (2, "paired", [])
    assert document["findings"][0]["rows"] == [61]


def test_lengths_and_evaluation_are_checked_by_flags(check):
    """--seq-len names the rows over it, --eval those that stand in both files."""
    Path("a.jsonl").write_text(
        ROWS + json.dumps({"question": "Long?", "answer": "very " * 400}) + "\n"
    )
    Path("b.jsonl").write_text(ROWS.splitlines()[0] + "\n")
    _, out, _ = check("a.jsonl", "--seq-len", "128", "--eval", "b.jsonl", "--json")
    found = {finding["id"]: finding["rows"] for finding in json.loads(out)["findings"]}
    assert found["rows-over-length"] == [61]
    assert found["evaluation-rows-in-training"] == [1]


def test_the_first_twenty_faults_are_shown_and_the_rest_counted(check):
    """Thirty broken lines in a file of nothing else: twenty places and a count."""
    Path("a.jsonl").write_text("{oops\n" * 30)
    code, _, err = check("a.jsonl")
    assert code == 2
    assert err.count("invalid JSON") == 20
    assert "10 more" in err
    assert "Traceback" not in err


def test_rows_are_not_rewritten(check):
    """--fix ends with 2 and one line that says what to do; nothing is written."""
    Path("a.jsonl").write_text(ROWS)
    code, _, err = check("a.jsonl", "--fix", "b.jsonl")
    assert code == 2
    assert "--fix: rows are not rewritten\n  mend the rows that the findings name" in err
    assert not Path("b.jsonl").exists()
