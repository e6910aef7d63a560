"""One training row as understood, whatever the file called its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


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
