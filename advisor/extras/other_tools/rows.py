"""The rows of a stage as they are written for another tool: read as our trainers read them, split
as a run splits them, in the shape that the tool's own loader knows.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.data.examples import Skipped, read_examples
from advisor.data.recognition.recognise import Recognition, recognise
from advisor.data.same_rows import (
    Example,
    Message,
    held_out,
    mostly_one_question,
    normalise_text,
    question_key,
)
from advisor.ground.errors import InputError
from advisor.plan.entries import Entry

TEXT, ANSWERS, PAIRS, FEEDBACK, PROMPTS = "text", "answers", "pairs", "feedback", "prompts"
KINDS = {
    "cpt": ANSWERS, "sft": ANSWERS, "dpo": PAIRS, "orpo": PAIRS, "simpo": PAIRS, "rm": PAIRS,
    "kto": FEEDBACK, "grpo": PROMPTS, "rloo": PROMPTS,
}  # fmt: skip
WRONG_ORDER = "user and assistant do not take turns, beginning with the user"
LONG_ANSWER = "an answer of more than one turn"
MORE_TURNS = "more than one question"
MOST_LEFT_OUT = 0.05  # the share at which a run stops, too
# One row of ours -> rows of the tool, or why it cannot hold this one.
Shape = Callable[[Example], "list[dict[str, Any]] | str"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What is asked of all rows before a shape is chosen."""

    kind: str  # one of KINDS' values, or TEXT
    rows: int = 0
    only_last: bool = True  # every row teaches its last turn and no other
    has_tools: bool = False
    weighted: int = 0  # rows with an answer that is not learned


@dataclass(slots=True)
class Rows:
    """The rows of a stage, read twice: once for what is asked of all, once to be written."""

    path: str
    recognition: Recognition
    traits: Traits
    held: list[bool]  # of the usable rows, in their order
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> rows

    @property
    def train(self) -> int:
        """How many rows are trained on."""
        return len(self.held) - sum(self.held)

    def examples(self) -> Iterator[tuple[Example, bool]]:
        """(row, whether it is held out)."""
        places = iter(self.held)
        for example in _usable(self.path, self.recognition, self.traits.kind, {}):
            yield example, next(places)


def rows_of(entry: Entry, path: Path | str) -> Rows:
    """Read the rows of a stage and split them.

    Raises InputError for data that cannot be read, or of which too many rows cannot be used.
    """
    stage, named = entry.stage, str(path)
    recognition = recognise(named, mapping=entry.data.mapping)
    kind = KINDS[stage.objective]
    if (
        kind == ANSWERS
        and recognition.kind == "raw_text"
        and recognition.format != "classification"
    ):
        kind = TEXT
    skipped, left_out = Skipped(), dict[str, int]()
    questions: list[str] = []
    texts: list[str] = []
    strata: list[bool] = []
    only_last, has_tools, weighted = True, False, 0
    for example in _usable(named, recognition, kind, left_out, skipped):
        question, text = _marks(example, kind)
        questions.append(question)
        texts.append(text)
        strata.append(bool(example.good))
        has_tools = has_tools or bool(example.tools) or _calls(example)
        answers = [turn for turn in example.messages if turn.role == "assistant"]
        learned = [turn for turn in answers if turn.weight > 0]
        only_last = only_last and (not answers or learned == [example.messages[-1]])
        weighted += len(learned) < len(answers)
    skipped.raise_if_too_many(named)
    _raise_if_too_many(left_out, len(questions), named)
    held = held_out(
        questions, texts, share=stage.holdout, seed=stage.seed,
        strata=strata if kind == FEEDBACK else None,
    )  # fmt: skip
    notes = skipped.lines()
    if stage.holdout and kind != TEXT and mostly_one_question(questions):
        notes.append(
            "most rows ask the same: the held-out rows are not those that `advise run` holds out"
        )
    traits = Traits(
        kind=kind, rows=len(questions), only_last=only_last, has_tools=has_tools, weighted=weighted
    )
    return Rows(
        path=named, recognition=recognition, traits=traits, held=held, notes=notes,
        left_out=left_out,
    )  # fmt: skip


def _raise_if_too_many(left_out: dict[str, int], used: int, path: str) -> None:
    total = sum(left_out.values())
    if total > MOST_LEFT_OUT * (total + used):
        raise InputError(
            f"{total:,} of {total + used:,} rows cannot be used: {'; '.join(left_out)}",
            f"up to {MOST_LEFT_OUT:.0%} may be left out, with a count",
            f"what the rows hold: advise check {shlex.quote(path)}",
            where=path,
        )


def _usable(
    path: str,
    recognition: Recognition,
    kind: str,
    left_out: dict[str, int],
    skipped: Skipped | None = None,
) -> Iterator[Example]:
    """The rows that a run trains on, as it takes them."""
    asked: set[tuple[str, str | None]] = set()
    for example in read_examples(path, recognition=recognition, skipped=skipped or Skipped()):
        found = _taken(example, kind)
        if isinstance(found, Example) and kind == PROMPTS:
            mark = (_said(found.messages), found.answer)
            found = "a repeated prompt" if mark in asked else found
            asked.add(mark)
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
        else:
            yield found


def _taken(example: Example, kind: str) -> Example | str:
    """The row as this kind of training takes it, or why it cannot."""
    if kind == TEXT:
        return example if example.text else "no text"
    if not example.messages and example.text is not None and example.label is not None:
        turns = (Message("user", example.text), Message("assistant", example.label))
        example = replace(
            example, messages=turns, text=None, answer=example.answer or example.label
        )
    if kind == PAIRS:
        if not (example.messages and example.chosen and example.rejected):
            return "no pair of a better and a worse answer"
        return example
    if kind == FEEDBACK:
        if example.good is None or not _ends_with_answer(example.messages):
            return "no answer with feedback"
        return example
    if kind == PROMPTS:
        asked = example.messages
        asked = asked[:-1] if _ends_with_answer(asked) else asked
        if not any(turn.role in ("user", "tool") and turn.content.strip() for turn in asked):
            return "no question that a model could answer"
        return replace(example, messages=asked)
    if example.good is False:
        return "an answer that people rejected"
    if example.chosen:  # earlier answers are context: nobody preferred them to anything
        earlier = tuple(
            replace(turn, weight=0.0) if turn.role == "assistant" else turn
            for turn in example.messages
        )
        example = replace(example, messages=(*earlier, *example.chosen))
    if not any(turn.role == "assistant" and turn.weight > 0 for turn in example.messages):
        return "no answer to learn"
    return example


def _ends_with_answer(turns: tuple[Message, ...]) -> bool:
    return bool(turns) and turns[-1].role == "assistant"


def _calls(example: Example) -> bool:
    turns = (*example.messages, *example.chosen, *example.rejected)
    return any(turn.role == "tool" or turn.extra.get("tool_calls") for turn in turns)


def _marks(example: Example, kind: str) -> tuple[str, str]:
    """(equal for rows that ask the same, equal for rows that say the same)."""
    if kind == TEXT:
        text = normalise_text(example.text or "")
        return text, text
    turns = example.messages
    if kind == PAIRS:
        sides = sorted(_said(side) for side in (example.chosen, example.rejected))
        return question_key(turns), "\n".join((_said(turns), *sides))
    asked = turns[:-1] if kind != PROMPTS and _ends_with_answer(turns) else turns
    return question_key(asked), _said(turns)


def _said(turns: Iterable[Message]) -> str:
    return "\n".join(f"{turn.role}: {normalise_text(turn.content)}" for turn in turns)


# --------------------------------------------------------------------------- shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the rows of a stage are written."""

    name: str  # what the keys that name the data depend on
    shape: Shape
    notes: tuple[str, ...] = ()  # what is another training than ours


def as_map(turn: Message) -> dict[str, Any]:
    """One message as a map."""
    return {"role": turn.role, "content": turn.content, **turn.extra}


def as_maps(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as maps."""
    return [as_map(turn) for turn in messages]


def tools_of(example: Example) -> dict[str, Any]:
    """The column of tools, if the row has some."""
    return {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}


def texts(example: Example) -> list[dict[str, Any]] | str:
    """A row of plain text."""
    return [{"text": example.text}]


def messages(example: Example) -> list[dict[str, Any]] | str:
    """A whole conversation."""
    return [{"messages": as_maps(example.messages), **tools_of(example)}]
