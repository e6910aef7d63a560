"""Answers: whether they are all the same, whether they can be checked, and what they look like
(code, calls of functions, a fixed layout, a category, or prose), judged on the first rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, Subject, finding
from advisor.data.example import Example
from advisor.ground.types import DataFinding

ANSWERS_COUNTED = 100_000  # rows whose answers are compared: enough to see a constant one
SHOWN_ANSWERS = 50  # different ones of which the beginning is kept
LOOKED_AT = 100  # rows: a few milliseconds
LOOKED_AT_CHARS = 1500  # of each answer
FEW = 8  # rows on which nothing is judged
_FENCE = re.compile(r"```\w")
# Signs of program text; two of different kinds make it code.
_CODE = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^\s*(?:def|class|func|fn|function|sub|module|interface|struct|public|private|static)\b"
        r".*[:({]\s*$|^\s*def \w+\(",
        r"^\s*(?:import|from|using|require|#include|package)\b\s*[\w<\"'.({]+",
        r"^\s*(?:return|elif|else:|if \(|for \(|while \(|end$|fi$|done$)",
        r"[;{}]\s*$",
        r"\b(?:SELECT|INSERT|UPDATE|DELETE|CREATE)\b[\s\S]+\b(?:FROM|INTO|SET|TABLE|WHERE)\b",
        r"(?:=>|:=|==|!=|\+=|&&|\|\||->|::)",
        r"^\s*\w[\w.\[\]]*\s*=\s*[^=\s]",
        r"\w+\([^)\n]*\)",
        r"</\w+>",
        r"^\s*(?:\$|#|//|--)\s*\w",
        r"^=\w+\(",
    )
)
_CALL = re.compile(
    r"<tool_call>|<function|\"(?:name|function)\"\s*:.*\"(?:arguments|parameters)\"\s*:"
    r"|^\s*Action(?: Input)?\s*:|^\s*\[?\w+(?:\.\w+)*\(.*\)\]?\s*$|tool_calls",
    re.DOTALL | re.MULTILINE,
)
_LINES = re.compile(r"^[ \t]*[\w \-/]{1,40}:[ \t]*\S", re.MULTILINE)


class AnswerShapes(RowCheck):
    """Answers as hashes, and how many of the first are of which kind."""

    place = 80

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.rows = 0
        self.answers: Counter[int] = Counter()
        self.beginnings: dict[int, str] = {}
        self.different: set[str] = set()

    def see(self, row: SeenRow) -> None:
        self.rows += 1
        example = row.example
        if self.rows <= LOOKED_AT:
            self._look(example)
        if self.about.kind not in ("paired", "unpaired_feedback"):
            return
        self.counts["checkable_answers"] += example.answer is not None
        messages = example.messages
        if self.rows > ANSWERS_COUNTED or messages[-1].extra:
            return
        answer = messages[-1].content
        if len(messages) > 3:  # conversations that end alike are not alike
            answer = "\n".join(turn.content for turn in messages if turn.role == "assistant")
        digest = hash(answer)
        self.answers[digest] += 1
        if len(self.beginnings) < SHOWN_ANSWERS:
            self.beginnings.setdefault(digest, answer[:60])

    def _look(self, example: Example) -> None:
        turns = example.chosen or example.messages
        said = [turn for turn in turns if turn.role == "assistant"]
        text = example.text if not turns else "\n".join(turn.content for turn in said)
        whole = text or example.answer or ""
        text = whole[:LOOKED_AT_CHARS]
        asked = "\n".join(turn.content for turn in example.messages if turn.role == "user")
        called = any(turn.extra for turn in said) or bool(example.tools)
        self.counts["code"] += is_code(text) or is_code(asked[:LOOKED_AT_CHARS])
        self.counts["calls"] += called or _CALL.search(text) is not None
        self.counts["layout"] += has_layout(whole)
        self.counts["characters"] += len(whole)
        self.different.add(text.strip()[:200])

    def findings(self) -> Iterator[DataFinding]:
        counted = sum(self.answers.values())
        if counted < 2:
            return
        digest, count = self.answers.most_common(1)[0]
        answer = self.beginnings.get(digest, "")
        shown = f": '{answer}'" if answer else ""
        if count == counted:
            severity = "error" if self.about.kind == "paired" else "warning"
            text = f"every row has the same answer{shown}: there is nothing to learn"
            yield finding("constant-answer", severity, text, count, ("sft", "classification"))
        elif self.about.format != "classification" and count >= max(5, 0.2 * counted):
            text = f"{count / counted:.0%} of the rows have the same answer{shown}"
            yield finding("repeated-answer", "warning", text, count)

    def measures(self) -> dict[str, Any]:
        measures: dict[str, Any] = {}
        if self.counts["checkable_answers"]:
            measures["checkable_answers"] = self.counts["checkable_answers"]
        if looked_at := min(self.rows, LOOKED_AT):
            measures["answers_seen"] = {
                "looked_at": looked_at,
                "different": len(self.different),
                "characters": round(self.counts["characters"] / looked_at),
                **{name: self.counts[name] for name in ("code", "calls", "layout")},
            }
        return measures


def is_code(text: str) -> bool:
    """Whether a text holds program text."""
    return _FENCE.search(text) is not None or (
        sum(sign.search(text) is not None for sign in _CODE) >= 2
    )


def has_layout(text: str) -> bool:
    """Whether a program could read the text: JSON, XML, a table, or lines with names."""
    bare = text.strip()
    if bare[:1] in ("{", "["):
        try:
            json.loads(bare)
        except (ValueError, RecursionError):
            return False
        return True
    return (
        (bare.startswith("<") and bare.endswith(">"))
        or (bare.count("\n") and all(line.count("|") > 1 for line in bare.splitlines() if line))
        or len(_LINES.findall(bare)) >= 2
        or "```json" in bare
    )
