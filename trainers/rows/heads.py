"""Rows for other heads: texts and their classes, for a classification head (names of classes as
numbers), and texts and what they become, for sequence-to-sequence models (one sequence to read, one
to write).

There is no chat template: the input is what stands before the last answer, as plain text. The
tokenizer puts its own tokens around each text (an end, a language).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from advisor.data.example import Example
from trainers.rows.row import Kind, Unusable, ids_of, normalise_text
from trainers.rows.template import Templater

NO_CLASS = "no text with a class"
NO_OUTPUT = "no input with an output"
EMPTY = "the input or the output is empty"


@dataclass(frozen=True, slots=True)
class Labelled:
    number: int
    input_ids: Sequence[int]
    name: str  # of the class
    shown: str
    key: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        return 1


def label_rows(example: Example, templater: Templater) -> list[Labelled]:
    if example.text is None or example.label is None:
        raise Unusable(NO_CLASS)
    ids, _ = templater.encode(example.text, special=True)
    same = normalise_text(example.text)
    return [Labelled(example.row, ids_of(ids), example.label, example.text, same, same)]


def class_names(names: Iterable[str]) -> list[str]:
    """The classes in order: by number if all are numbers, else by name."""
    found = set(names)
    return (
        sorted(found, key=lambda name: (int(name), name))
        if all(name.lstrip("-").isdigit() for name in found)
        else sorted(found)
    )


def cut_text(row: Labelled, seq_len: int) -> Labelled:
    """The row with a shorter text. The last token stays: it closes the text for encoders."""
    return replace(row, input_ids=_cut(row.input_ids, seq_len))


def _cut(ids: Sequence[int], length: int) -> Sequence[int]:
    return ids if len(ids) <= length else ids_of((*ids[: length - 1], ids[-1]))


CLASSES: Kind[Labelled] = Kind(
    name="classes",
    row=Labelled,
    build=label_rows,
    cut=cut_text,
    mark=attrgetter("name"),
    contrary="have the text of another row and another class",
    stratified=True,
)


def class_columns(rows: Sequence[Labelled], *, numbers: Mapping[str, int]) -> dict[str, list[Any]]:
    """The columns of a sequence classification trainer.

    Args:
        numbers: Of the classes, by name.
    """
    return {
        "input_ids": [list(row.input_ids) for row in rows],
        "labels": [numbers[row.name] for row in rows],
    }


# ------------------------------------------------------------------------------------ texts


@dataclass(frozen=True, slots=True)
class Rewriting:
    """An input and its output."""

    number: int
    input_ids: Sequence[int]
    labels: Sequence[int]  # of the output, every one of them learned
    prompt: str
    shown: str
    expected: str
    key: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        """The longer of the two: `seq_len` is what each of them may have."""
        return max(len(self.input_ids), len(self.labels))

    @property
    def learned(self) -> int:
        return len(self.labels)


def rewriting_rows(example: Example, templater: Templater) -> list[Rewriting]:
    """An example with an answer as a row; of preferences the chosen answer is the output. Raises
    Unusable.
    """
    *before, last = (*example.messages, *example.chosen) or (None,)
    if last is None or last.role != "assistant":
        raise Unusable(NO_OUTPUT)
    prompt = "\n\n".join(message.content for message in before if message.content)
    expected = last.content
    if not prompt.strip() or not expected.strip():
        raise Unusable(EMPTY)
    ids, _ = templater.encode(prompt, special=True)
    row = Rewriting(
        number=example.row,
        input_ids=ids_of(ids),
        labels=ids_of(templater.tokenizer(text_target=expected)["input_ids"]),
        prompt=prompt,
        shown=before[-1].content,
        expected=expected,
        key=normalise_text(prompt),
        text=normalise_text(f"{prompt}\n{expected}"),
    )
    return [row]


def cut_both(row: Rewriting, seq_len: int) -> Rewriting:
    return replace(row, input_ids=_cut(row.input_ids, seq_len), labels=_cut(row.labels, seq_len))


REWRITINGS: Kind[Rewriting] = Kind(
    name="rewritings", row=Rewriting, build=rewriting_rows, cut=cut_both
)


def rewriting_columns(rows: Sequence[Rewriting]) -> dict[str, list[Any]]:
    return {
        "input_ids": [list(row.input_ids) for row in rows],
        "attention_mask": [[1] * len(row.input_ids) for row in rows],
        "labels": [list(row.labels) for row in rows],
    }
