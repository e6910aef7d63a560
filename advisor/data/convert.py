"""A data file as clean JSONL: UTF-8, columns with the names that every trainer knows, rows that
cannot be used left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.data.completion_marks import CompletionMarks
from advisor.data.example import Example, Message
from advisor.data.examples import Skipped, read_examples
from advisor.data.recognition.recognise import Recognition, recognise
from advisor.ground.errors import InputError

Row = Callable[[Example], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written."""

    path: str
    rows: int
    columns: tuple[str, ...]
    left_out: tuple[str, ...]  # a sentence for each reason


def write_jsonl(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
) -> Written:
    """The rows of a data file, as understood, in a new JSONL file.

    Args:
        mapping: Role -> column, where the names do not say it.

    Raises:
        InputError: The target is there already or has no folder; the data cannot be read, or more
        of its rows cannot be used than may be left out.
    """
    where = Path(target)
    if os.path.lexists(where):
        raise InputError(
            "there is a file already", where=str(target), hint="name a file that is not there yet"
        )
    if not where.parent.is_dir():
        raise InputError("there is no such folder", where=str(where.parent))
    recognition = recognise(path, mapping=mapping)
    simple, marks = True, CompletionMarks()
    for example in read_examples(path, recognition=recognition, skipped=Skipped()):
        simple = simple and _is_simple(example)
        marks.look(example)
    row_of, skipped, count = _row(recognition, simple=simple), Skipped(), 0
    columns: dict[str, None] = {}
    temporary = where.with_name(f".{where.name}.{os.getpid()}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            for example in read_examples(path, recognition=recognition, skipped=skipped):
                row = row_of(marks.without(example))
                columns |= dict.fromkeys(row)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        skipped.raise_if_too_many(os.fspath(path))
        os.replace(temporary, where)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})", where=str(target)
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    taken_off = [f"taken off: {marks.words()}"] if marks.found else []
    return Written(
        path=str(target),
        rows=count,
        columns=tuple(columns),
        left_out=(*skipped.lines(), *taken_off),
    )


def _is_simple(example: Example) -> bool:
    """Whether a request and its answer are all there is: two texts."""
    turns = (*example.messages, *example.chosen, *example.rejected)
    asked = [turn for turn in example.messages if turn.role != "assistant"]
    return (
        len(asked) == len(asked[:1])
        and all(turn.role == "user" for turn in asked)
        and len(example.messages) <= 2
        and len(example.chosen) <= 1
        and len(example.rejected) <= 1
        and not example.tools
        and all(turn.weight == 1 and not turn.extra for turn in turns)
    )


def _row(recognition: Recognition, *, simple: bool) -> Row:
    """What a row of this kind of data becomes; `simple` where all rows are two texts."""
    if recognition.kind == "raw_text":
        return lambda example: {"text": example.text}
    if recognition.format == "classification":
        return lambda example: {"text": example.text, "label": example.label}
    if recognition.kind == "preference":
        return lambda example: {
            "prompt": _texts(example.messages, simple=simple),
            "chosen": _texts(example.chosen, simple=simple),
            "rejected": _texts(example.rejected, simple=simple),
            **_tools(example),
        }
    if recognition.kind == "prompts_with_verifier":
        return lambda example: {
            "prompt": _texts(example.messages, simple=simple),
            **_known(ground_truth=example.answer),
        }
    has_result = "ground_truth" in recognition.mapping
    return lambda example: {
        **_conversation(example, simple=simple),
        **_known(label=example.good, ground_truth=example.answer if has_result else None),
    }


def _conversation(example: Example, *, simple: bool) -> dict[str, Any]:
    if not simple:
        return {"messages": [_turn(turn) for turn in example.messages], **_tools(example)}
    asked, answer = example.messages
    return {"prompt": asked.content, "completion": answer.content}


def _tools(example: Example) -> dict[str, Any]:
    return {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _texts(turns: tuple[Message, ...], *, simple: bool) -> Any:
    return turns[0].content if simple else [_turn(turn) for turn in turns]


def _turn(turn: Message) -> dict[str, Any]:
    weight = {} if turn.weight == 1 else {"weight": turn.weight}
    return {"role": turn.role, "content": turn.content, **weight, **turn.extra}


def sentences(written: Written) -> Iterator[str]:
    """What a person reads of it."""
    yield f"wrote {written.path}: {written.rows:,} rows with {' and '.join(written.columns)}"
    yield from written.left_out
