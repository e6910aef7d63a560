"""Which writing systems the texts use: what can be told of their languages without guessing."""

from __future__ import annotations

import re
from bisect import bisect_right

# First code point of each block that matters -> script. Unicode 16, Blocks.txt, joined where
# neighbours share a script.
_BLOCKS = (
    (0x0000, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590,
    "Hebrew"), (0x0600, "Arabic"), (0x0700, "other"), (0x0750, "Arabic"),
    (0x0780, "other"), (0x08A0, "Arabic"), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00,
    "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, "Oriya"), (0x0B80, "Tamil"),
    (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00,
    "Thai"), (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Myanmar"),
    (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "other"), (0x1780,
    "Khmer"), (0x1800, "Mongolian"), (0x18B0, "other"), (0x1C80, "Cyrillic"),
    (0x1C90, "Georgian"), (0x1CC0, "other"), (0x1D00, "Latin"), (0x1F00, "Greek"), (0x2000, ""),
    (0x2C00, "other"), (0x2C60, "Latin"), (0x2C80, "other"),
    (0x2DE0, "Cyrillic"), (0x2E00, ""), (0x2E80, "Han"), (0x3000, ""), (0x3005, "Han"), (0x3008,
    ""), (0x3040, "Japanese kana"), (0x3100, "other"),
    (0x3130, "Hangul"), (0x3190, "other"), (0x31F0, "Japanese kana"), (0x3200, ""), (0x3400, "Han"),
    (0xA000, "other"), (0xA640, "Cyrillic"), (0xA6A0, "other"),
    (0xA720, "Latin"), (0xA800, "other"), (0xA960, "Hangul"), (0xA980, "other"), (0xAB30, "Latin"),
    (0xAB70, "other"), (0xAC00, "Hangul"), (0xD800, ""),
    (0xF900, "Han"), (0xFB00, "Latin"), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, ""),
    (0xFE70, "Arabic"), (0xFF00, ""), (0xFF66, "Japanese kana"),
    (0xFFA0, "Hangul"), (0xFFE0, ""), (0x10000, "other"), (0x1F000, ""), (0x20000, "Han"), (0x32000,
    "other"),
)  # fmt: skip
_STARTS = [start for start, _ in _BLOCKS]
_NAMES = [name for _, name in _BLOCKS]
LOOKED_AT_CHARS = 60
# Words that hardly any English text of some length does without, and other languages do not have.
_ENGLISH = re.compile(
    r"\b(?:the|and|of|to|you|with|this|that|are|have|not|my|they|from|please|how)\b", re.IGNORECASE
)
ENGLISH_CHARS, FEWEST_WORDS = 400, 6


def script_of(text: str) -> str:
    """The script that most letters at the beginning of a text are written in; 'none' where there
    are no letters.
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text[:LOOKED_AT_CHARS])) else "none"
    counts: dict[str, int] = {}
    for character in text[:LOOKED_AT_CHARS]:
        if character.isalpha():
            name = _NAMES[bisect_right(_STARTS, ord(character)) - 1]
            if name:
                counts[name] = counts.get(name, 0) + 1
    if "Japanese kana" in counts:  # Japanese is written in both
        return "Japanese"
    return max(counts, key=lambda name: counts[name]) if counts else "none"


def is_english(text: str) -> bool | None:
    """Whether a text in Latin letters holds one of the commonest English words; None where it is
    too short to tell.
    """
    beginning = text[:ENGLISH_CHARS]
    if len(beginning.split()) < FEWEST_WORDS:
        return None
    return _ENGLISH.search(beginning) is not None
