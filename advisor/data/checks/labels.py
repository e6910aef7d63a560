"""What is conspicuous about the classes of labelled texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, Subject, finding
from advisor.data.checks.size import FEW_ROWS
from advisor.ground.types import DataFinding

KEPT_CLASSES = 1000
SHOWN_CLASSES = 50
FEW_PER_CLASS = 8  # SetFit (arXiv:2209.11055) learns from eight labelled texts a class
UNBALANCED = 20  # times as many rows in the largest class as in the smallest
NAMED = 5
AROUND = " \t\r\n.,;:!?\"'"
BETWEEN_WORDS = re.compile(r"[\s_]+|(?<=\w)-(?=\w)")


class Classes(RowCheck):
    """Rows of each class."""

    place = 81

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.classes: Counter[str] = Counter()

    def see(self, row: SeenRow) -> None:
        label = row.example.label
        if label is not None and (len(self.classes) < KEPT_CLASSES or label in self.classes):
            self.classes[label] += 1

    def findings(self) -> Iterator[DataFinding]:
        # of one class alone it is said that every answer is the same
        if self.about.format == "classification" and len(self.classes) > 1:
            yield from class_findings(self.classes, enough_rows=self.about.rows >= FEW_ROWS)

    def measures(self) -> dict[str, Any]:
        if not self.classes:
            return {}
        shown = self.classes.most_common(SHOWN_CLASSES)
        return {
            "classes": [{"label": label, "rows": count} for label, count in shown],
            "class_count": len(self.classes),
            "class_least": min(self.classes.values()),
        }


def class_findings(classes: Counter[str], *, enough_rows: bool) -> Iterator[DataFinding]:
    """How the rows spread over the classes, classes of few rows, and labels written in two ways.

    Args:
        classes: Label -> rows.
        enough_rows: There are so many rows that a class of few is worth a word of its own.
    """
    (largest, most), (smallest, least) = classes.most_common()[0], classes.most_common()[-1]
    if most >= UNBALANCED * least:
        text = (
            f"{len(classes):,} classes, the largest '{largest[:40]}' with {most:,} rows, the"
            f" smallest '{smallest[:40]}' with {least:,}: look at each class in the result, since a"
            " model that always says the largest is right often"
        )
        yield finding("unbalanced-classes", "note", text, most)
    rare = sorted((count, name) for name, count in classes.items() if count < FEW_PER_CLASS)
    if rare and enough_rows:
        named = ", ".join(f"'{name[:40]}' ({count})" for count, name in rare[:NAMED])
        more = ", ..." if len(rare) > NAMED else ""
        text = (
            f"{len(rare):,} of {len(classes):,} classes have fewer than {FEW_PER_CLASS} rows:"
            f" {named}{more}"
        )
        yield finding("rare-classes", "warning", text, len(rare))
    spellings: dict[str, list[str]] = {}
    for name in classes:
        spellings.setdefault(plain_label(name), []).append(name)
    twins = [names for plain, names in spellings.items() if plain and len(names) > 1]
    if twins:
        named = "; ".join(
            " / ".join(f"'{name[:40]}' ({classes[name]:,})" for name in names)
            for names in twins[:3]
        )
        text = (
            "labels that differ only in capitals, spaces or signs count as different classes:"
            f" {named}"
        )
        yield finding("labels-spelt-alike", "warning", text, len(twins))


def plain_label(label: str) -> str:
    """A label without capitals and without a full stop or quotes around it, one space between its
    words: C++ and C# stay apart.
    """
    return " ".join(filter(None, BETWEEN_WORDS.split(label.casefold().strip(AROUND))))
