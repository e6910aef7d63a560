"""The cleaned copy: what is changed, what is written down, what is never touched."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from advisor.data import Skipped, profile, read_examples
from advisor.data.example import Example
from advisor.data.fix import fixed_copy
from advisor.ground.errors import InputError

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {number}?", "answer": f"It is {number}.", "id": number}
        for number in range(count)
    ]


def changes(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_unusable_and_repeated_rows_are_left_out_and_written_down(tmp_path):
    """Every change has its row and its reason; the rows that stay keep their very bytes; the data
    is as it was.
    """
    rows = pairs(5)
    rows[1]["answer"] = ""
    source = tmp_path / "a.jsonl"
    spaced = b'{"id":9,   "question": "Q",\t"answer": "A"}\n'
    content = jsonl(rows) + b"\n" + jsonl([rows[0]]) + b'{"question": "Q"\n' + spaced
    source.write_bytes(content)
    fixed = fixed_copy(source, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == jsonl([rows[0], *rows[2:]]) + spaced
    assert source.read_bytes() == content
    assert [(entry["row"], entry["did"]) for entry in changes(fixed.changes_path)] == [
        (2, "left out"),
        (7, "left out"),
        (8, "left out"),
    ]
    assert [entry["because"] for entry in changes(fixed.changes_path)] == [
        "no answer to learn from",
        "repeats an earlier row word for word",
        "cannot be read",
    ]
    assert changes(fixed.changes_path)[1]["detail"] == "row 1 of a.jsonl"
    assert (fixed.rows_before, fixed.rows_after) == (8, 5)
    assert profile(tmp_path / "b.jsonl", strict=False).objectives == ("sft",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl",
        "b.jsonl",
        "b.jsonl.changes.jsonl",
    ]


def test_every_row_is_kept_or_accounted_for(tmp_path):
    """Rows written and rows left out make the rows read, for every format."""
    rows = [*pairs(30), *pairs(10), {"question": "Q", "answer": "", "id": 0}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "id"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("a.jsonl", "a.json", "a.csv"):
        fixed = fixed_copy(tmp_path / name, tmp_path / f"fixed-{name}")
        left_out = sum(entry["did"] == "left out" for entry in changes(fixed.changes_path))
        assert (fixed.rows_before, fixed.rows_after, left_out) == (41, 30, 11), name
        before = {spoken(example) for example in read_examples(tmp_path / name, skipped=Skipped())}
        assert {
            spoken(example) for example in read_examples(tmp_path / f"fixed-{name}")
        } == before, name


def spoken(example: Example) -> tuple[str, ...]:
    return tuple(message.content for message in example.messages)


def test_encodings_are_repaired(tmp_path):
    """Latin-1, a byte order mark, Windows line ends and NUL characters become clean UTF-8 lines."""
    raw = (
        b"\xef\xbb\xbf"
        + b'{"question": "A", "answer": "B"}\r\n'
        + '{"question": "café", "answer": "C"}\n'.encode("latin-1")
        + b'{"question": "D\x00", "answer": "E"}\n'
    )
    (tmp_path / "a.jsonl").write_bytes(raw)
    fixed = fixed_copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (
        (tmp_path / "b.jsonl").read_text(encoding="utf-8")
        == '{"question": "A", "answer": "B"}\n{"question": "café", "answer": "C"}\n{"question": "D", "answer": "E"}\n'
    )
    assert {entry["because"] for entry in changes(fixed.changes_path)} == {
        "a byte order mark",
        "was not UTF-8, read as Windows-1252",
        "NUL characters",
        "Windows line ends",
    }


def test_turns_behind_the_last_answer_go(tmp_path):
    """A conversation that ends with a question is shortened, in the row's own spelling, and
    said.
    """
    rows = [
        {"messages": [USER, BOT, USER], "id": 1},
        {"messages": [USER, {**BOT, "content": "Other"}], "id": 2},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    fixed = fixed_copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [
        {"messages": [USER, BOT], "id": 1},
        rows[1],
    ]
    assert changes(fixed.changes_path)[0]["did"] == "changed"


def test_broken_csv_records_are_left_out(tmp_path):
    """A record with too many cells goes; delimiter and header stay."""
    (tmp_path / "a.csv").write_text('question;answer\n"a; b";c\nd;e;f\ng;h\n')
    fixed = fixed_copy(tmp_path / "a.csv", tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == 'question;answer\n"a; b";c\ng;h\n'
    assert changes(fixed.changes_path)[0]["row"] == 3


def test_gzip_is_read_and_written(tmp_path):
    """A packed file can be fixed into a packed one; a cut off one keeps what is readable and says
    where it ends.
    """
    rows = [
        {"question": f"What is {number * 7919 % 10007}?", "answer": f"{number * 104729 % 99991}"}
        for number in range(3000)
    ]
    packed = gzip.compress(jsonl(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    fixed = fixed_copy(tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz")
    kept = gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in kept] == rows[: len(kept)]
    assert 0 < len(kept) == fixed.rows_after < 3000
    assert any("breaks off" in entry["because"] for entry in changes(fixed.changes_path))
    first = (tmp_path / "b.jsonl.gz").read_bytes()
    fixed_copy(tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz", overwrite=True)
    assert (tmp_path / "b.jsonl.gz").read_bytes() == first


def test_documents_keep_their_marks(tmp_path):
    """Repeated documents of a corpus go, the mark between documents stays."""
    (tmp_path / "a.txt").write_text(
        "One story.\n<|endoftext|>\nAnother.\n<|endoftext|>\nOne story.\n"
    )
    fixed_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "One story.\n<|endoftext|>\nAnother.\n"


def test_prose_is_copied_whole(tmp_path):
    """A text that is one document loses no repeated paragraph."""
    text = "Refrain.\n\nVerse one.\n\nRefrain.\n"
    (tmp_path / "a.md").write_text(text)
    fixed_copy(tmp_path / "a.md", tmp_path / "b.md")
    assert (tmp_path / "b.md").read_text() == text


def test_parquet_keeps_its_schema(tmp_path):
    """Columns and types of a Parquet file are those of the original."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "question": ["a", "b", "a"],
            "answer": ["x", None, "x"],
            "score": pyarrow.array([1, 2, 1], pyarrow.int16()),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    fixed = fixed_copy(tmp_path / "a.parquet", tmp_path / "b.parquet")
    written = parquet.read_table(tmp_path / "b.parquet")
    assert written.schema == table.schema
    assert written.to_pylist() == [{"question": "a", "answer": "x", "score": 1}]
    assert (fixed.rows_before, fixed.rows_after) == (3, 1)


def test_a_folder_becomes_a_folder(tmp_path):
    """Files keep their names; a row that repeats one of another file goes."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl(pairs(3)))
    (tmp_path / "in" / "b.jsonl").write_bytes(
        jsonl([pairs(1)[0], {"question": "New", "answer": "Yes", "id": 7}])
    )
    fixed = fixed_copy(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == jsonl(pairs(3))
    assert (tmp_path / "out" / "b.jsonl").read_bytes() == jsonl(
        [{"question": "New", "answer": "Yes", "id": 7}]
    )
    assert changes(fixed.changes_path)[0]["detail"] == "row 1 of a.jsonl"


def test_nothing_is_overwritten_unasked(tmp_path):
    """A file that is there stays, and the data itself stays even when asked."""
    source = tmp_path / "a.jsonl"
    source.write_bytes(jsonl(pairs(3)))
    (tmp_path / "b.jsonl").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        fixed_copy(source, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text() == "precious"
    (tmp_path / "link.jsonl").symlink_to(source)
    for target in (source, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="never changed"):
            fixed_copy(source, target, overwrite=True)
    fixed_copy(source, tmp_path / "b.jsonl", overwrite=True)
    assert (tmp_path / "b.jsonl").read_bytes() == source.read_bytes()


def test_an_old_list_of_changes_is_not_overwritten_either(tmp_path):
    """The list of changes is a file like any other."""
    (tmp_path / "a.jsonl").write_bytes(jsonl(pairs(3)))
    (tmp_path / "b.jsonl.changes.jsonl").write_text("old")
    with pytest.raises(InputError, match=r"changes\.jsonl is there already"):
        fixed_copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("b.csv", "has the format of the data"),
        ("nowhere/b.jsonl", "does not exist"),
        ("folder", "is a folder"),
    ],
)
def test_a_target_that_cannot_be_is_refused(tmp_path, out, says):
    """Another format, a missing folder, a folder: each is an error and leaves nothing behind."""
    (tmp_path / "a.jsonl").write_bytes(jsonl(pairs(3)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=says):
        fixed_copy(tmp_path / "a.jsonl", tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "folder"]


def test_a_copy_of_nothing_is_not_written(tmp_path):
    """Where every row would go, the error says so and no file is left."""
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"question": "Q", "answer": ""}] * 3))
    with pytest.raises(InputError, match="no row would be left"):
        fixed_copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
