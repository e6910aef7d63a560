"""Data that do not suit the task are noticed before anything is advised."""

import json
import shlex

import pytest
from msgspec.structs import replace

from advisor.api import advise, advise_document
from advisor.data import profile
from advisor.data.checks.answers import has_layout, is_code
from advisor.ground.errors import InputError
from advisor.situation.data import misfit, row_words

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."
PROGRAM = "def total_{0}(rows):\n    return sum(row.price for row in rows)\n"


def write(folder, rows, name="rows"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stated(task, path, **data):
    return {"task": task, "data": {"path": path, **data}, "gpu": {"name": "RTX 4090"}}


def pairs(answer):
    return [{"question": ASKED.format(n), "answer": answer.format(n)} for n in range(300)]


ROWS = {
    "categories": [
        {"body": ASKED.format(n), "category": ("Billing", "Shipping", "Returns")[n % 3]}
        for n in range(300)
    ],
    "replies": pairs(REPLIED),
    "code": pairs(PROGRAM),
    "forms": pairs('{{"order": {0}, "city": "Bonn"}}'),
    "calls": pairs('{{"name": "find_order", "arguments": {{"number": {0}}}}}'),
    "short answers": [
        {"question": ASKED.format(n), "answer": ("spam", "no spam")[n % 2]} for n in range(300)
    ],
    "documents": [{"text": f"Chapter {n}. " + REPLIED.format(n) * 3} for n in range(300)],
    "preferences": [
        {"prompt": ASKED.format(n), "chosen": REPLIED.format(n), "rejected": f"No, {n}."}
        for n in range(300)
    ],
}
SUITED = [
    *((task, "documents") for task in ("customer_service", "qa", "domain_expertise")),
    *((task, "categories") for task in ("classification", "other", "multi_department")),
    *((task, "replies") for task in ("customer_service", "reasoning")),
    ("classification", "short answers"), ("code", "code"), ("structured_output", "forms"),
    ("tool_use", "calls"), ("chat_assistant", "preferences"),
]  # fmt: skip
UNSUITED = [
    *((task, "categories") for task in ("customer_service", "qa", "generation", "tool_use")),
    *(("classification", rows) for rows in ("documents", "replies", "preferences")),
    *((task, rows) for task in ("tool_use", "code", "structured_output")
      for rows in ("replies", "documents")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "rows"), SUITED)
def test_data_that_suit_the_task_need_no_words(tmp_path, task, rows):
    """Rows that suit the task need no words, nor do three answers, too few to be categories."""
    assert misfit(task, profile(write(tmp_path, ROWS[rows]))) is None
    assert misfit("classification", profile(write(tmp_path, ROWS["replies"][:3]))) is None


@pytest.mark.parametrize(("task", "rows"), UNSUITED)
def test_data_that_do_not_suit_the_task_are_named_with_a_row(approved, tmp_path, task, rows):
    """The first warning says what the rows hold and shows one; without a word no plan is made."""
    path = write(tmp_path, ROWS[rows])
    wrong = misfit(task, profile(path))
    document = advise_document(stated(task, path))
    assert document["warnings"][0] == f"data: {wrong.text}"
    approved([wrong.text, wrong.blocks, wrong.suits, document["missing"]])
    assert not (wrong.blocks and document["plan"])


def test_a_stated_mapping_or_force_takes_the_data_as_they_are(call, tmp_path):
    """Whoever names the columns has looked at them, and --force is a word too; the warning stays."""
    path = write(tmp_path, ROWS["categories"])
    mapping = {"text": "body", "label": "category"}
    document = advise_document(stated("customer_service", path, mapping=mapping))
    asked = ("--json", "--task", "customer_service", "--gpu", "RTX 4090", "--data", path)
    refused, forced = (json.loads(call(*asked, *more)[1]) for more in ((), ("--force",)))
    plans = [one["plan"] for one in (document, refused, forced)]
    assert [plan is not None for plan in plans] == [True, False, True]
    assert "no reply" in document["warnings"][0]


@pytest.mark.parametrize(
    ("task", "mapping"),
    [
        ("customer_service", {"question": "body", "answer": "Agent Reply"}),
        ("classification", {"text": "body", "label": "category"}),
    ],
)
def test_the_task_decides_which_columns_are_taken(tmp_path, task, mapping):
    """A table with a text, its category and a reply holds what either task needs."""
    rows = [{**row, "Agent Reply": REPLIED.format(n)} for n, row in enumerate(ROWS["categories"])]
    assert advise(stated(task, write(tmp_path, rows))).situation.data.mapping == mapping


def test_a_guess_is_pinned_in_the_plan(tmp_path):
    """A run reads the columns that the person was shown."""
    rows = [{"Frage": ASKED.format(n), "Antwort": REPLIED.format(n)} for n in range(300)]
    document = advise_document(stated("qa", write(tmp_path, rows)))
    assert document["plan"]["data"]["mapping"] == {"question": "Frage", "answer": "Antwort"}
    assert "`Frage`" in document["warnings"][0]


def test_columns_nobody_can_tell_apart_are_an_error_with_the_whole_command(tmp_path):
    """The command in the error reads the file, task and all."""
    rows = [
        {"f1": f"The tower {n} is rather high.", "f2": f"It was built in 19{n:02d} or so."}
        for n in range(20)
    ]
    path = write(tmp_path, rows, "it's mine")
    with pytest.raises(InputError) as caught:
        advise(stated("qa", path))
    command = f"advise --task qa --data {shlex.quote(path)} --map question=f1 answer=f2"
    assert command in caught.value.faults[0].hint


def test_a_folder_of_files_says_how_to_name_the_teams(tmp_path):
    """One data set, and the flags to split it; other tasks read the folder as it is."""
    folder = tmp_path / "our data"
    folder.mkdir()
    paths = {
        name: write(folder, pairs(f"{name}: {REPLIED}"), name) for name in ("hr", "it", "legal")
    }
    advice, other = (advise(stated(task, str(folder))) for task in ("multi_department", "qa"))
    assert advice.situation.tasks == {}
    (said,) = (text for text in advice.warnings if "one for each file" in text)
    quoted = [shlex.quote(f"{name}={path}") for name, path in paths.items()]
    assert all(f"--tasks {flag}" in said for flag in quoted)
    assert other.situation.data.rows == 900


@pytest.mark.parametrize(
    ("check", "text", "found"),
    [
        (is_code, PROGRAM.format(1), True),
        (is_code, "SELECT name FROM customers WHERE city = 'Bonn';", True),
        (is_code, "```python\nprint(1)\n```", True),
        (is_code, "for (int i = 0; i < n; i++) {\n  total += a[i];\n}", True),
        (is_code, "#!/bin/sh\nfor f in *.txt; do\n  echo $f;\ndone", True),
        (is_code, "const f = (x) => x + 1;\nexport default f;", True),
        (is_code, "<div class='a'>\n  <p>text</p>\n</div>;", True),
        # Letters with semicolons and brackets are prose.
        (is_code, REPLIED.format(3), False),
        (is_code, "Dear Kim,\nthank you for your order; it arrives tomorrow (before noon).\nBest", False),
        (is_code, "Use the following steps: open the menu, choose File, then Save.", False),
        (is_code, "The class of 1999 met in Bonn. Return the form by May.", False),
        # JSON, XML, tables and named lines are layouts.
        (has_layout, '{"a": 1}', True),
        (has_layout, "<a><b/></a>", True),
        (has_layout, "Name: Kim\nCity: Bonn", True),
        (has_layout, "| a | b |\n|---|---|\n| 1 | 2 |", True),
        (has_layout, "{not json}", False),
        (has_layout, REPLIED.format(3), False),
    ],
)  # fmt: skip
def test_programs_and_layouts_are_known_by_their_signs(check, text, found):
    """In several languages and formats that a program reads."""
    assert bool(check(text)) is found


def test_a_row_is_shown_shortened_on_one_line(tmp_path):
    """Line breaks and long texts do not leave their line."""
    rows = [{"question": "a\nb " * 90, "answer": f"{n}\tc"} for n in range(9)]
    found = profile(write(tmp_path, rows))
    assert "\n" not in row_words(found)
    assert len(row_words(found)) < 120
    assert row_words(found).endswith('..." -> "0 c"')
    assert row_words(replace(found, sample=None)) == "an empty row"
