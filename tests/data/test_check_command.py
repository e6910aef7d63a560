"""`advise check`: what it prints, what it writes, and its exit codes."""

import json
from pathlib import Path

import pytest

from tests.data.conftest import pairs

ROWS = "".join(json.dumps(row) + "\n" for row in pairs(60))


@pytest.fixture
def check(call):
    """Run `advise check ...` on a.jsonl with a content, in a folder of its own."""

    def run(content, *arguments):
        Path("a.jsonl").write_text(content)
        return call("check", "a.jsonl", *arguments)

    return run


def test_a_path_is_enough(check):
    """No registration, no flag: the format is recognised and shown."""
    code, out, err = check(ROWS)
    assert (code, err) == (0, "")
    assert "question and answer columns" in out
    assert "A plan for sft with LoRA on one GPU takes" in out


def test_a_missing_column_names_the_file_the_columns_and_the_nearest_format(check):
    """A file that is not understood is an error with all a person needs, never a traceback."""
    code, out, err = check('{"left": "The tower is high.", "right": "It has thirty metres."}\n')
    assert (code, out) == (2, "")
    assert "a.jsonl: no known columns. Columns: left (text), right (text)" in err
    assert "nearest: question_answer" in err
    assert "advise check a.jsonl --map question=left answer=right" in err


def test_a_clear_guess_is_taken_and_said(check):
    """Columns in another language are read, with a warning that says how to say otherwise."""
    rows = [("Wie hoch ist der Turm?", "Dreissig Meter.")] * 3 + [("Wie alt ist er?", "Alt.")]
    lines = (json.dumps({"Frage": asked, "Unsere Antwort": told}) + "\n" for asked, told in rows)
    code, out, _ = check("".join(lines))
    said = " ".join(out.split())
    assert code == 0
    assert "guessed from their names" in said
    assert "--map question=Frage 'answer=Unsere Antwort'" in said


@pytest.mark.parametrize("more", [(), ("--map",)])
def test_a_mapping_may_be_written_either_way(check, more):
    """Both spellings of --map are read, as the error prints them."""
    row = '{"Frage": "F", "Antwort": "A"}\n'
    code, out, _ = check(row, "--map", "question=Frage", *more, "answer=Antwort")
    assert code == 0
    assert "as stated with --map" in out
    assert "\nNext: advise --task other --data a.jsonl --map question=Frage answer=Antwort\n" in out


def test_json_is_one_document(check):
    """Standard output holds the document alone, also where a fault blocks every objective."""
    code, out, err = check(ROWS, "--json")
    document = json.loads(out)
    assert (code, err, document["schema_version"], document["rows"]) == (0, "", 1, 60)
    assert document["suggested"]["seq_len"] > 0
    code, out, _ = check(ROWS + "{oops\n", "--json")
    document = json.loads(out)
    assert (code, document["kind"], document["objectives"]) == (2, "paired", [])
    assert document["findings"][0]["rows"] == [61]


def test_lengths_and_evaluation_are_checked_by_flags(check):
    """--seq-len names the rows over it, --eval those that stand in both files."""
    Path("b.jsonl").write_text(ROWS.splitlines()[0] + "\n")
    long = json.dumps({"question": "Long?", "answer": "very " * 400})
    _, out, _ = check(f"{ROWS}{long}\n", "--seq-len", "128", "--eval", "b.jsonl", "--json")
    found = {finding["id"]: finding["rows"] for finding in json.loads(out)["findings"]}
    assert found["rows-over-length"] == [61]
    assert found["evaluation-rows-in-training"] == [1]


def test_the_first_twenty_faults_are_shown_and_the_rest_counted(check):
    """Thirty broken lines in a file of nothing else: twenty places and a count."""
    code, _, err = check("{oops\n" * 30)
    assert code == 2
    assert err.count("invalid JSON") == 20
    assert "10 more" in err
    assert "Traceback" not in err


def test_rows_are_not_rewritten(check):
    """--fix ends with 2 and one line that says what to do; nothing is written."""
    code, _, err = check(ROWS, "--fix", "b.jsonl")
    assert code == 2
    assert "--fix: rows are not rewritten\n  mend the rows that the findings name" in err
    assert not Path("b.jsonl").exists()
