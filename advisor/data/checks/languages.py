"""Which writing systems the texts use, and how many in Latin letters are English: what can be told
of their languages without guessing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, Subject

LOOKED_AT_CHARS = 60
# How Unicode begins the name of a letter -> the writing system.
NAMED = {"CJK": "Han", "HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana"} | {
    name.upper(): name
    for name in (
        "Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Devanagari", "Bengali",
        "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala",
        "Thai", "Lao", "Tibetan", "Myanmar", "Georgian", "Hangul", "Ethiopic", "Khmer", "Mongolian",
    )
}  # fmt: skip
# Words that hardly any English text of some length does without, and other languages do not have.
_ENGLISH = re.compile(
    r"\b(?:the|and|of|to|you|with|this|that|are|have|not|my|they|from|please|how)\b", re.IGNORECASE
)
ENGLISH_CHARS, FEWEST_WORDS = 400, 6
ENGLISH_ROWS = 200  # of the first, whose language is looked at


def script_of(text: str) -> str:
    """The script of most letters at the beginning of a text; 'none' without letters."""
    letters = filter(str.isalpha, text[:LOOKED_AT_CHARS])
    if text.isascii():
        return "Latin" if any(letters) else "none"
    named = (unicodedata.name(letter, "").split(" ")[0] for letter in letters)
    counts = Counter(NAMED.get(name, "other") for name in named)
    if "Japanese kana" in counts:  # Japanese is written in both
        return "Japanese"
    return counts.most_common(1)[0][0] if counts else "none"


def is_english(text: str) -> bool | None:
    """Whether a Latin text holds one of the commonest English words; None if too short to tell."""
    beginning = text[:ENGLISH_CHARS]
    if len(beginning.split()) < FEWEST_WORDS:
        return None
    return _ENGLISH.search(beginning) is not None


class Scripts(RowCheck):
    """Rows of each writing system."""

    place = 100

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.scripts: Counter[str] = Counter()
        self.english: Counter[bool | None] = Counter()

    def see(self, row: SeenRow) -> None:
        script = script_of(row.text)
        self.scripts[script] += 1
        if script == "Latin" and self.scripts.total() <= ENGLISH_ROWS:
            self.english[is_english(row.text)] += 1

    def measures(self) -> dict[str, Any]:
        scripts = [{"script": name, "rows": rows} for name, rows in self.scripts.most_common()]
        looked_at = self.english[True] + self.english[False]
        english = {"english": {"rows": self.english[True], "of": looked_at}} if looked_at else {}
        return {"scripts": scripts, **english}
