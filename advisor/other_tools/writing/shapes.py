"""A row in the shape that another tool's loader reads.

Each function takes a usable row (rows.py) and gives rows, or a short reason why the tool cannot
hold this one. `layout_of` chooses the shape for all rows of a stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.data.example import Example, Message
from advisor.other_tools.writing.rows import (
    ANSWERS,
    FEEDBACK,
    PAIRS,
    PROMPTS,
    TEXT,
    Shape,
    Traits,
)

WRONG_ORDER = "user and assistant do not take turns, beginning with the user"
LONG_ANSWER = "an answer of more than one turn"
MORE_TURNS = "more than one question"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the rows of a stage are written."""

    name: str  # what the keys that name the data depend on
    shape: Shape
    notes: tuple[str, ...] = ()  # what is another training than ours


def layout_of(tool: str, objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
    """The layout for a tool.

    Args:
        learn_all: The loss is on every token (`loss_on: all`).
        marks: TRL has a template of this model in which the answers are marked.
    """
    if traits.kind == TEXT:
        return Layout(name=TEXT, shape=_text)
    if tool == "trl":
        return _trl(traits, learn_all=learn_all, marks=marks)
    if tool == "llamafactory":
        return _llamafactory(traits)
    return _axolotl(objective, traits)


# --------------------------------------------------------------------------- turns


def _turn(turn: Message) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.content, **turn.extra}


def _turns(turns: Sequence[Message]) -> list[dict[str, Any]]:
    return [_turn(turn) for turn in turns]


def _tools(example: Example) -> dict[str, Any]:
    return {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}


def _text(example: Example) -> list[dict[str, Any]] | str:
    return [{"text": example.text}]


# --------------------------------------------------------------------------- TRL


def _trl(traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
    if traits.kind == PAIRS:
        return Layout(name=PAIRS, shape=_trl_pair)
    if traits.kind == FEEDBACK:
        return Layout(name=FEEDBACK, shape=_trl_feedback)
    if traits.kind == PROMPTS:
        return Layout(name=PROMPTS, shape=_trl_prompt)
    if learn_all:
        return Layout(name="messages", shape=_messages)
    if traits.only_last:
        return Layout(name="completion", shape=_completions)
    if marks and not traits.weighted:
        return Layout(name="marked", shape=_messages)
    return Layout(
        name="completion",
        shape=_completions,
        notes=(
            "a conversation with several answers became one row for each of them: TRL has no"
            " template of this model in which the answers are marked",
        ),
    )


def _messages(example: Example) -> list[dict[str, Any]] | str:
    return [{"messages": _turns(example.messages), **_tools(example)}]


def _completions(example: Example) -> list[dict[str, Any]] | str:
    """One row for each answer that is learned, with what was said before it."""
    return [
        {
            "prompt": _turns(example.messages[:place]),
            "completion": [_turn(turn)],
            **_tools(example),
        }
        for place, turn in enumerate(example.messages)
        if turn.role == "assistant" and turn.weight > 0
    ]


def _trl_pair(example: Example) -> list[dict[str, Any]] | str:
    row = {
        "prompt": _turns(example.messages),
        "chosen": _turns(example.chosen),
        "rejected": _turns(example.rejected),
    }
    return [{**row, **_tools(example)}]


def _trl_feedback(example: Example) -> list[dict[str, Any]] | str:
    *asked, answer = example.messages
    row = {"prompt": _turns(asked), "completion": [_turn(answer)], "label": example.good}
    return [{**row, **_tools(example)}]


def _trl_prompt(example: Example) -> list[dict[str, Any]] | str:
    answer = {} if example.answer is None else {"answer": example.answer}
    return [{"prompt": _turns(example.messages), **answer, **_tools(example)}]


# --------------------------------------------------------------------------- LLaMA-Factory


def _llamafactory(traits: Traits) -> Layout:
    name = f"{traits.kind}-tools" if traits.has_tools else traits.kind
    notes: tuple[str, ...] = (
        ("tools and their calls are written by LLaMA-Factory's template, not by the model's own",)
        if traits.has_tools
        else ()
    )
    if traits.kind == ANSWERS and traits.weighted:
        notes += (
            f"{traits.weighted:,} rows have answers that are not to be learned; it learns every"
            " answer",
        )
    shape = {ANSWERS: _lf_answers, PAIRS: _lf_pair}.get(traits.kind, _lf_feedback)
    return Layout(name=name, shape=_with_tools(shape) if traits.has_tools else shape, notes=notes)


def _alternates(turns: Sequence[Message], *, answered: bool) -> bool:
    """Whether users (or tools) and the assistant take turns, after a system text."""
    body = list(turns[1:] if turns and turns[0].role == "system" else turns)
    merged: list[str] = []
    for turn in body:
        if turn.role == "system":
            return False
        if turn.role == "tool" and merged[-1:] == ["tool"]:
            continue  # answers of several tools are one turn there
        merged.append(turn.role)
    asks = [role in ("user", "tool") for role in merged]
    expected = [place % 2 == 0 for place in range(len(asks))]
    return bool(asks) and asks == expected and (len(asks) % 2 == 0) == answered


def _with_tools(shape: Shape) -> Shape:
    """With the tools as the text that its loader reads, empty where a row has none: the column has
    to be there.
    """

    def row(example: Example) -> list[dict[str, Any]] | str:
        shaped = shape(example)
        if isinstance(shaped, str):
            return shaped
        return [{**one, "tools": _declared(example)} for one in shaped]

    return row


def _declared(example: Example) -> str:
    if not example.tools:
        return ""
    declared = [dict(tool.get("function", tool)) for tool in example.tools]
    return json.dumps(declared, ensure_ascii=False)


def _lf_answers(example: Example) -> list[dict[str, Any]] | str:
    turns = example.messages
    if not _alternates(turns, answered=True):
        return WRONG_ORDER
    return [{"messages": _turns(turns)}]


def _lf_pair(example: Example) -> list[dict[str, Any]] | str:
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    if not _alternates(example.messages, answered=False):
        return WRONG_ORDER
    row = {
        "messages": _turns(example.messages),
        "chosen": _turn(example.chosen[0]),
        "rejected": _turn(example.rejected[0]),
    }
    return [{**row}]


def _lf_feedback(example: Example) -> list[dict[str, Any]] | str:
    if not _alternates(example.messages, answered=True):
        return WRONG_ORDER
    return [{"messages": _turns(example.messages), "label": example.good}]


# --------------------------------------------------------------------------- Axolotl


def _axolotl(objective: str, traits: Traits) -> Layout:
    if traits.kind == ANSWERS:
        return Layout(
            name="weighted" if traits.weighted else ANSWERS,
            shape=_axolotl_weighted if traits.weighted else _messages,
        )
    return Layout(
        name="reward" if objective == "rm" else PAIRS,
        shape=_axolotl_reward if objective == "rm" else _axolotl_pair,
    )


def _axolotl_weighted(example: Example) -> list[dict[str, Any]] | str:
    turns = [{**_turn(turn), "train": _is_learned(turn)} for turn in example.messages]
    return [{"messages": turns, **_tools(example)}]


def _is_learned(turn: Message) -> bool:
    return turn.role == "assistant" and turn.weight > 0


def _axolotl_pair(example: Example) -> list[dict[str, Any]] | str:
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    return [
        {
            "messages": _turns(example.messages),
            "chosen": _plain(example.chosen[0]),
            "rejected": _plain(example.rejected[0]),
        }
    ]


def _plain(turn: Message) -> Mapping[str, str]:
    return {"role": turn.role, "content": turn.content}


def _axolotl_reward(example: Example) -> list[dict[str, Any]] | str:
    """Its reward models read a system text, one question and two answers."""
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    turns = example.messages
    system = turns[0].content if turns and turns[0].role == "system" else ""
    asked = turns[1:] if system else turns
    if len(asked) != 1 or asked[0].role != "user":
        return MORE_TURNS
    return [
        {
            "system": system,
            "input": asked[0].content,
            "chosen": example.chosen[0].content,
            "rejected": example.rejected[0].content,
        }
    ]
