"""All rows of a stage: built, fitted into seq_len and split into training and held-out rows, with a
record of the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

from advisor.data.example import Example
from advisor.ground.errors import InputError
from advisor.ground.progress import Wait, waiting
from advisor.record.stage import DataCounts
from trainers.rows.building import BatchStore, ChunkBuilder, Limits, Numbers, chunks_of
from trainers.rows.conversation import answer_rows
from trainers.rows.kinds import Item, Kind, Marked, PreparedRow, Review
from trainers.rows.length import cut_row, fit_record
from trainers.rows.row import LeftOut, Row, ids_of, rows_word
from trainers.rows.sequences import Array, learned_counts, lengths
from trainers.rows.split import held_out_mask, question_mark
from trainers.rows.stored import RowFile, StoredRows, rows_of_batches
from trainers.rows.template import Templater
from trainers.rows.workers import built_chunks, process_count

__all__ = ["ANSWERS", "Built", "Kind", "Prepared", "PreparedRow", "prepare_stage_rows"]

ANSWERS: Kind[Row] = Kind(name="answers", row=Row, build=answer_rows, cut=cut_row)
# With more than these, rows are read from the disk when they are asked for: 5 million tokens take
# about 150 MB in memory.
MOST_TOKENS, MOST_ROWS = 5_000_000, 100_000
BATCH_ROWS, BATCH_BYTES = 8192, 32 << 20  # of a record batch: the first that is reached
TRAIN, HELD_OUT, LEFT_OUT = range(3)


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[Item]):
    """The rows of one stage, and what happened to the rows that are not in it."""

    train: Sequence[Item]
    holdout: Sequence[Item]
    rows: int  # in the file
    dropped: int = 0
    truncated: int = 0
    split: int = 0  # raw texts split into several sequences, nothing lost
    notes: tuple[str, ...] = ()
    template: str = ""  # where the chat template came from
    turn_ends: tuple[int, ...] = ()  # tokens that end a turn: generation must stop at them
    digest: str = ""  # of everything the rows depend on

    def counts(self) -> DataCounts:
        """The numbers for result.json."""
        return DataCounts(
            rows=self.rows,
            train_rows=len(self.train),
            holdout_rows=len(self.holdout),
            dropped=self.dropped,
            truncated=self.truncated,
            split=self.split,
            tokens=self.tokens,
            learned_tokens=self.learned_tokens,
            longest=int(lengths(self.train).max()),
            template=self.template,
            notes=self.notes,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the rows trained on."""
        return int(lengths(self.train).sum(dtype="int64"))

    @property
    def learned_tokens(self) -> int:
        """Those of them that the loss counts."""
        return int(learned_counts(self.train).sum(dtype="int64"))

    def with_file_counts(self, *, rows: int, dropped: int, notes: Iterable[str]) -> Prepared[Item]:
        """The same with what happened to rows while the file was read."""
        return replace(self, rows=rows, dropped=self.dropped + dropped, notes=(*notes, *self.notes))


TEACH_ANSWERS = ("answers", "pairs", "feedback")  # kinds of rows whose answers are in the data


def prepare_stage_rows(
    examples: Iterable[Example],
    templater: Templater,
    *,
    seq_len: int,
    truncation: str,
    holdout: float,
    seed: int,
    kind: Kind[Any] = ANSWERS,
) -> Prepared[Any]:
    """All rows of a stage, ready to train on.

    Raises InputError, each row named, if too many cannot be trained on.

    Args:
        seq_len: The longest row, in tokens.
        truncation: stop | drop | truncate, as in the plan.
        holdout: The share of rows to hold out.
        seed: Of the split.
        kind: What the objective trains on.
    """
    limits = Limits(seq_len=seq_len, truncation=truncation, seed=seed)
    with build_rows(examples, templater, limits, holdout=holdout, kind=kind) as built:
        return built.in_memory()


@dataclass(frozen=True, kw_only=True)
class Built(Generic[Item]):
    """Rows that have been built and divided, and are not laid out yet."""

    kind: Kind[Item]
    summary: Prepared[Item]  # without rows
    store: BatchStore
    sides: Array  # TRAIN | HELD_OUT | LEFT_OUT for each row of the store
    columns: dict[str, Array]  # values that the review gave to a field
    order: Array | None  # of the store's rows; None: as they are

    def count(self, side: int) -> int:
        """How many rows are on a side."""
        return int((self.sides == side).sum())

    def batches(self, *sides: int) -> Iterator[Any]:
        """The rows of the sides, one side after the other, as record batches that depend on nothing
        but the examples.
        """
        for side in sides:
            yield from _regrouped(self._filtered(side))

    def _filtered(self, side: int) -> Iterator[Any]:
        import pyarrow as pa

        start = 0
        for batch in self._read():
            end = start + batch.num_rows
            for name, values in self.columns.items():
                place = batch.schema.get_field_index(name)
                column = pa.array(values[start:end], batch.schema.field(name).type)
                batch = batch.set_column(place, batch.schema.field(name), column)
            keep = self.sides[start:end] == side
            if keep.all():
                yield batch
            elif keep.any():
                yield batch.filter(pa.array(keep))
            start = end

    def _read(self) -> Iterator[Any]:
        if self.order is None:
            return self.store.read()
        import pyarrow as pa

        table = pa.Table.from_batches(list(self.store.read()))
        return iter(table.take(pa.array(self.order)).combine_chunks().to_batches())

    def in_memory(self) -> Prepared[Item]:
        """The rows as tuples."""
        train, holdout = (
            tuple(rows_of_batches(self.batches(side), self.kind.row)) for side in (TRAIN, HELD_OUT)
        )
        return replace(self.summary, train=train, holdout=holdout)


def _regrouped(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, small ones put together. None is divided: a text that was split into several
    rows stands in the first of them alone.
    """
    import pyarrow as pa

    waiting: list[Any] = []
    rows = size_bytes = 0
    for batch in batches:
        waiting.append(batch)
        rows, size_bytes = rows + batch.num_rows, size_bytes + batch.nbytes
        if rows >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting, rows, size_bytes = [], 0, 0
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def opened_rows(file: RowFile, kind: Kind[Any], train: int) -> tuple[Any, Any]:
    """(the training rows, the held-out rows) of a file: in memory, or if they are many read when
    they are asked for.

    Args:
        train: How many rows are trained on; they come first.
    """
    parts = (StoredRows(file, kind.row, 0, train), StoredRows(file, kind.row, train, len(file)))
    tokens = sum(int(part.lengths.sum(dtype="int64")) for part in parts)
    if len(file) > MOST_ROWS or tokens > MOST_TOKENS:
        return parts
    return parts[0].whole(), parts[1].whole()


@dataclass(slots=True)
class _Found:
    """What was found while rows were built."""

    numbers: Numbers = field(default_factory=Numbers)
    left: LeftOut = field(default_factory=LeftOut)
    notes: Counter[str] = field(default_factory=Counter)
    names: dict[int, str] = field(default_factory=dict)
    seen: int = 0
    answered: int = 0
    thoughtful: int = 0
    texts_alone: bool = True


@contextmanager
def build_rows(
    examples: Iterable[Example],
    templater: Templater,
    limits: Limits,
    *,
    holdout: float,
    kind: Kind[Any] = ANSWERS,
    folder: Path | None = None,
) -> Iterator[Built[Any]]:
    """The rows of a stage, built and divided; what is not in memory goes with the context.

    Raises InputError, each row named, if too many cannot be trained on.

    Args:
        holdout: The share of rows to hold out.
        kind: What the objective trains on.
        folder: Where rows are kept meanwhile, if they are many.
    """
    with BatchStore(folder) as store:
        found = _build(examples, ChunkBuilder(kind, templater, limits), store)
        yield _divided(found, templater, limits, holdout, kind, store)


def _build(examples: Iterable[Example], builder: ChunkBuilder, store: BatchStore) -> _Found:
    with waiting("reading and tokenising", unit="rows") as done:
        return _built(examples, builder, store, done)


def _built(
    examples: Iterable[Example], builder: ChunkBuilder, store: BatchStore, done: Wait
) -> _Found:
    found, templater = _Found(), builder.templater
    for chunk in built_chunks(chunks_of(examples), builder, processes=process_count()):
        done(chunk.seen)
        store.add(chunk.batch)
        found.numbers.extend(chunk.numbers)
        found.left.merge(chunk.left)
        found.notes.update(chunk.notes)
        found.names.update(chunk.names)
        found.seen += chunk.seen
        found.answered += chunk.answered
        found.thoughtful += chunk.thoughtful
        found.texts_alone = found.texts_alone and chunk.texts_alone
        if chunk.plain_template:  # which another process gave to its tokenizer
            templater.use_plain_template()
        templater.turn_ends |= chunk.turn_ends
    return found


def _divided(
    found: _Found,
    templater: Templater,
    limits: Limits,
    holdout: float,
    kind: Kind[Any],
    store: BatchStore,
) -> Built[Any]:
    import numpy

    found.left.raise_if_too_many(found.seen)
    of = found.numbers.arrays()
    count = len(of["number"])
    if not count:
        raise InputError("the data has no rows")
    review = Review()
    if kind.review is not None:
        review = kind.review(
            Marked(numbers=of["number"], texts=of["text"], marks=of["mark"], names=found.names)
        )
    keep = review.keep if review.keep is not None else numpy.ones(count, bool)
    fit = fit_record(
        numbers=of["number"][keep],
        tokens=of["tokens"][keep],
        outcomes=of["outcome"][keep],
        seq_len=limits.seq_len,
        truncation=limits.truncation,
        is_cut=kind.cut is not None,
        unit=kind.unit,
        limit=kind.limit,
    )
    used = keep & (of["pieces"] > 0)
    held = numpy.zeros(count, bool)
    held[used] = held_out_mask(
        questions=of["question"][used],
        texts=of["text"][used],
        sizes=of["pieces"][used],
        share=holdout,
        blank=question_mark("", limits.seed),
        strata=of["mark"][used] if kind.stratified else None,
        keys_of=lambda marks: _keys(marks, of["question"], of["pieces"], store),
    )
    disagreement = templater.thoughts_note(found.answered, found.thoughtful)
    notes = [
        *templater.remarks,
        *([disagreement] if disagreement and kind.name in TEACH_ANSWERS else []),
        *found.left.lines(),
        *review.notes,
        *fit.notes,
        *(f"{rows_word(rows)}: {text}" for text, rows in found.notes.items()),
    ]
    if holdout > 0 and not held.any():
        notes.append("nothing is held out: there are too few different rows")
    sides = numpy.where(held, HELD_OUT, numpy.where(used, TRAIN, LEFT_OUT)).astype(numpy.int8)
    numbers = numpy.repeat(of["number"], of["pieces"])
    ordered = bool((numpy.diff(numbers) >= 0).all())
    built = Built(
        kind=kind,
        summary=Prepared(
            train=(),
            holdout=(),
            rows=found.seen,
            dropped=found.left.total + int((~keep).sum()) + fit.dropped,
            truncated=fit.truncated,
            split=fit.split,
            notes=tuple(notes),
            template="none (raw text)" if found.texts_alone else templater.template_source,
            turn_ends=tuple(sorted(templater.turn_ends)),
        ),
        store=store,
        sides=numpy.repeat(sides, of["pieces"]),
        columns={
            name: numpy.repeat(values, of["pieces"]) for name, values in review.columns.items()
        },
        order=None,
    )
    if ordered:
        return built
    order = numpy.argsort(numbers, kind="stable")  # examples that did not come as in their file
    columns = {name: values[order] for name, values in built.columns.items()}
    return replace(built, sides=built.sides[order], columns=columns, order=order)


def _keys(
    marks: Collection[int], questions: Array, pieces: Array, store: BatchStore
) -> dict[int, str]:
    """The questions that some marks stand for, read from the rows."""
    import numpy

    places = numpy.flatnonzero(
        (pieces > 0) & numpy.isin(questions, numpy.fromiter(marks, numpy.uint64, len(marks)))
    )
    known, first = numpy.unique(questions[places], return_index=True)
    rows = (numpy.cumsum(pieces) - pieces)[places[first]]  # the first row of each
    by_row = sorted(zip(rows.tolist(), known.tolist(), strict=True))
    found: dict[int, str] = {}
    start = 0
    for batch in store.read():
        while len(found) < len(by_row) and by_row[len(found)][0] < start + batch.num_rows:
            row, mark = by_row[len(found)]
            found[mark] = batch.column("key")[row - start].as_py()
        start += batch.num_rows
    return found


def rows_digest(rows: Iterable[Any]) -> str:
    """A digest of what is trained on: equal for equal tokens, labels and texts in equal order,
    whatever prepared them.
    """
    digest = hashlib.sha256()
    for row in rows:
        for part in dataclasses.fields(row):
            value = getattr(row, part.name)
            if part.name == "number":  # of its line in the file
                continue
            if isinstance(value, str) or value is None or isinstance(value, int):
                digest.update(f"{value!r}\0".encode("utf-8", "surrogatepass"))
            else:
                digest.update(ids_of(value).tobytes() + b"\0")
    return digest.hexdigest()
