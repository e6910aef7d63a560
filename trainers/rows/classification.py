"""Texts and their classes, for a classification head: names of classes as numbers, no chat
template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.data.example import Example
from advisor.ground.errors import InputError
from trainers.rows.kinds import Kind, Marked, Review
from trainers.rows.row import LeftOut, ids_of, normalise_text, row_numbers, rows_word
from trainers.rows.template import Templater

NO_CLASS = "no text with a class"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its class."""

    number: int
    input_ids: Sequence[int]
    label: int
    name: str
    shown: str
    key: str
    text: str

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        return 1


def label_rows(
    examples: Iterable[Example], templater: Templater, left: LeftOut
) -> Iterator[Labelled]:
    """Every example with a class as a row, its class not numbered yet; an example without one is
    counted in `left`.
    """
    for example in examples:
        if example.text is None or example.label is None:
            left.add(example.row, NO_CLASS)
            continue
        ids, _ = templater.encode(example.text, special=True)
        same = normalise_text(example.text)
        yield Labelled(example.row, ids_of(ids), -1, example.label, example.text, same, same)


def class_names(names: Iterable[str]) -> list[str]:
    """The classes in order: by number if all are numbers, else by name."""
    found = set(names)
    return (
        sorted(found, key=lambda name: (int(name), name))
        if all(name.lstrip("-").isdigit() for name in found)
        else sorted(found)
    )


def class_of(row: Labelled) -> str:
    """The name of a row's class."""
    return row.name


def number_classes(rows: Marked) -> Review:
    """The number of each row's class. Raises InputError if there is only one class."""
    import numpy

    names = class_names(rows.names.values())
    if len(names) < 2:
        raise InputError(
            f"every row has the class '{names[0]}'",
            allowed="two classes or more",
            hint="name the column of the classes with --map label=COLUMN",
        )
    marks, class_of_row = numpy.unique(rows.marks, return_inverse=True)
    own = [rows.names[mark] for mark in marks.tolist()]
    counts = dict(zip(own, numpy.bincount(class_of_row).tolist(), strict=True))
    place = {name: index for index, name in enumerate(names)}
    labels = numpy.array([place[name] for name in own])[class_of_row]
    rare = [f"{name} ({counts[name]})" for name in names if counts[name] < 5]
    notes = [
        f"{len(names)} classes, from {min(counts.values()):,} to {max(counts.values()):,} rows each"
    ]
    if rare:
        notes.append(
            "classes with fewer than five rows:"
            f" {', '.join(rare[:10])}{' ...' if len(rare) > 10 else ''}"
        )
    if contrary := rows.contrary():
        notes.append(
            f"{rows_word(len(contrary))} have the text of another row and another class"
            f" ({row_numbers(contrary, len(contrary))})"
        )
    return Review(notes=notes, columns={"label": labels})


def cut_text(row: Labelled, seq_len: int) -> Labelled:
    """The row with a shorter text. The last token stays: it closes the text for encoders."""
    return replace(row, input_ids=ids_of((*row.input_ids[: seq_len - 1], row.input_ids[-1])))


CLASSES: Kind[Labelled] = Kind(
    name="classes",
    row=Labelled,
    build=label_rows,
    cut=cut_text,
    mark=class_of,
    keeps_marks=True,
    review=number_classes,
    stratified=True,
)


def class_columns(rows: Sequence[Labelled]) -> dict[str, list[Any]]:
    """The columns of a sequence classification trainer."""
    return {
        "input_ids": [list(row.input_ids) for row in rows],
        "labels": [row.label for row in rows],
    }
