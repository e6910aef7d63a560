"""Placeholders that nobody filled in are found, and what only looks like one is left alone."""

import pytest

from advisor.data.checks.placeholders import unfilled
from tests.data.conftest import findings, jsonl


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


def found_in(tmp_path, rows):
    return findings(jsonl(tmp_path, rows)).get("placeholders-in-text")


def test_many_are_a_warning_and_few_a_note(tmp_path):
    """The share of the rows decides, and the finding counts rows, answers and each placeholder."""
    rows = [{"prompt": f"Who are you, {i}?", "completion": f"I am robot {i}."} for i in range(100)]
    for number in range(3):
        rows[number]["completion"] += " I am {{name}}."
    rows[3]["prompt"] += " Answer {question}."
    few = found_in(tmp_path, rows)
    assert (few.severity, few.count, few.rows) == ("note", 4, (1, 2, 3, 4))
    for said in ("4 of 100 rows", "3 of them in an answer", "{{name}} (3x), {question} (1x)"):
        assert said in few.text
    rows[4]["prompt"] += " Answer {question}."
    assert found_in(tmp_path, rows).severity == "warning"


def test_a_row_about_templates_is_left_alone(tmp_path):
    """A request for a template is answered with placeholders."""
    rows = [
        {"prompt": f"Write e-mail template {i}.", "completion": f"Dear [Customer Name], {i}"}
        for i in range(60)
    ]
    assert found_in(tmp_path, rows) is None


@pytest.mark.parametrize(
    "sign", ["\n", "\n ", " \n", "\t", "``` ", "print", "if x: ", "{{a ", "%(a"]
)
def test_a_long_text_is_looked_through_once(sign):
    """No expression begins anew at each blank, line or word: this would take hours."""
    assert unfilled("TODO " + sign * 100_000 + "end")[:1] == ["TODO"]
