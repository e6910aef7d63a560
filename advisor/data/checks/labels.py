"""What is conspicuous about the classes of labelled texts."""

from __future__ import annotations

import re
from collections import Counter

from advisor.ground.types import Finding

FEW_PER_CLASS = 8  # SetFit (arXiv:2209.11055) learns from eight labelled texts a class
UNBALANCED = 20  # times as many rows in the largest class as in the smallest
NAMED = 5
AROUND = " \t\r\n.,;:!?\"'"
BETWEEN_WORDS = re.compile(r"[\s_]+|(?<=\w)-(?=\w)")


def class_findings(classes: Counter[str], *, enough_rows: bool) -> list[Finding]:
    """How the rows spread over the classes, classes of few rows, and labels written in two ways.

    Args:
        classes: Label -> rows.
        enough_rows: There are so many rows that a class of few is worth a word of its own.
    """
    if not classes:
        return []
    findings: list[Finding] = []
    (largest, most), (smallest, least) = classes.most_common()[0], classes.most_common()[-1]
    if most >= UNBALANCED * least:
        text = (
            f"{len(classes):,} classes, the largest '{largest[:40]}' with {most:,} rows, the"
            f" smallest '{smallest[:40]}' with {least:,}: look at each class in the result, since a"
            " model that always says the largest is right often"
        )
        findings.append(Finding(id="unbalanced-classes", severity="note", text=text, count=most))
    rare = sorted((count, name) for name, count in classes.items() if count < FEW_PER_CLASS)
    if rare and enough_rows:
        named = ", ".join(f"'{name[:40]}' ({count})" for count, name in rare[:NAMED])
        more = ", ..." if len(rare) > NAMED else ""
        text = (
            f"{len(rare):,} of {len(classes):,} classes have fewer than {FEW_PER_CLASS} rows:"
            f" {named}{more}"
        )
        findings.append(Finding(id="rare-classes", severity="warning", text=text, count=len(rare)))
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
        findings.append(
            Finding(id="labels-spelt-alike", severity="warning", text=text, count=len(twins))
        )
    return findings


def plain_label(label: str) -> str:
    """A label without capitals and without a full stop or quotes around it, one space between its
    words: C++ and C# stay apart.
    """
    return " ".join(filter(None, BETWEEN_WORDS.split(label.casefold().strip(AROUND))))
