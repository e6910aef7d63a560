"""The rows of a stage, read as our trainers read them, in a form that all tools read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.data.example import Example, Message, normalise_text, question_key, question_mark
from advisor.data.examples import SkippedRows, read_examples
from advisor.data.recognition.recognise import recognise
from advisor.extras.other_tools.tool import ANSWERS, FEEDBACK, PAIRS, TEXT
from advisor.ground.counting import counted
from advisor.ground.errors import InputError
from advisor.methods import objective
from advisor.plan.entries import Entry

KINDS = {
    "paired": ANSWERS, "raw_text": ANSWERS, "preference": PAIRS, "unpaired_feedback": FEEDBACK,
}  # kind of data -> kind of rows  # fmt: skip
TRAIN, TEST = "train.jsonl", "test.jsonl"
MOST_LEFT_OUT = 0.05  # the share at which a run stops, too


def kind_of_rows(name: str) -> str:
    """The kind of rows that another tool trains an objective on; empty if it is not written."""
    found = objective(name)
    return "" if found.generates else KINDS.get(next(iter(found.trains_on), ""), "")


def is_split(entry: Entry, kind: str, able: Sequence[str]) -> bool:
    """Whether a request and each answer are columns of their own, else one conversation."""
    learns_all = kind == ANSWERS and entry.stage.options.get("loss_on") == "all"
    return "split" in able and kind != TEXT and not learns_all


def example_row(kind: str, *, is_split: bool) -> str:
    """A row of this kind as it is written, for people who write theirs by hand."""
    asked, answer = Message("user", "..."), Message("assistant", "...")
    turns = (asked,) if kind == PAIRS else (asked, answer)
    example = Example(row=1, messages=turns, chosen=(answer,), rejected=(answer,))
    written = _written(replace(example, text="...", good=True), kind, is_split)
    return json.dumps(written[0])


class WrittenRows(Struct):
    """What was written of the rows of a stage."""

    kind: str  # one of KINDS' values, or TEXT
    is_split: bool  # a request and each answer are columns of their own, else one conversation
    counts: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, TEST: 0})  # file -> rows
    notes: list[str] = field(default_factory=list)


def write_rows(
    entry: Entry, path: Path | str, folder: Path, able: Sequence[str], more: Mapping[str, Any]
) -> WrittenRows:
    """Write the rows of a stage as the tool is `able` to read them, with `more` columns that are
    the same in every one: those that are trained on, and those that are held out. Rows that ask the
    same stay on one side. Raises InputError for data of which too many rows cannot be used.
    """
    stage, named = entry.stage, str(path)
    data = recognise(named, mapping=entry.data.mapping)
    kind = kind_of_rows(stage.objective)
    if kind == ANSWERS and data.kind == "raw_text":
        kind = ANSWERS if data.format == "classification" else TEXT
    rows = WrittenRows(kind, is_split(entry, kind, able))
    more = more if "split" in able and kind != TEXT else {}
    skipped, left_out, unlearned = SkippedRows(), dict[str, int](), 0
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / name).open("x", encoding="utf-8"))
            for name in rows.counts
        }
        for example in read_examples(data, skipped=skipped):
            taken = _trainable_row(example, kind, takes_tools="tools" in able)
            made = taken if isinstance(taken, str) else _written(taken, kind, rows.is_split)
            if isinstance(made, str) or isinstance(taken, str):
                left_out[str(made)] = left_out.get(str(made), 0) + 1
                continue
            is_held = question_mark(_asked(taken), stage.seed) < stage.holdout * 2**64
            name = TEST if is_held else TRAIN
            rows.counts[name] += len(made)
            for row in made:
                files[name].write(json.dumps({**row, **more}, ensure_ascii=False) + "\n")
            unlearned += any(one.role == "assistant" and not one.weight for one in taken.messages)
    skipped.raise_if_too_many(named)
    used, lost = sum(rows.counts.values()), sum(left_out.values())
    if lost > MOST_LEFT_OUT * (lost + used) or not rows.counts[TRAIN]:
        raise InputError(
            f"{lost:,} of {lost + used:,} rows cannot be used: {'; '.join(left_out)}",
            f"up to {MOST_LEFT_OUT:.0%} may be left out, with a count",
            f"what the rows hold: advise check {shlex.quote(named)}",
            where=named,
        )
    if not rows.counts[TEST]:
        (folder / TEST).unlink()
    if unlearned and kind == ANSWERS and not rows.is_split:
        rows.notes.append(f"{unlearned:,} rows have answers that are not to be learned; they are")
    rows.notes += skipped.lines()
    rows.notes += [f"{counted(count, 'row')} left out: {why}" for why, count in left_out.items()]
    return rows


def _trainable_row(example: Example, kind: str, *, takes_tools: bool) -> Example | str:
    """The row as this kind of training takes it, or why it cannot."""
    if kind == TEXT:
        return example if example.text else "no text"
    turns = (*example.messages, *example.chosen, *example.rejected)
    if not takes_tools and (example.tools or any("tool_calls" in turn.extra for turn in turns)):
        return "the tool cannot hold tools and their calls"
    if not example.messages and example.text is not None and example.label is not None:
        said = (Message("user", example.text), Message("assistant", example.label))
        example = replace(example, messages=said, text=None)
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


def _asked(example: Example) -> str:
    turns = example.messages[:-1] if _ends_with_answer(example.messages) else example.messages
    return question_key(turns) if turns else normalise_text(example.text or "")


def _written(example: Example, kind: str, is_split: bool) -> list[dict[str, Any]] | str:
    """A row as it is written, or what the tool cannot hold of it."""
    if kind == TEXT:
        return [{"text": example.text}]
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    asked = [_as_map(turn) for turn in example.messages]
    if kind == PAIRS:
        chosen = [_as_map(turn) for turn in example.chosen]
        rejected = [_as_map(turn) for turn in example.rejected]
        if is_split:
            return [{"prompt": asked, "chosen": chosen, "rejected": rejected, **tools}]
        if len(chosen) != 1 or len(rejected) != 1:
            return "the tool cannot hold an answer of more than one turn"
        return [{"messages": asked, "chosen": chosen[0], "rejected": rejected[0], **tools}]
    label = {"label": example.good} if kind == FEEDBACK else {}
    if not is_split:
        return [{"messages": asked, **label, **tools}]
    last = len(asked) - 1
    return [
        {"prompt": asked[:place], "completion": [asked[place]], **label, **tools}
        for place, turn in enumerate(example.messages)
        if (place == last if label else turn.role == "assistant" and turn.weight > 0)
    ]


def _as_map(turn: Message) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.content, **turn.extra}
