"""Files whose columns have no known names: what the words in them say, and when that is clear."""

import csv
import shlex
from pathlib import Path

import pytest

from advisor.data import read_examples, recognise
from advisor.data.recognition.columns import reach, with_leaves
from advisor.data.recognition.matching import MOST_COLUMNS, role_of
from advisor.data.recognition.recognise import ColumnsUnclear
from advisor.ground.errors import InputError
from tests.data.conftest import jsonl

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."


def table(folder: Path, header: list[str], rows: list[list[str]]) -> Path:
    path = folder / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def ticket(number: int) -> list[str]:
    """A row of a support desk's export."""
    return [
        f"T-{1000 + number}",
        f"2024-03-{number % 28 + 1:02d} 10:15",
        f"user{number}@example.com",
        f"Problem with order {number}",
        ASKED.format(number),
        REPLIED.format(number),
        ("open", "closed")[number % 2],
        ("Billing", "Shipping", "Returns")[number % 3],
    ]


TICKETS = [ticket(number) for number in range(40)]
HEADERS = {
    "English": ("Ticket ID", "Created", "Customer Email", "Subject", "Description", "Agent Reply",
                "Status", "Category"),
    "German": ("Nummer", "Datum", "E-Mail", "Betreff", "Beschreibung", "Antwort an den Kunden",
               "Status", "Kategorie"),
    "French": ("Numéro", "Date", "Courriel", "Objet", "Demande du client", "Réponse", "Statut",
               "Catégorie"),
    "Spanish": ("Número", "Fecha", "Correo", "Asunto", "Mensaje del cliente",
                "Respuesta del agente", "Estado", "Categoría"),
    "Polish": ("Numer", "Data", "Email", "Temat", "Treść zgłoszenia", "Odpowiedź", "Status",
               "Kategoria"),
    "Russian": ("Номер", "Дата", "Почта", "Тема", "Сообщение клиента", "Ответ", "Статус",
                "Категория"),
    "Japanese": ("番号", "日時", "メール", "件名", "お問い合わせ内容", "回答", "ステータス", "カテゴリ"),
    "Chinese": ("编号", "日期", "邮箱", "标题", "问题描述", "回复", "状态", "类别"),
    "camel case": ("ticketId", "createdAt", "customerEmail", "subjectLine", "customerMessage",
                   "agentMessage", "state", "kind"),
}  # fmt: skip


@pytest.mark.parametrize("language", HEADERS)
def test_request_and_answer_are_found_among_the_columns_of_a_support_desk(tmp_path, language):
    """Names in many languages and what stands in the cells tell request and answer apart."""
    header = HEADERS[language]
    found = recognise(table(tmp_path, list(header), TICKETS))
    assert found.confidence == "guessed"
    assert found.mapping == {"question": header[4], "answer": header[5]}


def test_the_order_of_columns_does_not_decide(tmp_path):
    """The answer may stand first."""
    header, rows = HEADERS["German"], [list(reversed(row)) for row in TICKETS]
    found = recognise(table(tmp_path, list(reversed(header)), rows))
    assert found.mapping == {"question": "Beschreibung", "answer": "Antwort an den Kunden"}


def test_two_texts_that_nothing_tells_apart_are_not_guessed(tmp_path):
    """The error holds a guess, a row and the whole command: the order is no evidence."""
    rows = [
        {"f1": f"The tower {n} is rather high.", "f2": f"It was built in 19{n:02d} or so."}
        for n in range(20)
    ]
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(jsonl(tmp_path, rows))
    error = caught.value
    assert error.ways[0].mapping == {"question": "f1", "answer": "f2"}
    assert error.row["f1"] == rows[0]["f1"]
    mapped = "--map question=f1 answer=f2"
    assert f"advise check {shlex.quote(error.path)} {mapped}" in error.faults[0].hint
    asked = "advise --task qa --data 'my file.csv'"
    assert f"{asked} {mapped}" in error.with_command(asked).hint


def test_nested_columns_are_found_and_read(tmp_path):
    """Objects inside objects are looked into, and read under their path."""
    rows = [
        {
            "id": n,
            "ticket": {"customer": {"email": f"u{n}@example.com"}, "text": ASKED.format(n)},
            "resolution": {"agent": "Kim", "reply": REPLIED.format(n)},
        }
        for n in range(20)
    ]
    path = jsonl(tmp_path, rows)
    found = recognise(path)
    assert found.mapping == {"question": "ticket.text", "answer": "resolution.reply"}
    assert found.unused == ("id",)
    examples = list(read_examples(path))
    assert [turn.content for turn in examples[3].messages] == [ASKED.format(3), REPLIED.format(3)]
    assert list(read_examples(path, mapping=found.mapping)) == examples


def test_a_column_whose_name_holds_a_point_is_no_nested_one():
    """A name is looked for as it is before it is taken for a path."""
    assert reach({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert reach({"a": {"b.c": 3}}, "a.b.c") == 3
    assert reach({"a": 1}, "a.b") is None
    assert with_leaves({"a": {"b": {"c": 1}}, "d": 2}) == {"a": {"b": {"c": 1}}, "d": 2, "a.b.c": 1}


@pytest.mark.parametrize(
    "chat",
    [
        "Kunde: Wo ist mein Paket?\nMitarbeiter: Es kommt morgen.",
        "[10:32] Customer: Where is it?\n[10:34] Support: It comes tomorrow.",
        "お客様：いつ届きますか？\n担当者：明日お届けします。",
        "Client : Où est mon colis ?\nConseiller : Il arrive demain.",
        "### Human: Where is it?### Assistant: It comes tomorrow.",
    ],
)
def test_written_chats_are_found_whatever_their_column_is_called(tmp_path, chat):
    """Speakers at the start of a turn tell, in several languages and with the time before them."""
    rows = [{"nr": number, "verlauf": f"{chat} ({number})"} for number in range(5)]
    path = jsonl(tmp_path, rows)
    assert recognise(path).mapping == {"transcript": "verlauf"}
    assert [turn.role for turn in next(read_examples(path)).messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    "log",
    [
        [{"sender": "visitor", "body": "Where?"}, {"sender": "operator", "body": "There."}],
        [{"user": "Where?", "bot": "There."}],
    ],
)
def test_turns_with_keys_of_their_own_are_conversations(tmp_path, log):
    """A chat tool's export calls speakers and texts what it likes."""
    path = jsonl(tmp_path, [{"session": number, "log": log * 2} for number in range(3)])
    assert recognise(path).kind == "paired"
    turns = next(read_examples(path)).messages
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "Where?"), ("assistant", "There."),
    ] * 2  # fmt: skip


def test_objects_with_authors_are_no_turns(tmp_path):
    """A list of comments has authors, not the two speakers of a conversation."""
    rows = [{"log": [{"author": "jane42", "text": "nice"}]}] * 3
    with pytest.raises(InputError, match="no known columns"):
        recognise(jsonl(tmp_path, rows))


def test_a_better_and_a_worse_answer_are_a_preference(tmp_path):
    """Names with good and bad in them tell the two sides."""
    rows = [
        {"user_input": ASKED.format(n), "output_good": REPLIED.format(n), "output_bad": f"No {n}."}
        for n in range(20)
    ]
    found = recognise(jsonl(tmp_path, rows))
    assert found.kind == "preference"
    assert found.mapping["chosen"] == "output_good"


def test_few_answers_to_questions_are_answers(tmp_path):
    """Yes and no answer what is asked."""
    rows = [{"Frage": f"Ist {n} gerade?", "Antwort": ("Ja", "Nein")[n % 2]} for n in range(60)]
    assert recognise(jsonl(tmp_path, rows)).mapping == {"question": "Frage", "answer": "Antwort"}


def test_a_name_that_says_nothing_is_asked_about(tmp_path):
    """query_sql answers what stands beside it, which the line with --map offers and nobody takes."""
    rows = [
        {"query_sql": f"SELECT * FROM t WHERE a = {n}", "nl": f"Which rows have {n} in a?"}
        for n in range(20)
    ]
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(jsonl(tmp_path, rows))
    assert "--map question=nl answer=query_sql" in caught.value.faults[0].hint


DATES = [f"03.{number % 9 + 1:02d}.2026" for number in range(60)]
NAMES = ["Huber", "Groß"] * 30
WRITTEN = [ASKED.format(number) for number in range(60)]
REPLIES = [REPLIED.format(number) for number in range(60)]


def columns_of(folder, **columns):
    """A table with these columns."""
    return table(folder, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def test_requests_that_repeat_are_no_categories_of_their_answers(tmp_path):
    """The same questions come again and again; names in another language say what they are."""
    asked = [f"Wann hat das Amt {number % 6} geöffnet?" for number in range(60)]
    path = columns_of(
        tmp_path, Nr=range(60), Eingang=DATES, Bürger=NAMES, Anfrage=asked, Antwort=REPLIES,
        Zuständig=["Amt 32", "Amt 21"] * 30,
    )  # fmt: skip
    found = recognise(path)
    assert found.mapping == {"question": "Anfrage", "answer": "Antwort"}
    assert found.confidence == "guessed"


def test_dates_are_no_categories(tmp_path):
    """The only column called a category is the category; else what is asked leaves dates out."""
    columns = {"Eingang": DATES, "Bürger": NAMES, "Schreiben": WRITTEN}
    kinds = ["Müll", "Ausweis"] * 30
    found = recognise(columns_of(tmp_path, **columns, Kategorie=kinds))
    assert found.mapping == {"text": "Schreiben", "label": "Kategorie"}
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(columns_of(tmp_path, **columns, Farbe=kinds))
    assert {way.mapping["label"] for way in caught.value.ways} == {"Bürger", "Farbe"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Agent Reply", "answer"),
        ("customer_question", "question"),
        ("Kundenanfrage", "question"),
        ("Antwort", "answer"),
        ("agentMessage", "agent"),
        ("resolution.text", "answer"),
        ("description", "text"),
        ("answer_id", "nothing"),
        ("colour", ""),
    ],
)
def test_names_are_understood_by_their_words(name, role):
    """A word for an answer outranks who speaks, and that outranks a word for any text."""
    assert role_of(name) == role


def test_of_a_table_with_very_many_columns_none_is_guessed(tmp_path):
    """A matrix is refused in a moment, with the option that names its columns."""
    header = ["Frage", "Antwort", *(f"feature {number}" for number in range(MOST_COLUMNS))]
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(table(tmp_path, header, [["word"] * len(header)] * 3))
    assert "--map question=COL answer=COL" in caught.value.faults[0].hint


@pytest.mark.parametrize(
    "columns",
    [
        {"Description": [ASKED], "Solution": ["DE-{0}"]},
        {"Description": [ASKED], "Reply Code": ["DE-{0}"]},
        {"Issue": ["Bug", "Question"], "Message Text": [ASKED], "Agent Reply": [REPLIED]},
        {
            "Description": ["The parcel {0} was damaged."],
            "Resolution": ["Fixed", "Won't do", "Duplicate"],
            "Note": [REPLIED],
        },
    ],
    ids=["codes", "codes of replies", "kinds of requests", "states"],
)
def test_codes_kinds_and_states_are_no_requests_and_no_answers(tmp_path, columns):
    """Whatever their column is called, a person has to say so."""
    rows = [
        {name: cells[n % len(cells)].format(n) for name, cells in columns.items()}
        for n in range(60)
    ]
    with pytest.raises(ColumnsUnclear):
        recognise(jsonl(tmp_path, rows))
