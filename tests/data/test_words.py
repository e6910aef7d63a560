"""Files whose columns have no known names: what the words in them say, and when that is clear."""

import pytest

from advisor.data import read_examples, recognise
from advisor.data.recognition.columns import reach, with_leaves
from advisor.data.recognition.matching import MOST_COLUMNS, role_of
from advisor.data.recognition.recognise import ColumnsUnclear
from tests.data.conftest import jsonl

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."


def rows_of(columns, count=60):
    """Rows whose cells repeat those of each column; {0} in them is the number of the row."""
    return [
        {name: cells[n % len(cells)].format(n) for name, cells in columns.items()}
        for n in range(count)
    ]


# The columns of a support desk's export.
TICKETS = [
    ["T-{0}"], [f"2024-03-{day:02d} 10:15" for day in range(1, 29)], ["user{0}@example.com"],
    ["Problem with order {0}"], [ASKED], [REPLIED], ["open", "closed"],
    ["Billing", "Shipping", "Returns"],
]  # fmt: skip
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


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("language", HEADERS)
def test_request_and_answer_are_found_among_the_columns_of_a_support_desk(tmp_path, language, turn):
    """Names in many languages and the cells tell; the answer may stand first."""
    header = HEADERS[language]
    columns = dict(list(zip(header, TICKETS, strict=True))[::turn])
    found = recognise(jsonl(tmp_path, rows_of(columns, 40)))
    assert found.confidence == "guessed"
    assert found.mapping == {"question": header[4], "answer": header[5]}


PEOPLE = {
    "Eingang": [f"03.{month:02d}.2026" for month in range(1, 10)], "Bürger": ["Huber", "Groß"],
}  # fmt: skip
LETTERS = PEOPLE | {"Schreiben": [ASKED]}


@pytest.mark.parametrize(
    ("columns", "roles"),
    [  # columns, and what they are taken for
        ({"user_input": [ASKED], "output_good": [REPLIED], "output_bad": ["No {0}."]},
         "question=user_input chosen=output_good rejected=output_bad"),
        ({"Frage": ["Ist {0} gerade?"], "Antwort": ["Ja", "Nein"]}, "question=Frage answer=Antwort"),
        # The same questions come again and again.
        (PEOPLE | {"Anfrage": [f"Wann hat das Amt {n} geöffnet?" for n in range(6)],
         "Antwort": [REPLIED], "Zuständig": ["Amt 32", "Amt 21"]}, "question=Anfrage answer=Antwort"),
        # The only column called a category is the category.
        (LETTERS | {"Kategorie": ["Müll", "Ausweis"]}, "text=Schreiben label=Kategorie"),
    ],
)  # fmt: skip
def test_names_and_cells_together_are_clear(tmp_path, columns, roles):
    """Better and worse answers, short ones, repeated questions, and one category."""
    found = recognise(jsonl(tmp_path, rows_of(columns)))
    assert {f"{role}={column}" for role, column in found.mapping.items()} == set(roles.split())


UNCLEAR = {
    "codes": {"Description": [ASKED], "Solution": ["DE-{0}"]},
    "codes of replies": {"Description": [ASKED], "Reply Code": ["DE-{0}"]},
    "kinds of requests": {
        "Issue": ["Bug", "Question"], "Message Text": [ASKED], "Agent Reply": [REPLIED],
    },
    "states": {
        "Description": ["The parcel {0} was damaged."],
        "Resolution": ["Fixed", "Won't do", "Duplicate"], "Note": [REPLIED],
    },
    "a name that says nothing": {
        "query_sql": ["SELECT * FROM t WHERE a = {0}"], "nl": ["Which rows have {0} in a?"],
    },
    "a matrix": {
        "Frage": ["w"], "Antwort": ["w"], **{f"feature {n}": ["w"] for n in range(MOST_COLUMNS)},
    },
    "a customer's name": {
        "Kunde": ["M. Brandt", "Jo van Dyk", "Ana Ruiz"], "What they wrote": [ASKED],
        "What we answered": [REPLIED], "done?": ["yes", "no"],
    },
    "a colour": LETTERS | {"Farbe": ["rot", "blau"]},
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_a_person_has_to_say_is_not_guessed(tmp_path, name, approved):
    """Whatever the columns are called; dates are not offered as categories."""
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(jsonl(tmp_path, rows_of(UNCLEAR[name])))
    approved([caught.value.faults, [way.mapping for way in caught.value.ways]])


def test_two_texts_that_nothing_tells_apart_are_not_guessed(tmp_path, approved):
    """The error holds a guess, a row and the whole command: the order is no evidence."""
    rows = [
        {"f1": f"The tower {n} is rather high.", "f2": f"It was built in 19{n:02d} or so."}
        for n in range(20)
    ]
    with pytest.raises(ColumnsUnclear) as caught:
        recognise(jsonl(tmp_path, rows))
    error = caught.value
    pasted = error.with_command("advise --task qa --data 'my file.csv'")
    approved([error.ways[0].mapping, error.row, error.faults, pasted])


def test_nested_columns_are_found_and_read(tmp_path, approved):
    """Objects in objects are read under their path, unless a column has that very name."""
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
    examples = list(read_examples(path))
    approved([found.mapping, found.unused, examples[3]])
    assert list(read_examples(path, mapping=found.mapping)) == examples
    for row, value in (
        ({"a.b": 1, "a": {"b": 2}}, 1), ({"a": {"b": 3}}, 3), ({"a": 1}, None),
    ):  # fmt: skip
        assert reach(row, "a.b") == value
    assert reach({"a": {"b.c": 3}}, "a.b.c") == 3
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
    path = jsonl(tmp_path, [{"nr": number, "verlauf": f"{chat} ({number})"} for number in range(5)])
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
    turns = [(turn.role, turn.content) for turn in next(read_examples(path)).messages]
    assert turns == [("user", "Where?"), ("assistant", "There.")] * 2


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Agent Reply", "answer"), ("customer_question", "question"),
        ("Kundenanfrage", "question"), ("Antwort", "answer"), ("agentMessage", "agent"),
        ("resolution.text", "answer"), ("description", "text"), ("answer_id", "nothing"),
        ("colour", ""),
    ],
)  # fmt: skip
def test_names_are_understood_by_their_words(name, role):
    """A word for an answer outranks who speaks, and that outranks a word for any text."""
    assert role_of(name) == role
