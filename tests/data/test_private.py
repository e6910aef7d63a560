"""Secrets and personal data, suspected, counted and masked; placeholders that nobody filled in."""

import time

import pytest

from advisor.data.checks import SeenRow, Subject
from advisor.data.checks.placeholders import unfilled
from advisor.data.checks.private import PrivateData
from advisor.data.example import Example
from tests.data.conftest import findings, jsonl, pairs

# Made up for this test; the numbers have valid check digits (the card is Visa's test number, the
# IBAN the registry's example).
SUSPICIOUS = [
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
]
HARMLESS = [
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
]


def look(text: str) -> PrivateData:
    """What a thorough check has seen after one row."""
    seen = PrivateData(Subject(kind="raw_text", thorough=True))
    seen.see(SeenRow(Example(row=7, text=text), text, b"", 0, 0))
    return seen


@pytest.mark.parametrize(("kind", "text"), SUSPICIOUS)
def test_each_kind_is_suspected_and_never_shown(kind, text):
    """A text of each kind is counted, and what is shown of it holds none of its middle."""
    seen = look(text)
    (name,) = {f"secret-{kind}", f"personal-data-{kind}"} & set(seen.tallies)
    assert (seen.tallies[name].count, seen.tallies[name].rows) == (1, [7])
    assert "*" in seen.shown[name] or "…" in seen.shown[name]
    secrets = {"password": "hunter2!x", "private-key": "MIIE"}
    assert secrets.get(kind, max(text.split(), key=len)) not in seen.shown[name]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_numbers_and_names_are_not_suspected(text):
    """Dates, counts, book numbers, wrong check digits and placeholders are left alone."""
    assert look(text).tallies == {}


def test_findings_name_kind_count_and_rows(tmp_path):
    """Both are warnings with their rows; the data itself is not in the profile."""
    rows = pairs(60)
    rows[4]["answer"] = "Use the key sk-abc123DEF456ghi789jkl012 for it."
    rows[8]["answer"] = "Ask anna.kovacs@firma.de or bo@firma.de."
    rows[9]["question"] = "Is anna.kovacs@firma.de right?"
    found = findings(jsonl(tmp_path, rows))
    key, mail = found["secret-api-key"], found["personal-data-email"]
    assert (key.severity, key.count, key.rows) == ("warning", 1, (5,))
    assert (mail.count, mail.rows) == (2, (9, 10))
    text = " ".join(one.text for one in found.values())
    assert "sk-abc123" not in text
    assert "anna.kovacs" not in text
    assert "sk-a****" in text


# -------------------------------------------------------------------------- placeholders


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


def test_many_are_a_warning_and_few_a_note(tmp_path):
    """The share of the rows decides, and the finding counts rows, answers and each placeholder. A
    request for a template is answered with placeholders.
    """
    rows = [{"prompt": f"Who are you, {i}?", "completion": f"I am robot {i}."} for i in range(100)]
    for number in range(3):
        rows[number]["completion"] += " I am {{name}}."
    rows[3]["prompt"] += " Answer {question}."
    few = findings(jsonl(tmp_path, rows))["placeholders-in-text"]
    assert (few.severity, few.count, few.rows) == ("note", 4, (1, 2, 3, 4))
    for said in ("4 of 100 rows", "3 of them in an answer", "{{name}} (3x), {question} (1x)"):
        assert said in few.text
    rows[4]["prompt"] += " Answer {question}."
    assert findings(jsonl(tmp_path, rows))["placeholders-in-text"].severity == "warning"
    rows = [
        {"prompt": f"Write e-mail template {i}.", "completion": f"Dear [Customer Name], {i}"}
        for i in range(60)
    ]
    assert "placeholders-in-text" not in findings(jsonl(tmp_path, rows))


@pytest.mark.parametrize(
    "sign", ["\n", "\n ", " \n", "\t", "``` ", "print", "if x: ", "{{a ", "%(a", "eyJ-"]
)
def test_a_long_text_is_looked_through_once(sign):
    """No expression begins anew at each blank, line, word or beginning of a token: this would take
    hours.
    """
    text, began_s = "TODO " + sign * 100_000 + "end", time.process_time()
    assert unfilled(text)[:1] == ["TODO"]
    look(text)
    assert time.process_time() - began_s < 4
