"""After a data file is named: columns become a question, unsuited rows too, a folder the teams."""

from __future__ import annotations

import csv
import json
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
from tests.wizard.scripted import FACTS, ScriptedUi

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."
YES, COLUMNS, OTHER_FILE, UNKNOWN = "Yes", "Choose the columns", "Another file", "I don't know"


def read(path: str, mapping: Any, wanted: str | None) -> DataProfile:
    return profile(path, mapping=mapping, wanted=wanted)


def reader(ui: ScriptedUi, task: str | None = None) -> DataReader:
    return DataReader(ui=ui, profile=read, task=task)


def question(fact: str = "data_path", **answers: Any) -> Question:
    known = {name: Answer(value=value, origin="asked") for name, value in answers.items()}
    return Question(fact=FACTS[fact], number=2, can_go_back=True, answers=AnswerSet(known=known))


def table(folder: Path, name: str, header: list[str], rows: list[list[str]]) -> str:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def jsonl(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tickets(folder: Path) -> str:
    """A support desk's export: request and reply under names of their own."""
    header = ["Ticket ID", "Subject", "Description", "Agent Reply", "Category"]
    rows = [
        [f"T{n}", f"Order {n}", ASKED.format(n), REPLIED.format(n), ("Billing", "Shipping")[n % 2]]
        for n in range(60)
    ]
    return table(folder, "tickets.csv", header, rows)


def untold(folder: Path, name: str = "untold.jsonl") -> str:
    """Two texts that nothing tells apart."""
    rows = [
        {"f1": f"The tower {n} is rather high.", "f2": f"It was built in 19{n:02d} or so."}
        for n in range(60)
    ]
    return jsonl(folder, name, rows)


def categories(folder: Path) -> str:
    rows = [
        {"body": ASKED.format(n), "category": ("Billing", "Shipping")[n % 2]} for n in range(60)
    ]
    return jsonl(folder, "categories.jsonl", rows)


def answered(ui: ScriptedUi, task: str = "customer_service", **known: Any) -> Any:
    reply = ask_data(question(task=task, **known), reader(ui, task))
    return dict(reply.values) if isinstance(reply, Several) else reply


def test_a_guess_is_a_question_with_a_row_shown(tmp_path):
    """Each column is shown with its value, and the guess is the first choice."""
    path = tickets(tmp_path)
    ui = ScriptedUi(path, YES)
    mapping = {"question": "Description", "answer": "Agent Reply"}
    assert answered(ui) == {"data_path": path, "data_mapping": mapping}
    assert ui.asked[-1] == "Is Description the request and Agent Reply the answer?"
    assert ui.offered[-1] == [YES, COLUMNS, OTHER_FILE, UNKNOWN]
    assert "  Ticket ID    T0" in ui.said
    assert any(line.startswith("  Description  My order 0 has not") for line in ui.said)


def plain(folder: Path) -> str:
    rows = [{"question": "Q?", "answer": f"A{n}"} for n in range(60)]
    return jsonl(folder, "a.jsonl", rows)


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
    assert any("invalid JSON" in line for line in ui.said)
    assert any("no such file" in line for line in ui.said)


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
    """Categories where replies are wanted become a question, with a row."""
    path = categories(tmp_path)
    ui = ScriptedUi(path, "Sort texts into categories")
    assert answered(ui) == {"data_path": path, "data_mapping": None, "task": "classification"}
    assert "a category, and no reply" in ui.asked[-1]
    assert any('-> "Billing"' in line for line in ui.said)


def team_folder(folder: Path) -> Path:
    (folder / "dept").mkdir()
    for name in ("hr", "it", "legal"):
        rows = [{"question": f"{name} {n}?", "answer": f"{name}: {n}"} for n in range(60)]
        jsonl(folder / "dept", f"{name}.jsonl", rows)
    return folder / "dept"


@pytest.mark.parametrize(("fact", "ask"), [("data_path", ask_data), ("tasks", ask_tasks)])
def test_a_folder_becomes_the_teams(tmp_path, fact, ask):
    """Named as the data, or as the place of the teams' files, its files are one team each."""
    folder = team_folder(tmp_path)
    ui = ScriptedUi(str(folder), YES) if fact == "data_path" else ScriptedUi("x", str(folder))
    reply = ask(question(fact, task="multi_department"), reader(ui, "multi_department"))
    assert isinstance(reply, Several)
    assert dict(reply.values["tasks"]) == {
        name: str(folder / f"{name}.jsonl") for name in ("hr", "it", "legal")
    }
    assert "one file for each team" in ui.asked[-1] or "One team for each?" in ui.asked[-1]
    one_set = answered(ScriptedUi(str(folder), "No"), task="multi_department")
    assert one_set["data_path"] == str(folder)  # the person knows better


def test_the_columns_of_one_team_hold_for_the_others(tmp_path):
    """One question for all files with the same columns; a file with known ones needs none."""
    (tmp_path / "dept").mkdir()
    files = {name: untold(tmp_path / "dept", f"{name}.jsonl") for name in ("hr", "it")}
    rows = [{"question": f"Q{n}?", "answer": f"A{n}"} for n in range(60)]
    files["legal"] = jsonl(tmp_path / "dept", "legal.jsonl", rows)
    ui = ScriptedUi(str(tmp_path), str(tmp_path / "dept"), YES)
    reply = ask_tasks(question("tasks", task="multi_department"), reader(ui, "multi_department"))
    assert dict(reply.values["tasks"]) == files
    assert reply.values["data_mapping"] == {"question": "f1", "answer": "f2"}
    assert any("is no folder with one file for each team" in text for text in ui.said)


def test_what_was_understood_is_said_with_an_example(tmp_path):
    """Count, kind and one row, request before answer."""
    path = tickets(tmp_path)
    ui = ScriptedUi()
    mapping = {"question": "Description", "answer": "Agent Reply"}
    reply = Several(values={"data_path": path, "data_mapping": mapping})
    say_found(reply, reader(ui, "customer_service"))
    assert ui.said[0] == "  found 60 examples: requests with the right answer"
    assert ui.said[1].startswith("    such as: My order 0 has not")
    assert " -> Thank you for writing" in ui.said[1]
    assert max(map(len, ui.said[:2])) <= 80


def test_texts_with_a_category_are_called_so(tmp_path):
    """A file of categories is no file of requests with the right answer."""
    ui = ScriptedUi()
    values = {"data_path": categories(tmp_path), "data_mapping": None, "task": "classification"}
    say_found(Several(values=values), reader(ui))
    assert ui.said[0] == "  found 60 examples: texts with one of 2 categories"
    assert ui.said[-1] == "  The task is now: Sort texts into categories"
    # Separator and encoding, in one line.
    path = tmp_path / "a.csv"
    rows = "".join(f"Größe {n}?;Für Sie {n}\r\n" for n in range(60))
    path.write_bytes(f"question;answer\r\n{rows}".encode("cp1252"))
    say_found(Several(values={"data_path": str(path)}), reader(ui))
    assert "    semicolon, Windows-1252: read as such" in ui.said


def test_what_acts_on_a_terminal_is_shown_as_text(tmp_path):
    """Cells and names of columns come from a file of anybody."""
    rows = [{"a\x1b[2J": f"x\x1b[31m{n} is here?", "b": f"\x07bell {n} rings."} for n in range(60)]
    path = jsonl(tmp_path, "a.jsonl", rows)
    ui = ScriptedUi(path, YES)
    reply = ask_data(question(task="qa"), reader(ui, "qa"))
    say_found(reply, reader(ui))
    words = "".join([*ui.said, *ui.asked, *(label for labels in ui.offered for label in labels)])
    assert "\x1b" not in words
    assert "\x07" not in words


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
