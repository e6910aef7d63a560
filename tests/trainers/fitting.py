"""Rows that are built, fitted and divided without a file, for tests of the rules alone."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from advisor.data.example import question_mark, text_mark
from trainers.rows import ANSWERS, Prepared, Row
from trainers.rows.row import LeftOut, Limits, fit_record, fit_row
from trainers.rows.stage_rows import Preparation, held_out_mask


def tokenise(examples, templater) -> list[Row]:
    """Every example as a row. Raises InputError if more than a few have nothing to learn."""
    left = LeftOut()
    rows = list(ANSWERS.rows(examples, templater, left))
    left.raise_if_too_many(len(examples))
    return rows


def fit_rows(rows, *, seq_len, truncation, cut=None) -> SimpleNamespace:
    """The rows within `seq_len` and the record of the others."""
    import numpy

    kind, limits = replace(ANSWERS, cut=cut), Limits(seq_len, truncation, 0)
    found = [fit_row(row, kind, limits) for row in rows]
    numbers = {
        "number": numpy.array([row.number for row in rows]),
        "tokens": numpy.array([row.tokens for row in rows]),
        "outcome": numpy.array([outcome for outcome, _ in found]),
    }
    record = fit_record(numbers, kind, limits)
    return SimpleNamespace(rows=[piece for _, pieces in found for piece in pieces], **record)


def prepare_stage_rows(
    examples, templater, *, seq_len, truncation, holdout, seed, kind=ANSWERS
) -> Prepared:
    """All rows of a stage, kept and read back, in memory."""
    limits = Limits(seq_len, truncation, seed)
    preparation = Preparation(templater=templater, limits=limits, holdout=holdout, kind=kind)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        preparation.write(path, examples, "")
        return in_memory(preparation.read(path, ""))


def in_memory(found: Prepared | None) -> Prepared | None:
    """The same with its rows in memory: equal to others with equal rows."""
    return found and replace(found, train=tuple(found.train), holdout=tuple(found.holdout))


def split_rows(rows, *, share, seed) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows, each in the order of their file."""
    import numpy

    marks = [(question_mark(row.key, seed), text_mark(row.text, seed), 1) for row in rows]
    held = held_out_mask(
        numpy.array(marks, [("question", "u8"), ("text", "u8"), ("pieces", "i8")]),
        share,
        blank=question_mark("", seed),
    )
    sides = [], []
    for row, is_held in sorted(zip(rows, held, strict=True), key=lambda pair: pair[0].number):
        sides[int(is_held)].append(row)
    return sides


def sequence(number, ids, labels=None, **others) -> Row:
    """A row of these tokens, all of them learned unless the labels say otherwise."""
    texts = {"prompt": "p", "shown": "", "expected": "", "key": f"key {number}", **others}
    labels = ids if labels is None else labels
    return Row(number, input_ids=ids, labels=labels, **{"text": f"text {number}", **texts})
