"""After a data file is named: columns become a question, unsuited rows too, a folder the teams."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.data import profile
from advisor.ground.terminal import one_line, width_of
from advisor.ground.types import Answer, AnswerSet, DataProfile
from advisor.wizard import BACK, Question, Several
from advisor.wizard.data_file import (
    DataReader,
    ask_data,
    ask_tasks,
    cell_words,
    say_found,
    way_question,
    way_words,
)
from tests.render.test_data import support, write_rows
from tests.wizard.scripted import FACTS, ScriptedUi

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


def test_a_guess_is_a_question_with_a_row_shown(tmp_path):
    """Columns have values and the guess is first; then count, kind and a row are said."""
    path = tickets(tmp_path)
    ui = ScriptedUi(path, YES)
    reply = answered(ui)
    assert reply == {"data_path": path, **GUESSED}
    assert ui.asked[-1] == "Is Description the request and Agent Reply the answer?"
    assert ui.offered[-1] == [YES, COLUMNS, OTHER_FILE, UNKNOWN]
    assert "  Ticket ID    T0" in ui.said
    assert any(line.startswith("  Description  My order 0 has not") for line in ui.said)
    said = found(reply, "customer_service")
    assert said[0] == "  found 60 examples: requests with the right answer"
    assert said[1].startswith("    such as: My order 0 has not")
    assert " -> Thank you for writing" in said[1]
    assert max(map(len, said[:2])) <= 80
    path = str(write_rows(tmp_path / "my support.jsonl", support()))
    assert found({"data_path": path})[-1] == f"    2 more: advise check {shlex.quote(path)}"


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


A_PAIR, A_CATEGORY = "A request and its answer", "A text and its category"
NO_MAPPING = {"data_mapping": None}


def read_as(question: str, answer: str) -> dict[str, Any]:
    return {"data_mapping": {"question": question, "answer": answer}}


GUESSED = read_as("Description", "Agent Reply")
ANSWERED = {  # the file, what is chosen after it, what comes of it beside its path
    "known columns are no question": (plain, [], NO_MAPPING),
    "not knowing takes the guess": (tickets, [UNKNOWN], GUESSED),
    "other columns are chosen from lists": (
        tickets, [COLUMNS, A_PAIR, "Subject", "Description"], read_as("Subject", "Description"),
    ),
    "every list has a way back": (
        tickets, [COLUMNS, "Back", COLUMNS, A_CATEGORY, "Back", YES], GUESSED,
    ),
    "an unclear file offers the guess and its opposite": (
        untold, ["No: f2 is the request, f1 the answer"], read_as("f2", "f1"),
    ),
    "a mapping says that rows that do not suit were looked at": (
        categories, ["Answer customers, from these rows"],
        {"data_mapping": {"text": "body", "label": "category"}},
    ),
    "not knowing leaves task and rows as they are": (categories, [UNKNOWN], NO_MAPPING),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERED)
def test_a_file_and_its_columns_are_answered(tmp_path, case):
    """No choice is a dead end, and nobody is sent away who does not know."""
    make, replies, expected = ANSWERED[case]
    path = make(tmp_path)
    ui = ScriptedUi(path, *replies)
    assert answered(ui) == {"data_path": path, **expected}
    assert ui.replies == []


def test_another_file_may_be_named(tmp_path):
    """The question for the file is put again; so it is for rows that do not suit."""
    assert answered(ScriptedUi(tickets(tmp_path), OTHER_FILE, "<")) is BACK
    first, second = categories(tmp_path), tickets(tmp_path)
    ui = ScriptedUi(first, "Answer customers, from another file", second, YES)
    assert answered(ui)["data_path"] == second


def test_a_file_that_cannot_be_read_is_asked_for_again(tmp_path):
    """Broken rows are named, and the question stays."""
    (tmp_path / "broken.jsonl").write_text("{oops\n")
    path = tickets(tmp_path)
    ui = ScriptedUi(str(tmp_path / "broken.jsonl"), str(tmp_path / "gone.csv"), path, YES)
    assert answered(ui)["data_path"] == path
    said = " ".join(ui.said)
    assert ("invalid JSON" in said, "no such file" in said) == (True, True)


def test_rows_that_cannot_be_used_are_left_out_in_a_copy_if_one_wants(tmp_path):
    """The columns chosen stay the first offer; no other file of that name is lost."""
    path = tmp_path / "mails.csv"
    rows = [f"{ASKED.format(n)};{REPLIED.format(n) if n % 5 else ''}" for n in range(60)]
    path.write_text("\n".join(["Frage an uns;Unsere Antwort", *rows]) + "\n")
    (tmp_path / "mails-usable.jsonl").write_text("mine")
    ui = ScriptedUi(str(path), YES, "No", YES, YES)
    copy = tmp_path / "mails-usable-2.jsonl"
    mapped = read_as("Frage an uns", "Unsere Antwort")
    assert answered(ui) == {"data_path": str(copy), **mapped}
    assert ui.asked[-1] == "20 % of the rows cannot be used. Leave them out, in a copy?"
    assert "--map" not in " ".join(ui.said)
    assert len(copy.read_text().splitlines()) == 48
    assert (tmp_path / "mails-usable.jsonl").read_text() == "mine"


def test_an_answer_given_before_is_offered_first_or_goes(tmp_path):
    """Whoever comes back to the question finds the earlier columns; without a file they go."""
    path = tickets(tmp_path)
    before = read_as("Subject", "Agent Reply")
    assert answered(ScriptedUi(path, YES), data_path=path, **before) == {
        "data_path": path,
        **before,
    }
    assert answered(ScriptedUi(""), data_path=path, **before) == {"data_path": None, **NO_MAPPING}


def test_rows_that_hold_a_category_can_change_the_task(tmp_path):
    """Categories where replies are wanted are asked about, and are no right answers to requests."""
    path = categories(tmp_path)
    ui = ScriptedUi(path, "Sort texts into categories")
    reply = answered(ui)
    assert reply == {"data_path": path, "data_mapping": None, "task": "classification"}
    assert "a category, and no reply" in ui.asked[-1]
    assert any('-> "Billing"' in line for line in ui.said)
    first, *_, last = found(reply)
    assert first == "  found 60 examples: texts with one of 2 categories"
    assert last == "  The task is now: Sort texts into categories"


@pytest.mark.parametrize(("fact", "ask"), [("data_path", ask_data), ("tasks", ask_tasks)])
def test_a_folder_becomes_the_teams(tmp_path, fact, ask):
    """Named as the data, or as the place of the teams' files, its files are one team each."""
    teams = {name: plain(tmp_path, f"{name}.jsonl") for name in ("hr", "it", "legal")}
    folder = str(tmp_path)
    ui = ScriptedUi(folder, YES) if fact == "data_path" else ScriptedUi("x", folder)
    reply = ask(question(fact, task="multi_department"), reader(ui, "multi_department"))
    assert dict(reply.values["tasks"]) == teams
    assert "one file for each team" in ui.asked[-1] or "One team for each?" in ui.asked[-1]
    one_set = answered(ScriptedUi(folder, "No"), task="multi_department")
    assert one_set["data_path"] == folder  # the person knows better


def test_the_columns_of_one_team_hold_for_the_others(tmp_path):
    """One question for all files with the same columns; a file with known ones needs none."""
    folder = tmp_path / "dept"
    folder.mkdir()
    files = {name: untold(folder, f"{name}.jsonl") for name in ("hr", "it")}
    files["legal"] = plain(folder, "legal.jsonl")
    ui = ScriptedUi(str(tmp_path), str(folder), YES)
    reply = ask_tasks(question("tasks", task="multi_department"), reader(ui, "multi_department"))
    assert dict(reply.values["tasks"]) == files
    assert reply.values["data_mapping"] == {"question": "f1", "answer": "f2"}
    assert any("is no folder with one file for each team" in text for text in ui.said)


def test_how_a_file_was_read_is_said_in_one_line(tmp_path):
    """Separator and encoding."""
    path = tmp_path / "a.csv"
    rows = "".join(f"Größe {n}?;Für Sie {n}\r\n" for n in range(60))
    path.write_bytes(f"question;answer\r\n{rows}".encode("cp1252"))
    assert "    semicolon, Windows-1252: read as such" in found({"data_path": str(path)})


def test_what_acts_on_a_terminal_is_shown_as_text(tmp_path):
    """Cells and names of columns come from a file of anybody."""
    row = {"a\x1b[2J": "x\x1b[31m{} is here?", "b": "\x07bell {} rings."}
    ui = ScriptedUi(
        jsonl(tmp_path / "a.jsonl", lambda n: {key: one.format(n) for key, one in row.items()}), YES
    )
    said = found(answered(ui, "qa"))
    words = "".join([*ui.said, *said, *ui.asked, *(one for labels in ui.offered for one in labels)])
    assert not {"\x1b", "\x07"} & set(words)


def test_wide_letters_take_two_columns():
    """Values in Japanese stay on their line."""
    assert width_of("日本") == 4
    assert width_of(one_line("日本語の長い文章です" * 9, 20)) <= 20
    assert one_line("short", 20) == "short"
    assert cell_words(None, 20) == cell_words("", 20) == "(empty)"
    assert cell_words([1, 2], 20) == "[1, 2]"


def test_readings_are_put_in_words():
    """One role or several."""
    assert way_question({"text": "Notes"}) == "Is Notes the text to learn from?"
    assert way_question({"transcript": "Chat"}) == "Is Chat the conversation?"
    assert (
        way_words({"question": "a", "chosen": "b", "rejected": "c"})
        == "a is the request, b the better answer, c the worse answer"
    )
