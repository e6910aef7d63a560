"""What answers hold that their requests do not: measured while the rows are read."""

import json

import pytest

from advisor.data import profile

MANNER = {
    "prompt": "Where is my parcel {n}?",
    "completion": "Hello! We trace parcel {n} for you. Your Kettle Team.",
}
ROWS = {
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
    lines = [{key: text.format(n=100 + n) for key, text in ROWS[rows].items()} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = profile(str(file)).measures["new_facts"]
    assert found["answers_with_new_facts"] == new
    assert least_held <= found["answer_words_in_request"] <= most_held


def test_rows_that_teach_facts_are_said_before_a_card_is_rented(call, tmp_path):
    """Rows of facts are asked about before a card is rented; passages in the rows want a search."""
    for rows, expected in (("facts", "sft"), ("manner", "sft"), ("reading", "rag & sft")):
        file = tmp_path / f"{rows}.jsonl"
        lines = [{k: text.format(n=100 + n) for k, text in ROWS[rows].items()} for n in range(600)]
        file.write_text("\n".join(map(json.dumps, lines)))
        found = json.loads(call("--json", "--task", "qa", "--data", str(file), "--gpu", "H100")[1])
        assert found["recommendation"]["composition"] == f"{expected}+lora"
        said = any("evidence/facts-in-the-rows" in one for one in found["warnings"])
        assert said is (rows == "facts")
