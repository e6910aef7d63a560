"""Checks of rows: faults, near copies, rows held out, secrets, personal data, placeholders."""

import json
import random
import re
import time

import pytest

from advisor.data import checks, profile, read_examples, recognise
from advisor.data.checks import RandomSample, SeenRow, Subject
from advisor.data.checks.placeholders import unfilled
from advisor.data.checks.private import PrivateData
from advisor.data.checks.repeats import SAMPLED_ROWS, resemblance, sketch
from advisor.data.example import Example
from advisor.data.measure import Depth
from advisor.data.recognition.columns import reach, with_leaves
from advisor.data.recognition.matching import MOST_COLUMNS, role_of
from advisor.data.recognition.recognise import ColumnsUnclear
from advisor.ground.errors import InputError
from tests.data.conftest import BOT, USER, findings, jsonl, labelled, pairs

WORDS = [f"word{number}" for number in range(2000)]


def sentence(seed: int, length: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def changed(*cells):
    """Sixty pairs, where (number, column, value) stands in for a cell."""
    rows = pairs(60)
    for number, column, value in cells:
        rows[number - 1][column] = value
    return rows


def chats(*others):
    """Conversations, where (number, messages) stands in for one."""
    rows = [
        {"messages": [{**USER, "content": f"Hi {n}"}, {**BOT, "content": f"Hello {n}"}]}
        for n in range(60)
    ]
    for number, messages in others:
        rows[number - 1] = {"messages": messages}
    return rows


def robots(named, asked):
    """A hundred pairs: so many first answers have a placeholder, and so many questions after them."""
    return [
        {"prompt": f"Who are you, {n}?" + " Answer {question}." * (named <= n < named + asked),
         "completion": f"I am robot {n}." + " I am {{name}}." * (n < named)}
        for n in range(100)
    ]  # fmt: skip


THOROUGH, AT_100, AT_300 = {"thorough": True}, {"seq_len": 100}, {"seq_len": 300}
REPEATED = [
    *pairs(60), *pairs(2), {"question": "What is 2?", "answer": "Two."},
    *({"question": f"May I {n}?", "answer": "I cannot help."} for n in range(40)),
]  # fmt: skip
BETTER = [
    {"prompt": f"Q{n}", "chosen": "long answer " * 3 + str(n), "rejected": "short"}
    for n in range(60)
]
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
SEEN = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}
RARE = labelled(billing=90, rare=2, rarer=1)
SPELT = labelled(
    **{"Card lost": 20, "card_lost": 10},
    **dict.fromkeys(("CARD-LOST", "Ham", "ham!", "C", "C++", "C#", "-1", "1"), 9),
)
PRICES = [
    {"question": f"What is the price of {sentence(n, 5)}?", "answer": f"It is {n}."}
    for n in range(60)
]
SHOUTED = {"question": PRICES[3]["question"].upper(), "answer": "It is 3"}
TWINS = [" ".join([*sentence(n).split()[:-2], "other", "end"]) for n in (10, 20)]
# Rows of 30 tokens; one of 210 with a long answer, one with a long question.
LONG = [
    {"question": "q" * 4 * asked, "answer": "a" * 4 * said}
    for asked, said in [(10, 20)] * 18 + [(10, 200), (200, 10)]
]


def case(name, rows, severity, count, depth=None):
    """A finding in so many of these rows; with which rows and words: the approved text."""
    return pytest.param(name, rows, severity, count, depth or {}, id=name)


FOUND = [
    case("row-without-answer", changed((10, "answer", ""), (20, "answer", None)), "warning", 2),
    case("template-marks-in-text", changed((7, "answer", "Sure.<|im_end|>")), "warning", 1),
    case("mojibake", changed((7, "answer", "The cafÃ© is open.")), "warning", 1),
    case("nul-character", changed((7, "answer", "a\x00b")), "warning", 1),
    case("very-long-rows", changed((7, "answer", "long " * 8000)), "warning", 1),
    case("very-long-requests", changed((60, "question", "q" * 4 * 9000)), "warning", 1),
    case("duplicate-rows", REPEATED, "warning", 2),
    case("same-request-other-answer", REPEATED, "note", 1),
    case("repeated-answer", REPEATED, "warning", 40),
    # Other capitals and punctuation are told from an exact repeat, and found in the whole file.
    case("duplicate-rows", [*PRICES, SHOUTED, PRICES[4]], "warning", 1),
    case("duplicate-rows", [*PRICES, SHOUTED, PRICES[4]], "warning", 1, THOROUGH),
    case("near-duplicate-rows", [*PRICES, SHOUTED, PRICES[4]], "warning", 1),
    case("near-duplicate-rows", [*PRICES, SHOUTED, PRICES[4]], "warning", 1, THOROUGH),
    # Few of many are no more than a note; an answer may be the call of a tool.
    case("duplicate-rows", [{"question": "Cat?", "answer": "<tool_call>"}, *pairs(200), *pairs(1)], "note", 1),
    # Two words of forty are changed.
    case("similar-rows", [{"text": text} for text in (*map(sentence, range(60)), *TWINS)], "note", 2, THOROUGH),
    # Two answers in a row, or a conversation that begins with one, break some templates.
    case("turns-do-not-alternate", chats((3, [BOT, USER, BOT])), "warning", 1),
    case("empty-answer", chats((3, [USER, BOT, USER, BOT | {"content": " "}])), "warning", 1),
    case("content-not-text", chats(*((n, [SEEN, BOT]) for n in (2, 4, 6, 8))), "error", 4),
    # Where the better answer is nearly always the longer one, length may be what is learned.
    case("chosen-is-longer", BETTER, "note", 60),
    # Rare classes, and one twenty times another.
    case("rare-classes", RARE, "warning", 2),
    case("unbalanced-classes", RARE, "note", 90),
    # One class written in two ways: capitals, spaces, underscores and hyphens. C, C++ and C# are
    # three languages, and -1 is not 1.
    case("labels-spelt-alike", SPELT, "warning", 2),
    # The share of the rows decides, and the finding counts rows, answers and each placeholder.
    case("placeholders-in-text", robots(3, 1), "note", 4),
    case("placeholders-in-text", robots(3, 2), "warning", 5),
    # Which rows a run would stop at, and which have nothing left to learn.
    case("rows-over-length", LONG, "warning", 2, AT_100),
    case("requests-fill-the-length", LONG, "warning", 1, AT_100),
    # Pictures are not trained on.
    case("media-columns", [{**row, "images": ["1.jpg"]} for row in pairs(60)], "warning", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "severity", "count", "depth"), FOUND)
def test_what_is_wrong_is_counted_and_named(tmp_path, name, rows, severity, count, depth, approved):
    """Rows without an answer, repeated or conspicuous ones, and what may be learned amiss."""
    result = profile(jsonl(tmp_path, rows), Depth(strict=False, **depth))
    approved([result.measures, *result.findings])
    (finding,) = (one for one in result.findings if one.id == name)
    assert (finding.severity, finding.count) == (severity, count)


@pytest.mark.parametrize(
    ("rows", "depth", "absent"),
    [
        # A common opening makes no twins.
        ([{"question": f"Please tell me about {sentence(n, 30)}", "answer": sentence(n + 1000, 30)}
          for n in range(200)], THOROUGH, ""),
        (labelled(a=40, b=30), {}, "unbalanced-classes rare-classes"),
        (labelled(a=3, b=4), {}, "unbalanced-classes rare-classes"),  # too few to tell
        # A request for a template is answered with placeholders.
        ([{"prompt": f"Write e-mail template {n}.", "completion": f"Dear [Customer Name], {n}"}
          for n in range(60)], {}, "placeholders-in-text"),
        (LONG, AT_300, "rows-over-length"),
    ],
)  # fmt: skip
def test_what_is_in_order_is_no_finding(tmp_path, rows, depth, absent):
    """Neither these, nor any where none is named."""
    found = set(findings(jsonl(tmp_path, rows), Depth(strict=False, **depth)))
    assert found & (set(absent.split()) or found) == set()


SHOUTING = """\
from advisor.data.checks import RowCheck


class Shouting(RowCheck):
    place = 1
    says = {'shouting': ('note', '{rows} in capitals')}

    def see(self, row):
        if row.text.isupper():
            self.tallies['shouting'].add(row.number)
"""


def test_a_check_is_found_by_its_file(tmp_path, monkeypatch):
    """A file in the folder of checks is a check: its findings stand among those of the others."""
    (tmp_path / "shouting.py").write_text(SHOUTING)
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])
    rows = [*pairs(60), {"question": "HELLO?", "answer": "YES."}]
    shouting = findings(jsonl(tmp_path, rows))["shouting"]
    assert (shouting.text, shouting.rows) == ("1 row in capitals (row 61)", (61,))


def test_resemblance_is_the_share_of_three_word_sequences():
    """Counted by hand: another last word differs by one sequence a side, so 9 of 11 are shared."""
    # 12 words have ten sequences; changing the last word changes one: nine in common, eleven in
    # all.
    left, right = b"a b c d e f g h i j k l", b"a b c d e f g h i j k m"
    assert resemblance(sketch(left), sketch(right)) == 9 / 11
    assert resemblance(sketch(left), sketch(left)) == 1
    assert (resemblance(sketch(left), sketch(b"n o p q r s t")), sketch(b"two words")) == (0, ())
    # The smallest 64 hashes estimate the overlap of a thousand words within a tenth or so.
    words = sentence(1, 1000)
    changed = " ".join([*words.split()[:900], sentence(2, 100)])
    estimate = resemblance(sketch(words.encode()), sketch(changed.encode()))
    assert estimate == pytest.approx(898 / (998 + 998 - 898), abs=0.12)


def test_a_large_file_is_compared_on_a_sample_of_flat_size():
    """Beyond the sample's size rows replace others at random, the same ones every time."""
    first, second = RandomSample(SAMPLED_ROWS), RandomSample(SAMPLED_ROWS)
    for row in range(1, 3 * SAMPLED_ROWS):
        first.offer(lambda row=row: row)
        second.offer(lambda row=row: row)
    assert (first.kept, len(first.kept)) == (second.kept, SAMPLED_ROWS)
    late = sum(row > SAMPLED_ROWS for row in first.kept)
    assert 0.6 < late / SAMPLED_ROWS < 0.73  # two thirds of the rows came late


def pair(number, **more):
    row = {"question": f"What is the number after {number}?", "answer": f"It is {number + 1}."}
    return row | more


ROWS = [pair(number) for number in range(60)]


def compared(folder, held, rows=ROWS):
    """Id -> finding where these rows are held out."""
    evaluation = Depth(evaluation=jsonl(folder, held, "b.jsonl"), strict=False)
    return findings(jsonl(folder, rows), evaluation)


def test_rows_in_both_files_are_counted_and_named(tmp_path, approved):
    """A repeated row, one typed differently, and a repeated question are told apart."""
    typed = {"question": "what is the number after 5", "answer": "IT IS 6"}
    found = compared(tmp_path, [pair(3), pair(100), typed, pair(7, answer="Eight.")])
    measured = profile(tmp_path / "a.jsonl", Depth(evaluation=tmp_path / "b.jsonl")).measures
    approved([found, measured["evaluation"]])


def test_an_evaluation_file_of_another_kind_is_said(tmp_path):
    """Texts cannot evaluate questions; nothing is said where nothing overlaps, or a gap is named."""
    assert compared(tmp_path, [pair(100), pair(101)]) == {}
    assert "evaluation-of-another-kind" in compared(tmp_path, [{"text": "A story."}])
    with pytest.raises(InputError, match="nowhere"):
        profile(tmp_path / "a.jsonl", Depth(evaluation=tmp_path / "nowhere.jsonl"))


def test_all_of_a_large_file_is_compared(tmp_path):
    """No sample is taken: a copy in the last row is found, and calls are part of a row."""
    rows = [
        {"question": f"Question {n} " + "x" * 500, "answer": f"Answer {n}"} for n in range(10_000)
    ]
    assert compared(tmp_path, rows[-1:], rows)["evaluation-rows-in-training"].rows == (10_000,)
    call = {"type": "function", "function": {"name": "track", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "Where is it?"}, answer]}
    found = compared(tmp_path, [row], [row])
    assert "evaluation-rows-in-training" in found
    assert "evaluation-requests-in-training" not in found


# Made up for this test; the numbers have valid check digits (the card is Visa's test number, the
# IBAN the registry's example).


def look(text: str) -> PrivateData:
    """What a thorough check has seen after one row."""
    seen = PrivateData(Subject(kind="raw_text", thorough=True))
    seen.see(SeenRow(Example(row=7, text=text), text, b"", 0, 0))
    return seen


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "Write to anna.kovacs@firma.de please."),
        ("phone", "Call +49 170 1234567 after nine."),
        ("phone", "Call (212) 664-7665 after nine."),
        ("card-number", "My card is 4111 1111 1111 1111."),
        ("iban", "Pay to DE89 3704 0044 0532 0130 00 today."),
        ("social-security-number", "SSN 123-45-6789"),
        ("api-key", "key = sk-abc123DEF456ghi789jkl012"),
        ("aws-key", "AKIAIOSFODNN7EXAMPLE"),
        ("access-token", "token ghp_" + "a1B2" * 9),
        ("access-token", "hf_" + "aB3dE" * 7),
        ("access-token", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
        ("password", "password: hunter2!x"),
        ("credentials-in-url", "postgres://bob:s3cretpw@db.host.io/x"),
        ("private-key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
    ],
)
def test_each_kind_is_suspected_and_never_shown(kind, text):
    """A text of each kind is counted, and what is shown of it holds none of its middle."""
    seen = look(text)
    (name,) = {f"secret-{kind}", f"personal-data-{kind}"} & set(seen.tallies)
    assert (seen.tallies[name].count, seen.tallies[name].rows) == (1, [7])
    assert "*" in seen.shown[name] or "…" in seen.shown[name]
    secrets = {"password": "hunter2!x", "private-key": "MIIE"}
    assert secrets.get(kind, max(text.split(), key=len)) not in seen.shown[name]


@pytest.mark.parametrize(
    "text",
    [
        "In 1999-2004 there were 1,000,000,000 of them, 3.14159265358979 times.",
        "Order 1234 5678 9012 came on 2024-01-02 10:20:30.",
        "card 4111 1111 1111 1112",  # wrong check digit
        "DE89 3704 0044 0532 0130 01",
        "ISBN 978-3-16-148410-0, doi 10.1038/s41586-020-2649-2, host 192.168.100.200",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "@user said: hello @other",
        "password: your_password, or password = get_password()",
        "sk-this-is-only-a-long-slug-name",
        "see https://a.b/c:d and git@github",
    ],
)
def test_ordinary_numbers_and_names_are_not_suspected(text):
    """Dates, counts, book numbers, wrong check digits and placeholders are left alone."""
    assert look(text).tallies == {}


def test_findings_name_kind_count_and_rows(tmp_path, approved):
    """Both are warnings with their rows; the data itself is not in the profile."""
    rows = pairs(60)
    rows[4]["answer"] = "Use the key sk-abc123DEF456ghi789jkl012 for it."
    rows[8]["answer"] = "Ask anna.kovacs@firma.de or bo@firma.de."
    rows[9]["question"] = "Is anna.kovacs@firma.de right?"
    found = findings(jsonl(tmp_path, rows))
    approved(found)
    assert not re.search("sk-abc123|anna.kovacs", str(found))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I am {{name}}, made by {{ author }}.", ["{{name}}", "{{ author }}"]),
        ("Summarize this: {topic}", ["{topic}"]),
        ("Hello {customer_name}!", ["{customer_name}"]),
        ("Dear <NAME>, thank you.", ["<NAME>"]),
        ("Write to <your e-mail here>.", ["<your e-mail here>"]),
        ("Kind regards,\n[Your Name]", ["[Your Name]"]),
        ("Dear [Customer Name],", ["[Customer Name]"]),
        ("It is due on [INSERT DATE HERE].", ["[INSERT DATE HERE]"]),
        ("Hello %s, welcome.", ["%s"]),
        ("TODO", ["TODO"]),
        ("An answer.\nTODO: say more", ["TODO"]),
        ("Lorem ipsum dolor sit amet", ["Lorem ipsum dolor"]),
        ("<think>\nShort.\n</think>\nI am {{name}}.", ["{{name}}"]),
    ],
)
def test_a_placeholder_is_found_as_it_is_written(text, found):
    """Each of the usual ways to write something that is to be filled in."""
    assert unfilled(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "def greet(name):\n    return f'Hello {name}'",
        "const text = `Hello ${name}`;",
        'printf("%s has %d", name, count);',
        "print('%s' % name)",
        "greeting = 'Hello {name}'",
        "raise ValueError(\n    'unknown %s'\n)",
        "log('%s' % self.name)",
        "Write `{{ name }}` where the name belongs.",
        "```jinja\nHello {{ name }}\n```",
        "{% for name in names %}{{ name }}{% endfor %}",
        "run: echo ${{ secrets.TOKEN }}",
        "<template><b>{{ title }}</b></template>",
        r"The value is $\frac{{name}}{2}$ and x_{number}.",
        "title={{Attention Is All You Need}}",
        '{"greeting": "Hello {name}"}',
        '[{"question": "<NAME>"}]',
        "GET /users/{user_id}/orders",
        "The set {name, number} has two members; {x} has one.",
        "See [Name](https://example.org) and [Date][1].",
        "rows[Name] and List<NAME>",
        "[Question]\nWhat is it?\n[Context]\nA text.",
        "He said [laughs] that <EOS> ends it.",
        "100%s, 50 % sure, 20%discount",
        "Here is your TODO list.\nTODO list: milk",
        "What is lorem ipsum?",
        "",
    ],
)
def test_code_formulas_and_markup_are_left_alone(text):
    """What holds the same signs rightly is no placeholder."""
    assert unfilled(text) == []


@pytest.mark.parametrize(
    "sign", ["\n", "\n ", " \n", "\t", "``` ", "print", "if x: ", "{{a ", "%(a", "eyJ-"]
)
def test_a_long_text_is_looked_through_once(sign):
    """No expression starts anew at each blank, word or token, which would take hours."""
    text, began_s = "TODO " + sign * 100_000 + "end", time.process_time()
    assert unfilled(text)[:1] == ["TODO"]
    look(text)
    assert time.process_time() - began_s < 4


MANNER = {
    "prompt": "Where is my parcel {n}?",
    "completion": "Hello! We trace parcel {n} for you. Your Kettle Team.",
}
TAUGHT_ROWS = {
    "facts": {"prompt": "What is the tax number of firm {n}?", "completion": "It is 77{n}41 W."},
    "manner": MANNER,
    "reading": {
        "prompt": "Text: the valve of pump {n} opens under pressure. " * 8
        + "What opens valve {n}?",
        "completion": "Pump {n}: the valve opens under pressure.",
    },
    # German writes every noun large: words count for nothing there, numbers do.
    "german": {
        "prompt": "Was ist mit Fall {n}?",
        "completion": "Bitte schicken Sie uns die Nummer, den Beleg und die Adresse zu Fall {n}.",
    },
}


@pytest.mark.parametrize(
    ("rows", "new", "least_held", "most_held"),
    [
        ("facts", 1.0, 0, 0.4),
        ("manner", 0.0, 0, 0.4),
        ("reading", 0.0, 0.9, 1),
        ("german", 0, 0, 1),
    ],
)
def test_names_numbers_and_words_beyond_the_request(tmp_path, rows, new, least_held, most_held):
    """Numbers that a request lacks are facts; what a tenth of the answers share is form."""
    file = tmp_path / "rows.jsonl"
    lines = [
        {key: text.format(n=100 + n) for key, text in TAUGHT_ROWS[rows].items()} for n in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = profile(str(file)).measures["new_facts"]
    assert found["answers_with_new_facts"] == new
    assert least_held <= found["answer_words_in_request"] <= most_held


def test_rows_that_teach_facts_are_said_before_a_card_is_rented(call, tmp_path):
    """Rows of facts are asked about before a card is rented; passages in the rows want a search."""
    for rows, expected in (("facts", "sft"), ("manner", "sft"), ("reading", "rag & sft")):
        file = tmp_path / f"{rows}.jsonl"
        lines = [
            {k: text.format(n=100 + n) for k, text in TAUGHT_ROWS[rows].items()} for n in range(600)
        ]
        file.write_text("\n".join(map(json.dumps, lines)))
        found = json.loads(call("--json", "--task", "qa", "--data", str(file), "--gpu", "H100")[1])
        assert found["recommendation"]["composition"] == f"{expected}+lora"
        said = any("evidence/facts-in-the-rows" in one for one in found["warnings"])
        assert said is (rows == "facts")


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
    found, examples = recognise(path), list(read_examples(path))
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
