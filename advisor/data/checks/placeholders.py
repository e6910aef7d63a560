"""Text that somebody meant to fill in and did not: {{name}}, {topic}, <NAME>, [Your Name], %s,
TODO, lorem ipsum.

Code, LaTeX, JSON and texts that speak of templates hold the same signs rightly: these are left
alone, so that what is found is nearly always a mistake. What is missed for it is missed on purpose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from advisor.data.checks import RowCheck, SeenRow, Subject, findings_of
from advisor.data.example import Example
from advisor.ground.types import DataFinding

# From this share of the rows it is how the data were made; below it, single letters and forms.
WARNED_SHARE = 0.05
KEPT = 500  # different placeholders
NAMED = 4  # of them in the finding

# Expressions are compiled where they are needed: nearly no data need any.
# Words that name what a slot of a prompt or a letter is filled with.
SLOTS = (
    r"\b(?:names?|user|username|customer|client|person|company|organi[sz]ation|product|brand|city"
    r"|country|location|address|email|phone|date|time|topic|subject|title|question|answer|input"
    r"|output|context|instructions?|prompt|query|text|document|article|passage|message|response"
    r"|history|persona|character|role|language|order|price|amount|number|id|url|link|author|agent"
    r"|assistant|bot|model|summary|sentence|words?|content|label|category)\b"
)
# In square brackets section headings ([Question], [Context]) are usual: fewer words count.
OF_LETTERS = (
    r"\b(?:name|company|organi[sz]ation|product|customer|client|person|city|address|email|phone"
    r"|date|recipient)\b"
)
# What a placeholder begins with -> the rest of it, and the words of which it must hold one. Each
# expression begins with its sign, which Python's `re` searches for a hundred times as fast.
KINDS: tuple[tuple[str, str, str | None], ...] = (
    ("{{", r"\{\{(?<![\w$\\^{}=#%]\{\{) *[A-Za-z_][\w .-]{1,40}\}\}(?!\})", None),
    ("{", r"\{(?<![\w$\\^{}/=]\{)(?<!f[\"']\{)[A-Za-z][A-Za-z_]{1,30}\}(?![\w}])", SLOTS),
    ("<", r"<(?<![\w<\\]<)(?i:your|insert|enter)[ _][^<>\n]{1,40}>", None),
    ("<", r"<(?<![\w<\\]<)[A-Z]+(?:[ _-][A-Z]+){0,3}>", SLOTS),
    (
        "[",
        r"\[(?<![\w\]\\!]\[)(?i:your|insert|enter (?:your|the|a)|recipient(?:'s)?)"
        r" [^\[\]\n]{1,60}\](?![(\[:{])",
        None,
    ),
    ("[", r"\[(?<![\w\]\\!]\[)[A-Z][A-Za-z']*(?: [A-Z][A-Za-z']*){0,3}\](?![(\[:{])", OF_LETTERS),
    *((sign, rf"{sign}(?<![^\n]{sign})\b(?! list)", None) for sign in ("TODO", "TBD", "FIXME")),
    ("orem ipsum dolor", "[Ll]orem ipsum dolor", None),
    ("%", r"%(?<![\w%\\]%)(?:\(\w+\))?[sd]\b", None),
)
QUOTED_CODE = r"(?s)```.*?(?:```|\Z)|`[^`\n]*`"
# Blanks before a word are those of its own line, else a page of empty lines is read once for each.
INDENT = r"[^\S\n]"
CODE = (
    rf"(?m)^{INDENT}*(?:def |class |import |from \w+ import|\#include|public |private |function "
    r"|const |let |var |SELECT |package |return )"
    rf"|\bself\.\w|^{INDENT}*(?:if|for|elif|else|while|try|with|except)\b[^\n]*:\s*$"
    rf"|^{INDENT}*raise \w|^{INDENT}*[\w.]+ \+?= \S|^{INDENT}+[\"')\]],?\s*$|\w=\w"
    r"|[;{]\s*$|\{%|</(?!think)\w|/>|=>|\)\s*\{|\(\);|print\w{0,20}\(|\.format\(|\[\["
    r"|\\(?:begin|frac|math\w+|text\w*|sum|left|right|alpha|cdot|sqrt|cite|ref)\b"
)
JSON_START = r"\s*(?:\{\s*\"|\[\s*[\[{\"])"
OF_TEMPLATES = (
    r"(?i)\b(?:templat\w+|placeholders?|jinja2?|mustache|handlebars|f-strings?|format strings?"
    r"|printf|regex\w*|latex|fill in the blanks?|mad libs?)\b"
)


def unfilled(text: str) -> list[str]:
    """The placeholders in a text as they are written, each once."""
    if not _found(text) or re.match(JSON_START, text):
        return []
    prose = re.sub(QUOTED_CODE, " ", text)
    if re.search(CODE, prose):
        return []
    return list(dict.fromkeys(said for _, said in sorted(_found(prose))))


def _found(text: str) -> list[tuple[int, str]]:
    """(where, what) of everything in a text that looks like a placeholder."""
    return [
        (match.start(), match[0])
        for sign, pattern, words in KINDS
        if sign in text
        for match in re.finditer(pattern, text)
        if words is None or re.search(words, match[0].lower().replace("_", " "))
    ]


class Placeholders(RowCheck):
    """Placeholders in the rows."""

    place = 30

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.shown: Counter[str] = Counter()

    def see(self, row: SeenRow) -> None:
        if not _found(row.text) or re.search(OF_TEMPLATES, row.text):
            return
        example = row.example
        parts = [(example.text, True)] if example.text is not None else _turns(example)
        found = [(name, is_answer) for part, is_answer in parts for name in unfilled(part)]
        if not found:
            return
        self.tallies["placeholders-in-text"].add(row.number)
        self.counts["answers"] += any(is_answer for _, is_answer in found)
        for name in dict.fromkeys(name for name, _ in found):
            if name in self.shown or len(self.shown) < KEPT:
                self.shown[name] += 1

    def findings(self) -> Iterator[DataFinding]:
        tally, documents = self.tallies["placeholders-in-text"], self.about.kind == "raw_text"
        answers, rows = self.counts["answers"], self.about.rows
        named = ", ".join(f"{name} ({times:,}x)" for name, times in self.shown.most_common(NAMED))
        more = ", ..." if len(self.shown) > NAMED else ""
        where = "" if documents else f", {answers:,} of them in an answer"
        then = "the model learns to write them" if documents or answers else "fill them in"
        text = (
            f"{tally.count:,} of {rows:,} rows hold placeholders that nobody filled in{where}:"
            f" {named}{more}; {then}"
        )
        severity = "warning" if tally.count >= WARNED_SHARE * rows else "note"
        yield from findings_of(tally, "placeholders-in-text", severity, text)


def _turns(example: Example) -> list[tuple[str, bool]]:
    """(text, whether it is an answer) of every turn."""
    turns = [(turn.content, turn.role == "assistant") for turn in example.messages]
    sides = (*example.chosen, *example.rejected)
    return [*turns, *((turn.content, True) for turn in sides)]
