"""After a data file is named: columns become a question, unsuited rows too, a folder the teams."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from advisor.data import profile
from advisor.data.read.source import files_here
from advisor.ground.terminal import one_line, width_of
from advisor.ground.types import Answer, AnswerSet, DataFinding, DataProfile
from advisor.wizard.data_file import (
    DataReader,
    ask_data,
    ask_tasks,
    cell_words,
    found_lines,
    say_found,
    way_question,
    way_words,
)
from advisor.wizard.walk import Question, Several
from tests.render.test_data import support, write_rows
from tests.wizard.scripted import FACTS, PROFILE, ScriptedUi

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."
YES, COLUMNS, OTHER_FILE, UNKNOWN = "Yes", "Choose the columns", "Another file", "I don't know"


def reader(ui: ScriptedUi, task: str | None = None) -> DataReader:
    def read(path: str, mapping: Any, wanted: str | None) -> DataProfile:
        return profile(path, mapping=mapping, wanted=wanted)

    return DataReader(ui=ui, profile=read, task=task)


def question(fact: str = "data_path", **answers: Any) -> Question:
    known = {name: Answer(value=value, origin="asked") for name, value in answers.items()}
    return Question(fact=FACTS[fact], number=2, can_go_back=True, answers=AnswerSet(known=known))


def jsonl(path: Path, row: Callable[[int], dict[str, Any]]) -> str:
    """Write sixty rows; the name of the file."""
    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(60)))
    return str(path)


def test_settings_of_programs_are_not_offered_as_data(tmp_path, monkeypatch):
    """One JSON object without rows or columns is no data, whatever its name."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "a", "completion": "b"}] * 2
    for name, value in {
        "package.json": {"name": "x", "files": ["a", "b"], "scripts": {"test": "pytest"}},
        "servers.json": {"mcpServers": {"x": {"command": "y"}}},
        "columns.json": {"prompt": ["a", "b"], "completion": ["c", "d"]},
        "inside.json": {"version": 1, "data": rows},
        "rows.json": rows,
    }.items():
        Path(name).write_text(json.dumps(value))
    Path("lines.json").write_text("\n".join(map(json.dumps, rows)))
    assert files_here() == ["columns.json", "inside.json", "lines.json", "rows.json"]


def tickets(folder: Path) -> str:
    """A support desk's export: request and reply under names of their own."""
    path = folder / "tickets.csv"
    rows = "".join(
        f"T{n},Order {n},{ASKED.format(n)},{REPLIED.format(n)},{('Billing', 'Shipping')[n % 2]}\n"
        for n in range(60)
    )
    path.write_text("Ticket ID,Subject,Description,Agent Reply,Category\n" + rows)
    return str(path)


def untold(folder: Path, name: str = "untold.jsonl") -> str:
    """Two texts that nothing tells apart."""
    return jsonl(
        folder / name,
        lambda n: {
            "f1": f"The tower {n} is rather high.",
            "f2": f"It was built in 19{n:02d} or so.",
        },
    )


def categories(folder: Path) -> str:
    return jsonl(
        folder / "categories.jsonl",
        lambda n: {"body": ASKED.format(n), "category": ("Billing", "Shipping")[n % 2]},
    )


def answered(ui: ScriptedUi, task: str = "customer_service", **known: Any) -> Any:
    reply = ask_data(question(task=task, **known), reader(ui, task))
    return dict(reply.values) if isinstance(reply, Several) else reply


def found(values: dict[str, Any], task: str | None = None) -> list[str]:
    """What is said of a file that was named so."""
    ui = ScriptedUi()
    say_found(Several(values=values), reader(ui, task))
    return ui.said


def test_what_a_folder_holds_beside_its_table_is_said_first(tmp_path, monkeypatch):
    """Chapters and sheets that are not read, each command whole; the longer column is the answer;
    also where the table itself cannot be read.
    """
    book = pytest.importorskip("openpyxl").Workbook()
    for title, count in (("Scenes", 9), ("Characters", 2)):
        sheet = book.create_sheet(title)
        sheet.append(["Scene idea" if count == 9 else "Name", "Text as written"])
        for number in range(count):
            sheet.append([f"Nr. {number} at the ferry", f"{number} {'The salt was late. ' * 20}"])
    book.remove(book.active)
    book.save(tmp_path / "notes.xlsx")
    (tmp_path / "01 The Ledger.docx").write_bytes(b"PK\x03\x04 a chapter")
    ui = ScriptedUi(str(tmp_path), YES)
    read = {"question": "Scene idea", "answer": "Text as written"}
    assert answered(ui) == {"data_path": str(tmp_path), "data_mapping": read}
    way = f"    find {tmp_path} -iname '*.docx' -exec pandoc -t plain '{{}}' -o '{{}}.txt' ';'"
    text = "not read: 1 .docx; extract the text first, one .txt file a document:"
    assert ui.said[:2] == [
        f"{text}\n{way}",
        "sheet Scenes; not read: Characters (save a sheet as CSV to take it in its place)",
    ]
    monkeypatch.setattr("advisor.data.read.excel.importlib.util.find_spec", lambda _: None)
    ui = ScriptedUi(str(tmp_path), None)
    with pytest.raises(KeyboardInterrupt):
        answered(ui)
    assert text in ui.said[0]


def plain(folder: Path, name: str = "a.jsonl") -> str:
    return jsonl(folder / name, lambda n: {"question": f"{name} {n}?", "answer": f"{name}: {n}"})


def broken(folder: Path) -> None:
    (folder / "broken.jsonl").write_text("{oops\n")
    tickets(folder)


def both(folder: Path) -> None:
    categories(folder)
    tickets(folder)


def with_empty_answers(folder: Path) -> None:
    """Of five rows one has no answer; and a file of the name that a copy would take is there."""
    rows = [f"{ASKED.format(n)};{REPLIED.format(n) if n % 5 else ''}" for n in range(60)]
    (folder / "mails.csv").write_text("\n".join(["Frage an uns;Unsere Antwort", *rows]) + "\n")
    (folder / "mails-usable.jsonl").write_text("mine")


def teams(folder: Path) -> None:
    for name in ("hr", "it", "legal"):
        plain(folder, f"{name}.jsonl")


def untold_teams(folder: Path) -> None:
    (folder / "dept").mkdir()
    for name in ("hr", "it"):
        untold(folder / "dept", f"{name}.jsonl")
    plain(folder / "dept", "legal.jsonl")


def encoded(folder: Path) -> None:
    rows = "".join(f"Größe {n}?;Für Sie {n}\r\n" for n in range(60))
    (folder / "a.csv").write_bytes(f"question;answer\r\n{rows}".encode("cp1252"))


def hostile(folder: Path) -> None:
    row = {"a\x1b[2J": "x\x1b[31m{} is here?", "b": "\x07bell {} rings."}
    jsonl(folder / "a.jsonl", lambda n: {key: one.format(n) for key, one in row.items()})


CSV, JSONL, CATEGORIES = "PLACE/tickets.csv", "PLACE/a.jsonl", "PLACE/categories.jsonl"
A_PAIR, TEAMS = "A request and its answer", ("multi_department", "tasks")
ASK = {"data_path": ask_data, "tasks": ask_tasks}
TALKS = {  # what there is, what is typed and chosen; the task and the question
    "a guess is a question with a row shown": (tickets, [CSV, YES]),
    "findings": (
        lambda folder: write_rows(folder / "my support.jsonl", support()), ["PLACE/my support.jsonl"],
    ),
    "known columns are no question": (plain, [JSONL]),
    "not knowing takes the guess": (tickets, [CSV, UNKNOWN]),
    "other columns are chosen from lists": (
        tickets, [CSV, COLUMNS, A_PAIR, "Subject", "Description"],
    ),
    "every list has a way back": (
        tickets, [CSV, COLUMNS, "Back", COLUMNS, "A text and its category", "Back", YES],
    ),
    "an unclear file offers the guess and its opposite": (
        untold, ["PLACE/untold.jsonl", "No: f2 is the request, f1 the answer"],
    ),
    "a mapping says that rows that do not suit were looked at": (
        categories, [CATEGORIES, "Answer customers, from these rows"],
    ),
    "not knowing leaves task and rows as they are": (categories, [CATEGORIES, UNKNOWN]),
    "another file may be named": (tickets, [CSV, OTHER_FILE, "<"]),
    "another file than one that does not suit": (
        both, [CATEGORIES, "Answer customers, from another file", CSV, YES],
    ),
    "what cannot be read is asked for again": (
        broken, ["PLACE/broken.jsonl", "PLACE/gone.csv", CSV, YES],
    ),
    # The columns chosen stay the first offer; no other file of that name is lost.
    "rows that cannot be used are left out in a copy": (
        with_empty_answers, ["PLACE/mails.csv", YES, "No", YES, YES],
    ),
    "rows that hold a category change the task": (
        categories, [CATEGORIES, "Sort texts into categories"],
    ),
    "a folder becomes the teams": (teams, ["PLACE", YES], "multi_department"),
    "a folder is one set": (teams, ["PLACE", "No"], "multi_department"),
    "a folder is where the teams' files are": (teams, ["x", "PLACE"], *TEAMS),
    # One question for all files with the same columns; a file with known ones needs none.
    "the columns of one team hold for the others": (
        untold_teams, ["PLACE", "PLACE/dept", YES], *TEAMS,
    ),
    "separator and encoding": (encoded, ["PLACE/a.csv"]),
    "what acts on a terminal is shown as text": (hostile, [JSONL, YES], "qa"),
}  # fmt: skip


@pytest.mark.parametrize("case", TALKS)
def test_a_file_and_its_columns_are_answered(approved, tmp_path, case):
    """No choice is a dead end, and nobody is sent away who does not know."""
    make, replies, *about = TALKS[case]
    task, fact = (*about, *("customer_service", "data_path")[len(about) :])
    make(tmp_path)
    ui = ScriptedUi(*(text.replace("PLACE", str(tmp_path)) for text in replies))
    reply = ASK[fact](question(fact, task=task), reader(ui, task))
    values = dict(reply.values) if isinstance(reply, Several) else "back"
    said = found(values, task) if "data_path" in values else []
    assert ui.replies == []
    shown = [*ui.said, *ui.asked, *said, *(one for labels in ui.offered for one in labels)]
    assert not {"\x1b", "\x07"} & set("".join(shown))
    files = {path.name: len(path.read_bytes().splitlines()) for path in tmp_path.glob("*.*")}
    approved([values, ui.asked, ui.offered, ui.said, said, files])


def test_an_answer_given_before_is_offered_first_or_goes(tmp_path):
    """Whoever comes back to the question finds the earlier columns; without a file they go."""
    path = tickets(tmp_path)
    columns = {"data_mapping": {"question": "Subject", "answer": "Agent Reply"}}
    before = {"data_path": path, **columns}
    assert answered(ScriptedUi(path, YES), **before) == before
    assert answered(ScriptedUi(""), **before) == dict.fromkeys(before)


def test_cells_and_readings_are_put_in_words(approved):
    """Values in Japanese stay on their line, since wide letters take two columns."""
    assert width_of("日本") == 4
    assert width_of(one_line("日本語の長い文章です" * 9, 20)) <= 20
    cells = [cell_words(cell, 20) for cell in ("short", None, "", [1, 2])]
    questions = [way_question(way) for way in ({"text": "Notes"}, {"transcript": "Chat"})]
    approved([cells, questions, way_words({"question": "a", "chosen": "b", "rejected": "c"})])


def test_notes_on_how_files_were_read_fold_and_warnings_do_not():
    """Of a folder each file has one."""
    notes = [DataFinding(id="read-as", severity="note", text=f"{at}.csv: tabs") for at in range(14)]
    warnings = [DataFinding(id=f"w{at}", severity="warning", text=f"w{at}") for at in range(3)]
    lines = [*found_lines(replace(PROFILE, findings=(*notes, *warnings)))]
    assert [one for one in lines if "tabs" in one] == ["0.csv: tabs", "1.csv: tabs"]
    assert "and 12 more of this kind" in lines
    assert sum(one.startswith("warning: ") for one in lines) == 3


def test_of_many_data_files_those_that_changed_last_are_offered(tmp_path, monkeypatch):
    """A folder of many files leaves nobody to type a path."""
    monkeypatch.chdir(tmp_path)
    for at in range(20):
        Path(f"{at:02}.csv").write_text("text\na\n")
        os.utime(f"{at:02}.csv", (at, at))
    assert files_here() == [f"{at}.csv" for at in range(12, 20)]
