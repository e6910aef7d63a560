"""A data profile as JSON and as a page.

After a look at the change: UPDATE_GOLDEN=1 python -m pytest tests/render/test_data.py
"""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from advisor.commands.check import check_data
from advisor.commands.check_options import CheckOptions
from advisor.data import profile
from advisor.render.check_page import few_bins, print_check
from advisor.render.data import check_json, profile_json
from tests.conftest import golden


def page(path, *, width=80, console=None, **options) -> str:
    """The page without colour, as text."""
    console = console or Console(width=width, no_color=True, file=io.StringIO())
    print_check(*check_data(str(path), CheckOptions(**options)), console)
    return console.file.getvalue()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs_path(tmp_path):
    """A file of sixty pairs with one answer missing."""
    rows = [{"question": f"What is {n}?\nTell me.", "answer": f"It is {n}."} for n in range(60)]
    rows[4]["answer"] = ""
    return write_rows(tmp_path / "a.jsonl", rows)


def keys(words: str) -> set[str]:
    return set(words.split())


def test_json_has_everything_that_was_found_and_measured(pairs_path):
    """Every key of the contract is there, with how sure it is, and survives JSON."""
    assert set(profile_json(profile(pairs_path))) == keys(
        "schema_version path kind format mapping rows tokens objectives findings digest sample"
    )
    found = check_json(*check_data(str(pairs_path), CheckOptions(seq_len=64)))
    document = json.loads(json.dumps(found, allow_nan=False))
    told = [document[key] for key in ("kind", "format", "rows", "objectives", "confidence")]
    assert told == ["paired", "question_answer", 60, ["sft"], "certain"]
    assert document["mapping"] == {"question": "question", "answer": "answer"}
    assert set(document["tokens"]) == keys(
        "total mean p50 p90 p95 p99 longest counted_by sampled_rows histogram"
    )
    assert document["findings"][0] == {
        "id": "row-without-answer",
        "severity": "warning",
        "text": "1 of 60 rows: no answer to learn from; left out of the training (row 5)",
        "count": 1,
        "rows": [5],
        "blocks": [],
    }
    assert set(document["measures"]) >= keys(
        "scripts turns request_tokens answer_tokens sequence_lengths rows_used rows_unusable"
    )
    amount = document["amounts"][0]
    assert (amount["objective"], amount["verdict"]) == ("sft", "thin")
    assert amount["sources"][0]["title"]
    assert set(document["suggested"]) == keys("objective seq_len because packing packing_because")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # Checkable prompts and texts in their own words; the others have whole pages below.
        ('{"prompt": "1+1", "ground_truth": "2"}', ("right answer", "grpo")),
        ('{"text": "A story."}', ("plain documents", "cpt")),
        # A row cannot clear the screen or colour the page.
        (json.dumps({"text": "\x1b[2Jgone [bold]not markup[/bold]"}), ("[bold]not markup[/bold]",)),
        # Each unreadable place stands on its own line, and nothing is promised.
        (
            '{"question": "Q", "answer": "A"}\n{oops\n{"question"',
            ("a.jsonl:2:2: invalid JSON", "a.jsonl:3:12: invalid JSON",
             "nothing, before the errors below are repaired"),
        ),
    ],
    ids=["checkable", "text", "hostile", "broken"],
)  # fmt: skip
def test_every_kind_has_its_page(tmp_path, monkeypatch, text, parts):
    """What was found stands on it in words."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(text + "\n")
    said = page("a.jsonl")
    assert [part for part in parts if part not in " ".join(said.split())] == []
    assert "\x1b" not in said


def support() -> list[dict[str, Any]]:
    """Sixty support answers with one of each thing that can be wrong."""
    sent = "arcel {0} is on its way{1} it will be with you within {2} days"
    rows: list[dict[str, Any]] = [
        {"question": f"Where is parcel {n}?", "answer": "P" + sent.format(n, ";", n % 5 + 2) + "."}
        for n in range(60)
    ]
    rows[4]["answer"] = ""
    rows[9] = rows[3]
    rows[11] = {"question": "where is parcel 7", "answer": "p" + sent.format(7, ",", 4)}
    rows[20]["answer"] = (
        "Write to anna.kovacs@firma.de, or use the key sk-abc123DEF456ghi789jkl012."
    )
    rows[30]["answer"] = "It was sent. " * 90
    return rows


WHY = "and here is why: " + "it divides " * 5
SAID = (
    ("nothing works", "billing"),
    ("my bill is wrong", "technical"),
    ("my bill is wrong", "billing"),
)
PAGES = {
    "support": support(),
    "classes": [
        {"text": f"Message {n}: {SAID[n % 3][0]}", "team": SAID[n % 3][1]} for n in range(90)
    ],
    "pairs": [
        {
            "prompt": f"Is {n} even?",
            "chosen": f"{('Yes', 'No')[n % 2]}, {WHY}",
            "rejected": "Maybe.",
        }
        for n in range(40)
    ],
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_look_as_they_were_looked_at(tmp_path, monkeypatch, name):
    """Each kind of data prints exactly the page that was read and approved."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path(f"my {name}.jsonl"), PAGES[name])
    lines = [line.rstrip() for line in page(f"my {name}.jsonl").split("\n")]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 42
    text = "\n".join(lines)
    assert text == golden(f"check_{name}_80.txt", text)


def test_the_page_fits_a_screen_however_much_there_is_to_say(tmp_path, monkeypatch):
    """The first of many are shown and the rest counted; the next command is the last line."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "text": f"Message {number} to person{number}@example.org " + "word " * 4 ** (number % 7)
            + ("[Your Name] </s>" if number % 3 else "Ã¤ sk-abc123DEF456ghi789jkl012")
            + ("\0" if number == 5 else "") + " word" * 40_000 * (number == 9),
            "label": f"Class {number % 30}" if number % 2 else f"class {number % 30}",
        }
        for number in range(600)
    ]  # fmt: skip
    rows[7] = rows[3]
    write_rows(Path("many.jsonl"), rows)
    lines = page("many.jsonl").rstrip().split("\n")
    assert len(lines) <= 53
    text = " ".join(" ".join(lines).split())
    assert "more: --json lists all" in text
    assert "and 26 more, down to 19 rows" in text
    assert lines[-1] == "Next: advise --task classification --data many.jsonl"


def test_personal_data_are_never_among_the_findings_that_are_not_shown(tmp_path):
    """However much else is found; and what nobody looked for is said."""
    rows = [
        {"question": f"Ã¤ [Your Name] </s> {n % 40} {'?' * (n % 3)}",
         "answer": f"a@b.org {'<|im_end|>' * (n % 2)}" + " born 12.03.1958, call 0171 1234567" * (n > 50)}
        for n in range(60)
    ]  # fmt: skip
    text = " ".join(page(write_rows(tmp_path / "a.jsonl", rows)).split())
    assert "more: --json lists all; names and postal addresses are not looked for" in text
    assert "9 rows with what looks like dates of birth" in text
    assert "9 rows with what looks like telephone numbers" in text


def test_the_command_for_files_that_are_not_read_is_one_line(tmp_path, monkeypatch):
    """Whole, so that it can be pasted; documents are not proposed as structured output."""
    monkeypatch.chdir(tmp_path)
    Path("protocols").mkdir()
    for n in range(20):
        Path(f"protocols/{n}.txt").write_text(f"Name: {n}\nPlace: Ward {n}\nText of {n}.\n")
    Path("protocols/a.docx").write_text("x")
    lines = [line.rstrip() for line in page("protocols").split("\n")]
    assert "  find protocols -iname '*.docx' -exec pandoc -t plain '{}' -o '{}.txt' ';'" in lines
    assert "Next: advise --task other --data protocols" in lines


def test_bins_that_hold_nothing_are_left_out_and_the_shortest_share_one():
    """No row is lost from the picture."""
    histogram = [(16, 3), (32, 0), (64, 4), (128, 5), (256, 1), (512, 2), (1024, 8), (2048, 9)]
    assert few_bins(histogram) == [(128, 12), (256, 1), (512, 2), (1024, 8), (2048, 9)]
    assert few_bins([(16, 3)]) == [(16, 3)]


@pytest.mark.parametrize("width", [24, 40, 50, 60, 80])
def test_a_narrow_terminal_cuts_no_number(tmp_path, width):
    """Every length and count stands whole: rows of a table that is too wide become sentences."""
    rows = (
        {
            "question": f"What is {n}? " + "word " * (5 if n % 400 else 90_000),
            "answer": f"It is {n}.",
        }
        for n in range(1200)
    )
    path = write_rows(tmp_path / "a.jsonl", rows)
    text = page(path, width=width, seq_len=131_072)
    found, _ = check_data(str(path), CheckOptions(seq_len=131_072))
    *wrapped, command = text.rstrip().split("\n")
    assert max(map(len, wrapped)) <= width
    assert command == f"Next: advise --task other --data {path}"  # whole: it is pasted
    keys = ("seq_len", "rows_over", "answers_lost", "packed_sequences")
    numbers = {f"{row[key]:,}" for row in found.measures["sequence_lengths"] for key in keys}
    numbers |= {f"{number:,}" for bin_ in few_bins(found.tokens.histogram) for number in bin_}
    assert {"131,072", "3", "1,197"} <= numbers
    assert numbers <= set(re.findall(r"[0-9,]*[0-9]", text))


def test_colour_adds_nothing_but_colour(pairs_path):
    """With colour the page has the same words; severities are words too."""
    terminal = {"force_terminal": True, "color_system": "truecolor"}
    coloured = page(pairs_path, console=Console(width=80, file=io.StringIO(), **terminal))
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert plain == page(pairs_path)
    assert "warning" in plain


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_without_unicode_get_plain_signs(tmp_path, encoding):
    """Bars and arrows become letters that the terminal has; nothing raises."""
    path = write_rows(tmp_path / "a.jsonl", [{"question": "Привет\nмир", "answer": "x" * 300}])
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_check(*check_data(str(path)), Console(width=80, file=terminal))
    assert "#" in raw.getvalue().decode(encoding)
