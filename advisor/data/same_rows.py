"""When two rows ask or say the same, and which rows are held out of training: rows that ask or say
the same stay on one side, and the split depends on content and seed alone.

The trainers split their tokenised rows by the same marks (trainers/prepare/split.py, with arrays);
here it is done without a tokenizer, for those who write rows for another tool.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
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


def held_out(
    questions: Sequence[str],
    texts: Sequence[str],
    *,
    share: float,
    seed: int,
    strata: Sequence[Hashable] | None = None,
) -> list[bool]:
    """Which rows are held out: the same as trainers/prepare/split.py holds out.

    Args:
        questions: Equal for rows that ask the same; empty for a row without a question.
        texts: Equal for rows that say the same.
        share: The share of rows to hold out.
        seed: Another seed holds out other rows.
        strata: Rows of one stratum are held out in their share.
    """
    groups = _groups(
        [question_mark(one, seed) for one in questions],
        [text_mark(one, seed) for one in texts],
        {question_mark(one, seed): one for one in questions},
        blank=question_mark("", seed),
    )
    sizes: dict[int, int] = {}
    stratum_of: dict[int, Hashable] = {}
    for place, group in enumerate(groups):
        sizes[group] = sizes.get(group, 0) + 1
        stratum_of.setdefault(group, strata[place] if strata is not None else None)
    held: set[int] = set()
    for stratum in dict.fromkeys(stratum_of.values()):
        names = sorted(name for name in sizes if stratum_of[name] == stratum)
        wanted = round(share * sum(sizes[name] for name in names))
        if share > 0 and wanted == 0 and len(names) >= FEWEST_GROUPS and strata is None:
            wanted = 1
        taken, left = 0, len(names)
        for name in names:
            if taken >= wanted:
                break
            if taken + sizes[name] <= wanted and left > 1:
                held.add(name)
                taken += sizes[name]
                left -= 1
    return [group in held for group in groups]


def mostly_one_question(questions: Sequence[str]) -> bool:
    """Whether rows share so few questions that only rows with the same text stay together."""
    return len(set(questions)) * 2 < len(questions)


def _groups(
    questions: Sequence[int], texts: Sequence[int], names: dict[int, str], *, blank: int
) -> list[int]:
    """The mark of the group of each row."""
    if len(set(questions)) * 2 < len(questions):
        return list(texts)
    asked: dict[int, int] = {}  # a question for each text that has one
    for question, text in zip(questions, texts, strict=True):
        if question != blank:
            asked[text] = question
    above: dict[int, int] = {}

    def top(mark: int) -> int:
        while above.setdefault(mark, mark) != mark:
            mark = above[mark]
        return mark

    for question, text in zip(questions, texts, strict=True):
        if question != blank and asked[text] != question:  # one text with several questions
            one, other = sorted((top(asked[text]), top(question)), key=lambda mark: names[mark])
            if one != other:
                above[other] = one
    return [
        top(question if question != blank else asked[text])
        if question != blank or text in asked
        else text
        for question, text in zip(questions, texts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 means: shown to the model, never trained on (OpenAI's per-message
    weight).
    """

    role: str  # system | user | assistant | tool
    content: str
    weight: float = 1.0
    extra: Mapping[str, Any] = field(
        default_factory=dict
    )  # tool_calls, name ... handed to the chat template as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row. Which fields are set depends on the profile's kind.

    paired: `messages`, the last one (at least) from the assistant. raw_text: `text`. preference:
        `messages` is the shared
    prompt, `chosen` and `rejected` the two continuations. unpaired_feedback: `messages` and `good`.
    prompts_with_verifier: `messages` (the request alone) and `answer`, which is JSON where it is a
        list of tests. Classification
    rows are `text` and `label`, and the same as `messages`. A paired row whose result can be
    checked has `answer` beside its `messages`: for reinforcement the request is what stands before
    the last message.
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
    # prompt + completion as text: trained without a chat template where the model has none
    plain: bool = False


def system_in_question(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The conversation with its system text in front of the first question, for templates that
    refuse system turns; None where there is nothing to move.
    """
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    return (
        replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}"),
        *messages[2:],
    )
