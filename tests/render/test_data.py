"""A data profile and what `advise probe` shows, as JSON and as a page of a fixed width.

After a look at the change: UPDATE_GOLDEN=1 python -m pytest tests/render/test_data.py
"""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from advisor.commands.check import check_data
from advisor.commands.check_options import CheckOptions
from advisor.data import profile
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, MIB
from advisor.probe import load_catalogue, stated_hardware
from advisor.render.check_page import few_bins, print_check
from advisor.render.data import check_json, profile_json
from advisor.render.probe import print_probe, probe_json


def page(path, *, width=80, console=None, **options) -> str:
    """The page without colour, as text."""
    console = console or Console(width=width, no_color=True, file=io.StringIO())
    print_check(*check_data(str(path), CheckOptions(**options)), console)
    return console.file.getvalue()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs() -> list[dict[str, Any]]:
    """Sixty pairs with one answer missing."""
    rows = [{"question": f"What is {n}?\nTell me.", "answer": f"It is {n}."} for n in range(60)]
    rows[4]["answer"] = ""
    return rows


def test_json_has_everything_that_was_found_and_measured(approved, tmp_path):
    """Every key of the contract is there, with how sure it is, and survives JSON."""
    path = write_rows(tmp_path / "a.jsonl", pairs())
    found = check_json(*check_data(str(path), CheckOptions(seq_len=64)))
    json.dumps(found, allow_nan=False)
    approved([found, profile_json(profile(path))])


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


def many() -> list[dict[str, Any]]:
    """More to say than fits: the first are shown, the rest counted; the next command comes last."""
    rows = [
        {
            "text": f"Message {number} to person{number}@example.org " + "word " * 4 ** (number % 7)
            + ("[Your Name] </s>" if number % 3 else "Ã¤ sk-abc123DEF456ghi789jkl012")
            + ("\0" if number == 5 else "") + " word" * 40_000 * (number == 9),
            "label": f"Class {number % 30}" if number % 2 else f"class {number % 30}",
        }
        for number in range(600)
    ]  # fmt: skip
    return [*rows[:7], rows[3], *rows[8:]]


PAGES = {  # a text, or rows
    "support": support(),
    "classes": [
        {"text": f"Message {n}: {SAID[n % 3][0]}", "team": SAID[n % 3][1]} for n in range(90)
    ],
    "pairs": [
        {"prompt": f"Is {n} even?", "chosen": f"{('Yes', 'No')[n % 2]}, {WHY}", "rejected": "Maybe."}
        for n in range(40)
    ],
    "checkable": '{"prompt": "1+1", "ground_truth": "2"}',
    "text": '{"text": "A story."}',
    # A row cannot clear the screen or colour the page.
    "hostile": json.dumps({"text": "\x1b[2Jgone [bold]not markup[/bold]"}),
    # Each unreadable place stands on its own line, and nothing is promised.
    "broken": '{"question": "Q", "answer": "A"}\n{oops\n{"question"',
    # Personal data are never among the findings that are not shown, however much else is found.
    "personal": [
        {"question": f"Ã¤ [Your Name] </s> {n % 40} {'?' * (n % 3)}",
         "answer": f"a@b.org {'<|im_end|>' * (n % 2)}" + " born 12.03.1958, call 0171 1234567" * (n > 50)}
        for n in range(60)
    ],
    "many": many(),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PAGES, "folder"])
def test_pages_look_as_they_were_looked_at(approved, tmp_path, monkeypatch, name):
    """Each kind of data prints exactly the page that was read and approved, on one screen."""
    monkeypatch.chdir(tmp_path)
    path = Path(f"my {name}.jsonl")
    if name == "folder":  # the command for files that are not read is one line, to be pasted
        path = Path("protocols")
        path.mkdir()
        for n in range(20):
            (path / f"{n}.txt").write_text(f"Name: {n}\nPlace: Ward {n}\nText of {n}.\n")
        (path / "a.docx").write_text("x")
    elif isinstance(PAGES[name], str):
        path.write_text(PAGES[name] + "\n")
    else:
        write_rows(path, PAGES[name])
    text = "\n".join(line.rstrip() for line in page(path).split("\n"))
    assert len(text.split("\n")) <= (54 if name == "many" else 42)
    assert "\x1b" not in text
    approved(text)


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


def test_colour_adds_nothing_but_colour(tmp_path):
    """With colour the page has the same words; severities are words too."""
    path = write_rows(tmp_path / "a.jsonl", pairs())
    terminal = {"force_terminal": True, "color_system": "truecolor"}
    coloured = page(path, console=Console(width=80, file=io.StringIO(), **terminal))
    assert ("\x1b[" in coloured, re.sub(r"\x1b\[[0-9;]*m", "", coloured)) == (True, page(path))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_without_unicode_get_plain_signs(tmp_path, encoding):
    """Bars and arrows become letters that the terminal has; nothing raises."""
    path = write_rows(tmp_path / "a.jsonl", [{"question": "Привет\nмир", "answer": "x" * 300}])
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_check(*check_data(str(path)), Console(width=80, file=terminal))
    assert "#" in raw.getvalue().decode(encoding)


CARD = Gpu(
    name="NVIDIA GeForce RTX 4090", uuid="GPU-1", index=0, compute_capability=(8, 9), bf16=True,
    memory_total_bytes=24564 * MIB, memory_free_bytes=20156 * MIB, other_processes_bytes=3812 * MIB,
    spec=load_catalogue()["nvidia-rtx-4090"],
)  # fmt: skip
MACHINE = Hardware(
    kind="cuda", origin="probed", gpus=(CARD,), cpu_cores=16, interconnect="PCIe 4 x16",
    ram_total_bytes=64 * GIB, ram_free_bytes=50 * GIB, disk_free_bytes=500 * GIB,
    driver_version="580.95.05", cuda_version="13.0", torch_target="CPU",
    software={"torch": "2.13.0+cpu", "transformers": "5.24.0", "trl": None},
    notes=("a memory limit of 64.0 GiB holds for this process (control group)",),
    problem=(
        "NVIDIA GeForce RTX 4090 is there, but PyTorch 2.13.0+cpu (CPU build) cannot use it."
        ' Install: pip install --force-reinstall "torch==2.13.0"'
    ),
)  # fmt: skip


PROCESSOR = replace(MACHINE, kind="cpu", gpus=(), problem=None)
BARE = replace(CARD, spec=None)


SCREENS = {
    "whole": MACHINE,
    # Eight are counted, with the free memory of the fullest, which a run can plan with.
    "like cards": replace(MACHINE, gpus=tuple(
        replace(CARD, index=index, memory_free_bytes=(20 - index) * GIB, other_processes_bytes=None)
        for index in range(8)
    )),
    "no card": replace(PROCESSOR, driver_version=None),
    "a card that cannot be used": PROCESSOR,
    "nothing is known": Hardware(kind="unknown", origin="unknown"),
    "no PyTorch": replace(MACHINE, software={"torch": None, "trl": None}),
    "memory not known": replace(
        MACHINE, gpus=(replace(BARE, memory_total_bytes=None, bf16=None),)
    ),
    "a slice": replace(MACHINE, gpus=(replace(BARE, mig_profile="1g.10gb"),)),
    "no bf16": stated_hardware("T4", from_flag=True)[0],
    "not in the catalogue": stated_hardware(None, None, 24, from_flag=True)[0],
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is(approved, name: str, width: int) -> None:
    """Every fact of the machine, without colour; the line to install stays whole at any width."""
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_probe(SCREENS[name], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(len(line) for line in lines if "install: " not in line) <= width
    approved(lines)


@pytest.mark.parametrize("name", ["whole", "nothing is known"])
def test_json_has_units_in_its_keys_and_null_for_unknown(approved, name: str) -> None:
    """Sizes are GiB by their key, and what is not known is null."""
    approved(probe_json(SCREENS[name]))
