"""The rows of a stage as they are written for another tool: read as our trainers read them, split
as a run splits them, in one form for each kind that all tools read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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
from advisor.extras.other_tools.tool import ANSWERS, FEEDBACK, PAIRS, TEXT
from advisor.ground.errors import InputError
from advisor.plan.entries import Entry

KINDS = {
    "cpt": ANSWERS, "sft": ANSWERS, "dpo": PAIRS, "orpo": PAIRS, "simpo": PAIRS, "rm": PAIRS,
    "kto": FEEDBACK,
}  # fmt: skip
TRAIN, TEST = "train.jsonl", "test.jsonl"
MOST_LEFT_OUT = 0.05  # the share at which a run stops, too


class Form(NamedTuple):
    """How a tool takes rows."""

    is_split: bool  # a request and each answer are columns of their own, else one conversation
    takes_tools: bool  # tools and their calls are read
    more: Mapping[str, Any]  # columns that are the same in every row


@dataclass(slots=True)
class Rows:
    """The rows of a stage, read twice: once for what is asked of all, once to be written."""

    path: str
    recognition: Recognition
    kind: str  # one of KINDS' values, or TEXT
    held: list[bool] = field(default_factory=list)  # of the usable rows, in their order
    notes: list[str] = field(default_factory=list)
    only_last: bool = True  # every row teaches its last turn and no other
    weighted: int = 0  # rows with an answer that is not learned

    def examples(self) -> Iterator[tuple[Example, bool]]:
        """(row, whether it is held out)."""
        return zip(self.usable({}, Skipped()), self.held, strict=True)

    def write(self, work: Path, folder: str, form: Form) -> tuple[dict[str, int], dict[str, int]]:
        """Write them. Returns data file -> rows, and what the tool cannot hold -> rows; raises
        InputError if it can hold none.
        """
        (work / folder).mkdir(parents=True)
        counts, refused = {TRAIN: 0, TEST: 0}, dict[str, int]()
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((work / folder / name).open("x", encoding="utf-8"))
                for name in counts
            }
            for example, is_held in self.examples():
                rows = _written(example, self.kind, form)
                if isinstance(rows, str):
                    refused[rows] = refused.get(rows, 0) + 1
                    continue
                name = TEST if is_held else TRAIN
                counts[name] += len(rows)
                for row in rows:
                    files[name].write(json.dumps({**row, **form.more}, ensure_ascii=False) + "\n")
        if not counts[TRAIN]:
            why = f"the tool can hold none of the rows: {'; '.join(refused)}"
            hint = "`--to bundle` carries the plan itself to another machine"
            raise InputError(why, hint=hint, where=self.path)
        if not counts[TEST]:
            (work / folder / TEST).unlink()
        return {f"{folder}/{name}": count for name, count in counts.items() if count}, refused

    def usable(self, left_out: dict[str, int], skipped: Skipped) -> Iterator[Example]:
        """The rows that a run trains on, as it takes them; the reasons of others are counted."""
        for example in read_examples(self.path, recognition=self.recognition, skipped=skipped):
            found = _taken(example, self.kind)
            if isinstance(found, str):
                left_out[found] = left_out.get(found, 0) + 1
            else:
                yield found


def rows_of(entry: Entry, path: Path | str) -> Rows:
    """Read the rows of a stage and split them.

    Raises InputError for data that cannot be read, or of which too many rows cannot be used.
    """
    stage, named = entry.stage, str(path)
    recognition = recognise(named, mapping=entry.data.mapping)
    kind = KINDS[stage.objective]
    is_text = recognition.kind == "raw_text" and recognition.format != "classification"
    rows = Rows(named, recognition, TEXT if kind == ANSWERS and is_text else kind)
    skipped, left_out = Skipped(), dict[str, int]()
    marks: list[tuple[str, str, bool]] = []
    for example in rows.usable(left_out, skipped):
        marks.append((*_marks(example, rows.kind), bool(example.good)))
        answers = [turn for turn in example.messages if turn.role == "assistant"]
        learned = [turn for turn in answers if turn.weight > 0]
        rows.only_last = rows.only_last and (not answers or learned == [example.messages[-1]])
        rows.weighted += rows.kind == ANSWERS and len(learned) < len(answers)
    skipped.raise_if_too_many(named)
    lost = sum(left_out.values())
    if lost > MOST_LEFT_OUT * (lost + len(marks)):
        raise InputError(
            f"{lost:,} of {lost + len(marks):,} rows cannot be used: {'; '.join(left_out)}",
            f"up to {MOST_LEFT_OUT:.0%} may be left out, with a count",
            f"what the rows hold: advise check {shlex.quote(named)}",
            where=named,
        )
    questions = [question for question, _, _ in marks]
    rows.held = held_out(
        questions, [text for _, text, _ in marks], share=stage.holdout, seed=stage.seed,
        strata=[good for _, _, good in marks] if kind == FEEDBACK else None,
    )  # fmt: skip
    rows.notes = [*skipped.lines()]
    if stage.holdout and rows.kind != TEXT and mostly_one_question(questions):
        rows.notes.append(
            "most rows ask the same: the held-out rows are not those that `advise run` holds out"
        )
    rows.notes += [f"{count:,} rows left out: {why}" for why, count in left_out.items()]
    return rows


def _taken(example: Example, kind: str) -> Example | str:
    """The row as this kind of training takes it, or why it cannot."""
    if kind == TEXT:
        return example if example.text else "no text"
    if not example.messages and example.text is not None and example.label is not None:
        turns = (Message("user", example.text), Message("assistant", example.label))
        example = replace(example, messages=turns, text=None)
    if kind == PAIRS:
        is_pair = example.messages and example.chosen and example.rejected
        return example if is_pair else "no pair of a better and a worse answer"
    if kind == FEEDBACK:
        answered = example.good is not None and _ends_with_answer(example.messages)
        return example if answered else "no answer with feedback"
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


def _marks(example: Example, kind: str) -> tuple[str, str]:
    """(equal for rows that ask the same, equal for rows that say the same)."""
    if kind == TEXT:
        text = normalise_text(example.text or "")
        return text, text
    turns = example.messages
    if kind == PAIRS:
        sides = sorted(_said(side) for side in (example.chosen, example.rejected))
        return question_key(turns), "\n".join((_said(turns), *sides))
    return question_key(turns[:-1] if _ends_with_answer(turns) else turns), _said(turns)


def _said(turns: Iterable[Message]) -> str:
    return "\n".join(f"{turn.role}: {normalise_text(turn.content)}" for turn in turns)


# --------------------------------------------------------------------------- written


def _written(example: Example, kind: str, form: Form) -> list[dict[str, Any]] | str:
    """A row as it is written, or what the tool cannot hold of it."""
    if kind == TEXT:
        return [{"text": example.text}]
    turns = [*example.messages, *example.chosen, *example.rejected]
    if not form.takes_tools and (
        example.tools or any("tool_calls" in turn.extra for turn in turns)
    ):
        return "tools and their calls"
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    asked = [_as_map(turn) for turn in example.messages]
    if kind == PAIRS:
        chosen = [_as_map(turn) for turn in example.chosen]
        rejected = [_as_map(turn) for turn in example.rejected]
        if form.is_split:
            return [{"prompt": asked, "chosen": chosen, "rejected": rejected, **tools}]
        if len(chosen) != 1 or len(rejected) != 1:
            return "an answer of more than one turn"
        return [{"messages": asked, "chosen": chosen[0], "rejected": rejected[0], **tools}]
    label = {"label": example.good} if kind == FEEDBACK else {}
    if not form.is_split:
        return [{"messages": asked, **label, **tools}]
    last = len(asked) - 1
    return [
        {"prompt": asked[:place], "completion": [asked[place]], **label, **tools}
        for place, turn in enumerate(example.messages)
        if (place == last if label else turn.role == "assistant" and turn.weight > 0)
    ]


def _as_map(turn: Message) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.content, **turn.extra}
