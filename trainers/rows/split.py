"""Training and held-out rows: rows that say or ask the same stay on one side, and the split depends
on content and seed alone.

Of each row only eight bytes of a digest of its question and eight of its text are looked at. Two
different ones among ten million agree with a probability of 3 in a million, and would then only
stay on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from advisor.data.example import FEWEST_GROUPS
from advisor.data.example import question_mark as question_mark
from advisor.data.example import text_mark as text_mark
from trainers.rows.sequences import Array


class Comparable(Protocol):
    """What the split reads of a row."""

    @property
    def number(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=Comparable)


def split_rows(
    rows: Sequence[Item],
    *,
    share: float,
    seed: int,
    stratum: Callable[[Item], Hashable] | None = None,
) -> tuple[list[Item], list[Item]]:
    """Training and held-out rows, each in the order of the file.

    Rows that share their question stay together if most questions differ. If most questions are the
    same (one prompt for all rows), only rows with the same text stay together.

    Args:
        share: The share of rows to hold out.
        seed: Another seed holds out other rows.
        stratum: Rows of one stratum (a class) are held out in their share, and at least one group
            of each is trained on.
    """
    import numpy

    keys = {question_mark(row.key, seed): row.key for row in rows}
    strata: dict[Hashable, int] = {}
    held = held_out_mask(
        questions=numpy.array([question_mark(row.key, seed) for row in rows], numpy.uint64),
        texts=numpy.array([text_mark(row.text, seed) for row in rows], numpy.uint64),
        sizes=numpy.ones(len(rows), numpy.int64),
        share=share,
        blank=question_mark("", seed),
        strata=(
            numpy.array([strata.setdefault(stratum(row), len(strata)) for row in rows])
            if stratum is not None
            else None
        ),
        keys_of=lambda marks: {mark: keys[mark] for mark in marks},
    )
    order = sorted(range(len(rows)), key=lambda place: (rows[place].number, place))
    return (
        [rows[place] for place in order if not held[place]],
        [rows[place] for place in order if held[place]],
    )


def held_out_mask(
    *,
    questions: Array,
    texts: Array,
    sizes: Array,
    share: float,
    blank: int,
    strata: Array | None,
    keys_of: Callable[[Collection[int]], Mapping[int, str]],
) -> Array:
    """Which rows to hold out.

    Args:
        questions: The `question_mark` of each row, uint64.
        texts: The `text_mark` of each, uint64.
        sizes: How many sequences each row gives; none with 0.
        share: The share of sequences to hold out.
        blank: The mark of no question at all.
        strata: A number for the stratum of each row, or None.
        keys_of: Gives the questions that some marks stand for.
    """
    import numpy

    groups = _groups(questions, texts, int(sizes.sum()), blank, keys_of)
    # Sorted by their marks, which is the order in which groups are held out.
    names, firsts, group_of = numpy.unique(groups, return_index=True, return_inverse=True)
    group_sizes = numpy.bincount(group_of, weights=sizes, minlength=len(names)).astype(numpy.int64)
    stratum_of = strata[firsts] if strata is not None else numpy.zeros(len(names), numpy.int64)
    chosen = numpy.zeros(len(names), bool)
    for stratum in numpy.unique(stratum_of):
        places = numpy.flatnonzero(stratum_of == stratum)
        wanted = round(share * int(group_sizes[places].sum()))
        if share > 0 and wanted == 0 and len(places) >= FEWEST_GROUPS and strata is None:
            wanted = 1
        taken, left = 0, len(places)
        for place in places.tolist():
            if taken >= wanted:
                break
            size = int(group_sizes[place])
            if taken + size <= wanted and left > 1:
                chosen[place] = True
                taken += size
                left -= 1
    return chosen[group_of]


def _groups(
    questions: Array,
    texts: Array,
    sequences: int,
    blank: int,
    keys_of: Callable[[Collection[int]], Mapping[int, str]],
) -> Array:
    """The mark of the group of each row: rows of one group must stay together.

    It is that of the first of the group's questions in the alphabet; of a group without a question,
    that of its text.
    """
    import numpy

    if len(numpy.unique(questions)) * 2 < sequences:
        return texts
    asks = questions != blank  # rows without a question have nothing in common but that
    _, first, text_of = numpy.unique(texts, return_index=True, return_inverse=True)
    # A question for each text: the blank one where none of its rows has one.
    question_of = questions[first]
    question_of[text_of[asks]] = questions[asks]
    groups = numpy.where(asks, questions, question_of[text_of])
    groups = numpy.where(groups == blank, texts, groups)
    others = asks & (question_of[text_of] != questions)  # one text with several questions
    if others.any():
        groups = _joined(
            groups,
            zip(question_of[text_of[others]].tolist(), questions[others].tolist(), strict=True),
            keys_of,
        )
    return groups


def _joined(
    groups: Array, pairs: Any, keys_of: Callable[[Collection[int]], Mapping[int, str]]
) -> Array:
    """The groups with those of each pair made one."""
    import numpy

    above: dict[int, int] = {}

    def top(mark: int) -> int:
        while above.setdefault(mark, mark) != mark:
            above[mark] = above[above[mark]]
            mark = above[mark]
        return mark

    pairs = list(pairs)
    keys = keys_of({mark for pair in pairs for mark in pair})
    for pair in pairs:
        one, other = sorted(map(top, pair), key=lambda mark: keys[mark])
        above[other] = one
    marks = numpy.array(sorted(above), numpy.uint64)
    tops = numpy.array([top(mark) for mark in sorted(above)], numpy.uint64)
    places = numpy.searchsorted(marks, groups).clip(max=len(marks) - 1)
    return numpy.where(marks[places] == groups, tops[places], groups)
