"""Conversations: how many turns they have, what stands beside the words, and whether user and
assistant take turns.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, ClassVar

from advisor.data.checks import RowCheck, SeenRow, Subject
from advisor.data.templates.chat_text import (
    MARK,
    answers_of,
    called_functions,
    has_reasoning,
    holds_thoughts,
)


class Conversations(RowCheck):
    """Counts of conversations."""

    place = 40
    says: ClassVar = {
        "turns-do-not-alternate": (
            "warning",
            "{count} conversations do not alternate between user and assistant; some chat"
            " templates refuse them",
        ),
        "empty-answer": (
            "warning",
            "{count} conversations hold an empty answer: the model learns to say nothing there",
        ),
    }

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.turns: Counter[int] = Counter()  # turns of the assistant -> conversations

    def see(self, row: SeenRow) -> None:
        example, counts = row.example, self.counts
        messages = example.messages
        if len(messages) <= 2 and (not messages or messages[0].role == "user"):
            self.turns[1] += 1
        else:
            self._look_at_turns(row)
        counts["with_tools"] += bool(example.tools)
        extra = any(message.extra for message in messages)
        counts["with_tool_calls"] += extra and any(map(called_functions, messages))
        # An answer's content is in the text; thoughts beside it are rare.
        if MARK in row.text or extra:
            answers = answers_of(example)
            counts["thoughts"] += any(map(holds_thoughts, answers))
            counts["reasoning"] += extra and any(map(has_reasoning, answers))

    def _look_at_turns(self, row: SeenRow) -> None:
        messages = row.example.messages
        spoken = [message.role for message in messages if message.role != "system"]
        answers = spoken.count("assistant") + bool(row.example.chosen)
        self.turns[max(1, answers)] += 1
        self.counts["with_system_text"] += messages[0].role == "system"
        said = [one for one in messages if one.role == "assistant"]
        if not all(one.content.strip() or one.extra for one in said):
            self.tallies["empty-answer"].add(row.number)
        if "tool" in spoken or any(message.extra for message in messages):
            return
        wrong = bool(spoken) and (
            spoken[0] != "user" or any(left == right for left, right in itertools.pairwise(spoken))
        )
        if wrong or any(message.role == "system" for message in messages[1:]):
            self.tallies["turns-do-not-alternate"].add(row.number)

    def measures(self) -> dict[str, Any]:
        measures: dict[str, Any] = {}
        conversations = sum(self.turns.values())
        if conversations and self.about.kind != "raw_text":
            answers = sum(answers * count for answers, count in self.turns.items())
            measures["turns"] = {
                "conversations": conversations,
                "multi_turn": conversations - self.turns[1],
                "mean": round(answers / conversations, 2),
                "most": max(self.turns),
                **{
                    name: self.counts[name]
                    for name in ("with_system_text", "with_tools", "with_tool_calls")
                },
            }
        if self.counts["thoughts"]:
            measures["rows_with_thoughts"] = self.counts["thoughts"]
            measures["rows_with_reasoning"] = self.counts["reasoning"]
        return measures
