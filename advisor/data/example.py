"""Rows as they are read, and the marks by which rows that ask or say the same stay on one side when
some are held out (trainers/prepare/split.py): they depend on content and seed alone.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FEWEST_GROUPS = 5  # below this no row is taken from training for a share that rounds to nothing


def normalise_text(text: str) -> str:
    """The text for comparison: case, white space and the many ways to write one character make no
    difference.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def question_key(messages: Iterable[Message]) -> str:
    """Equal for conversations that ask the same, whatever the system text says."""
    return "\n".join(
        f"{message.role}: {normalise_text(message.content)}"
        for message in messages
        if message.role != "system"
    )


def question_mark(key: str, seed: int) -> int:
    """What stands for a question: groups are held out in the order of these numbers."""
    return _first_bytes(f"{seed}:question {key}")


def text_mark(text: str, seed: int) -> int:
    """What stands for a text."""
    return _first_bytes(f"{seed}:text {text}")


def _first_bytes(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 means: shown to the model, never trained on (OpenAI's per-message
    weight).
    """

    role: str  # system | user | assistant | tool
    content: str
    weight: float = 1.0
    # tool_calls, name ... handed to the chat template as they are
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row. Which fields are set depends on the kind of the data:

    - paired: `messages`, the last one (at least) from the assistant; `answer` beside them if a
      program can check the result. Then the request is what stands before the last message.
    - raw_text: `text`.
    - preference: `messages` is the shared prompt, `chosen` and `rejected` the two continuations.
    - unpaired_feedback: `messages` and `good`.
    - prompts_with_verifier: `messages` (the request alone) and `answer`, JSON for a list of tests.

    Rows of a classification are `text` and `label`, and the same as `messages`.
    """

    row: int  # 1-based, as an editor counts records of the file
    messages: tuple[Message, ...] = ()
    text: str | None = None
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    good: bool | None = None
    answer: str | None = None
    label: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    # prompt + completion as text: trained without a chat template if the model has none
    plain: bool = False


def system_in_question(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The conversation with its system text in front of the first question, for templates that
    refuse system turns; None if there is nothing to move.
    """
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    return (
        replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}"),
        *messages[2:],
    )


CALLS = ("tool_calls", "function_call")


def calls_text(message: Message) -> str:
    """The calls of a message as JSON, without their ids, which few templates write; "" if it calls
    nothing.
    """
    texts = []
    for key in CALLS:
        calls = message.extra.get(key) or []
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function", call) if isinstance(call, Mapping) else call
            if isinstance(function, Mapping):
                function = {key: function[key] for key in ("name", "arguments") if key in function}
            texts.append(json.dumps(function, ensure_ascii=False, default=str))
    return "".join(texts)


def said(message: Message) -> str:
    """The text of a message with its calls behind it."""
    return message.content + calls_text(message) if message.extra else message.content


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The declared functions as JSON, one a line."""
    return "\n".join(json.dumps(dict(tool), ensure_ascii=False, default=str) for tool in tools)


def parts_of(example: Example) -> tuple[list[str], list[list[str]]]:
    """What a row asks, and what each answer says: none, one, or the two of a pair. A document is
    all answer.
    """
    if example.text is not None and example.label is None:
        return [], [[example.text]]
    asked = [said(message) for message in example.messages]
    if example.chosen:
        return asked, [[said(turn) for turn in side] for side in (example.chosen, example.rejected)]
    if example.messages and example.messages[-1].role == "assistant":
        return asked[:-1], [asked[-1:]]
    return asked, []


def text_of_row(example: Example) -> str:
    """All that a row asks and answers."""
    asked, answers = parts_of(example)
    return "\n".join(sum(answers, asked))
