"""Classes: how many there are, few rows in some, and one class written in two ways."""

import json
from collections import Counter

from advisor.data import profile
from advisor.data.checks.labels import class_findings, plain_label
from advisor.data.measure import Depth


def test_a_sorted_file_has_all_its_classes_counted(tmp_path):
    """The first rows hold few of the classes; no number of theirs is told as that of the file."""
    rows = [
        {"text": f"message {number}", "category": f"class {number // 40}"} for number in range(3080)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = profile(path, Depth(whole=True))
    assert found.measures["class_count"] == 77
    assert "of 8 values" not in found.why
    assert "its class in `category`" in found.why


def test_few_rows_of_a_class_are_named_with_their_count():
    """The rarest first."""
    counts = Counter({"billing": 90, "rare": 2, "rarer": 1})
    found = {one.id: one for one in class_findings(counts, enough_rows=True)}
    assert "2 of 3 classes have fewer than 8 rows: 'rarer' (1), 'rare' (2)" in (
        found["rare-classes"].text
    )
    assert "unbalanced-classes" in found
    assert not list(class_findings(Counter({"a": 3, "b": 4}), enough_rows=False))


def test_one_class_written_in_two_ways_is_named_and_signs_keep_classes_apart():
    """Capitals, spaces, underscores and hyphens; C, C++ and C# are three languages, -1 is not 1."""
    counts = Counter(
        {
            "Card lost": 20,
            "card_lost ": 10,
            "CARD-LOST": 9,
            "C": 9,
            "C++": 9,
            "C#": 9,
            "-1": 9,
            "1": 9,
        }
    )
    (found,) = class_findings(counts, enough_rows=True)
    assert found.id == "labels-spelt-alike"
    assert "'Card lost' (20) / 'card_lost ' (10) / 'CARD-LOST' (9)" in found.text
    assert found.count == 1
    assert plain_label("C++") != plain_label("C#")
