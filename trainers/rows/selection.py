"""Which rows a stage trains on: those within seq_len, in training and held-out ones.

A row that is too long stops the run, is left out or is cut, as the plan says, and is always
counted. Rows that say or ask the same stay on one side, and the split depends on content and seed
alone. Of each row only eight bytes of a digest of its question and eight of its text are looked at.
Two different ones among ten million agree with a probability of 3 in a million, and would then only
stay on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from advisor.data.example import FEWEST_GROUPS
from advisor.ground.errors import InputError
from trainers.rows.row import IGNORED, SHOWN_ROWS, STOP_SHARE, Item, Kind, Row, ids_of, row_numbers
from trainers.rows.sequences import Array

KEPT, CUT, SPLIT, TOO_LONG, NOTHING_LEFT = range(5)  # what happens to a row


def cut_row(row: Row, seq_len: int) -> Row | None:
    """The row without its end; None if nothing to learn would be left."""
    cut = replace(row, input_ids=row.input_ids[:seq_len], labels=row.labels[:seq_len])
    return cut if cut.learned else None


def split_text(row: Row, seq_len: int) -> Iterator[Row]:
    """A text as pieces of at most `seq_len` tokens.

    Each begins with the last token of the one before, which is read there and not learned again. So
    every token of the text except its first is learned exactly once, and every piece has something
    to predict.
    """
    for start in range(0, row.tokens - 1, seq_len - 1):
        labels = row.labels[start : start + seq_len]
        yield replace(
            row,
            input_ids=row.input_ids[start : start + seq_len],
            labels=ids_of((IGNORED, *labels[1:])) if start else labels,
        )


def fit_row(row: Item, kind: Kind[Item], limits: Limits) -> tuple[int, Sequence[Item]]:
    """(what happens to a row, the rows that come of it)."""
    if row.tokens <= limits.seq_len:
        return KEPT, (row,)
    if isinstance(row, Row) and row.document:
        return SPLIT, tuple(split_text(row, limits.seq_len))  # type: ignore[arg-type]  # Item is Row
    if limits.truncation != "truncate" or kind.cut is None:
        return TOO_LONG, ()
    shorter = kind.cut(row, limits.seq_len)
    return (NOTHING_LEFT, ()) if shorter is None else (CUT, (shorter,))


class Limits(NamedTuple):
    """What rows have to fit into."""

    seq_len: int
    truncation: str  # stop | drop | truncate
    seed: int  # of the split


class FitRecord(NamedTuple):
    """What happened to rows that were too long."""

    dropped: int
    truncated: int
    split: int
    notes: list[str]


def fit_record(rows: Array, kind: Kind[Any], limits: Limits) -> FitRecord:
    """The counts and notes on all rows.

    Raises InputError if too many are too long and the plan does not say what to do, or if none is
    left.

    Args:
        rows: `number`, `tokens` before it was cut or split, and `outcome` of each row.
        kind: Theirs.
        limits: What they have to fit into.
    """
    import numpy

    numbers, tokens, outcomes = (rows[name] for name in ("number", "tokens", "outcome"))
    seq_len, truncation, unit, limit = limits.seq_len, limits.truncation, kind.unit, kind.limit
    long = int(((tokens > seq_len) & (outcomes != SPLIT)).sum())
    if truncation == "stop" and long > STOP_SHARE * len(tokens):
        lengths = numpy.sort(tokens)
        ways = "truncation: drop (leave them out)" + (
            " or truncation: truncate (cut their end)" if kind.cut is not None else ""
        )
        raise InputError(
            f"{long:,} of {len(tokens):,} {unit} are longer than {limit} {seq_len} (95 % are"
            f" within {lengths[int(0.95 * (len(lengths) - 1))]:,} tokens, the longest has"
            f" {lengths[-1]:,})",
            allowed=f"truncation: stop allows {STOP_SHARE:.0%} of the {unit}",
            hint=f"raise seq_len, or set {ways}",
        )
    dropped = numbers[outcomes == TOO_LONG].tolist()
    unanswered = numbers[outcomes == NOTHING_LEFT].tolist()
    truncated, split = int((outcomes == CUT).sum()), int((outcomes == SPLIT).sum())
    notes = []
    if truncated:
        notes.append(
            f"{truncated:,} {unit} were cut at {limit} {seq_len}: their answers have no end"
        )
    if dropped:
        which = row_numbers(dropped[:SHOWN_ROWS], len(dropped))
        notes.append(
            f"{len(dropped):,} of {len(tokens):,} {unit} were left out: longer than {limit}"
            f" {seq_len} ({which})"
        )
    if unanswered:
        which = row_numbers(unanswered[:SHOWN_ROWS], len(unanswered))
        notes.append(
            f"{len(unanswered):,} {unit} were left out: nothing to learn is left of them within"
            f" {limit} {seq_len} ({which})"
        )
    if split:
        notes.append(
            f"{split:,} texts were split into pieces of {limit} {seq_len}; every token is"
            " still learned once"
        )
    if len(dropped) + len(unanswered) == len(tokens):
        raise InputError(
            f"no row fits into {limit} {seq_len}",
            hint=f"the shortest has {int(tokens.min()):,} tokens",
        )
    return FitRecord(len(dropped) + len(unanswered), truncated, split, notes)


def held_out_mask(
    rows: Array,
    share: float,
    *,
    blank: int,
    keys_of: Callable[[Collection[int]], Mapping[int, str]],
    strata: Array | None = None,
) -> Array:
    """Which rows to hold out.

    Args:
        rows: `question` (its mark), `text` (its mark) and `pieces` of each row; none without
            pieces.
        share: The share of sequences to hold out.
        blank: The mark of no question at all.
        keys_of: Gives the questions that some marks stand for.
        strata: A number for the stratum of each row (a class), of which the same share is held out.
    """
    import numpy

    sizes = rows["pieces"]
    groups = _groups(rows["question"], rows["text"], int(sizes.sum()), blank, keys_of)
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
