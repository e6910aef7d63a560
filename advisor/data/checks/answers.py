"""What answers look like, judged on the first rows: code, calls of functions, a fixed layout, a
category, or prose.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from advisor.data.same_rows import Example

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


@dataclass(slots=True)
class AnswerLooks:
    """How many of the answers looked at are of which kind."""

    count: int = 0
    code: int = 0
    calls: int = 0
    layout: int = 0
    characters: int = 0
    different: set[str] = field(default_factory=set)

    def add(self, example: Example) -> None:
        """Look at one example, as long as there are few."""
        if self.count >= LOOKED_AT:
            return
        self.count += 1
        turns = example.chosen or example.messages
        said = [turn for turn in turns if turn.role == "assistant"]
        text = example.text if not turns else "\n".join(turn.content for turn in said)
        whole = text or example.answer or ""
        text = whole[:LOOKED_AT_CHARS]
        asked = "\n".join(turn.content for turn in example.messages if turn.role == "user")
        asked = asked[:LOOKED_AT_CHARS]
        self.code += is_code(text) or is_code(asked)
        called = any(turn.extra for turn in said) or bool(example.tools)
        self.calls += called or _CALL.search(text) is not None
        self.layout += has_layout(whole)
        self.characters += len(whole)
        self.different.add(text.strip()[:200])

    def measures(self) -> dict[str, Any]:
        """The counts as JSON types; empty where there was nothing to look at."""
        if not self.count:
            return {}
        return {
            "looked_at": self.count,
            "different": len(self.different),
            "characters": round(self.characters / self.count),
            "code": self.code,
            "calls": self.calls,
            "layout": self.layout,
        }


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
