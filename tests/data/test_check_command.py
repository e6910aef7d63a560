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


GUESSED = "".join(
    json.dumps({"Frage": asked, "Unsere Antwort": told}) + "\n"
    for asked, told in [("Wie hoch ist er?", "Dreissig Meter.")] * 3 + [("Wie alt ist er?", "Alt.")]
)
STATED = (
    "as stated with --map", "Next: advise --task other --data a.jsonl --map question=Frage answer=A",
)  # fmt: skip
CHECKS = {  # content and flags; exit code; what is said on standard output and error
    # No registration, no flag: the format is recognised and shown.
    "a path is enough": (ROWS, (), 0, (
        "question and answer columns", "A plan for sft with LoRA on one GPU takes"), ()),
    # A file that is not understood is an error with all a person needs.
    "unknown columns": (
        '{"left": "The tower is high.", "right": "It has thirty metres."}\n', (), 2, (), (
        "a.jsonl: no known columns. Columns: left (text), right (text)",
        "nearest: question_answer", "advise check a.jsonl --map question=left answer=right")),
    # Columns in another language are read, with a warning that says how to say otherwise.
    "a clear guess": (GUESSED, (), 0, (
        "guessed from their names", "--map question=Frage 'answer=Unsere Antwort'"), ()),
    # Both spellings of --map are read.
    "one --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "answer=A"), 0, STATED, ()),
    "two --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "--map", "answer=A"), 0,
                  STATED, ()),
    "thirty faults": ("{oops\n" * 30, (), 2, (), ("invalid JSON", "10 more")),
    "--fix": (ROWS, ("--fix", "b.jsonl"), 2, (), (
        "--fix: rows are not rewritten mend the rows that the findings name",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_checked_is_said_with_the_next_step(check, name):
    """On standard output where it is the page, on standard error where it is refused."""
    content, flags, expected, page, error = CHECKS[name]
    code, out, err = check(content, *flags)
    assert code == expected
    for said, parts in ((out, page), (err, error)):
        assert bool(said) == bool(parts)
        assert [part for part in parts if part not in " ".join(said.split())] == []
    assert "Traceback" not in err
    assert err.count("invalid JSON") == (20 if name == "thirty faults" else 0)
    assert not Path("b.jsonl").exists()


def test_json_is_one_document(check):
    """Standard output holds the document alone, also where a fault blocks every objective. --seq-len
    names the rows over it, --eval those that stand in both files.
    """
    code, out, err = check(ROWS, "--json")
    document = json.loads(out)
    assert (code, err, document["schema_version"], document["rows"]) == (0, "", 1, 60)
    assert document["suggested"]["seq_len"] > 0
    code, out, _ = check(ROWS + "{oops\n", "--json")
    document = json.loads(out)
    assert (code, document["kind"], document["objectives"]) == (2, "paired", [])
    assert document["findings"][0]["rows"] == [61]
    Path("b.jsonl").write_text(ROWS.splitlines()[0] + "\n")
    long = json.dumps({"question": "Long?", "answer": "very " * 400})
    _, out, _ = check(f"{ROWS}{long}\n", "--seq-len", "128", "--eval", "b.jsonl", "--json")
    found = {finding["id"]: finding["rows"] for finding in json.loads(out)["findings"]}
    assert found["rows-over-length"] == [61]
    assert found["evaluation-rows-in-training"] == [1]
