"""Examples as rows, some at a time: what is kept of each in memory is a few numbers, and the rows
themselves go into Arrow record batches, on the disk once they are many.

What all rows decide together (repeats, classes, the share that is too long, the split) is decided
from the numbers. The same examples give the same batches, in whatever process they were built.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from advisor.data.example import Example
from advisor.data.templates.chat_text import answers_of, holds_thoughts
from advisor.ground.files import DISK, TEMPORARY, cannot_write
from trainers.job.files import make_folder
from trainers.rows.kinds import Kind, mark_of
from trainers.rows.length import fit_row
from trainers.rows.row import LeftOut
from trainers.rows.sequences import Array
from trainers.rows.split import question_mark, text_mark
from trainers.rows.stored import rows_batch
from trainers.rows.template import Templater

CHUNK_EXAMPLES, CHUNK_CHARS = 512, 1 << 20  # built at once: the first of the two that is reached
IN_MEMORY_BYTES = 64 << 20  # of record batches; more are written to the disk


class Limits(NamedTuple):
    """What rows have to fit into."""

    seq_len: int
    truncation: str  # stop | drop | truncate
    seed: int  # of the split


@dataclass(slots=True)
class Numbers:
    """What is kept of each row: one entry a row, before it is cut or split."""

    number: Any = field(default_factory=lambda: array("q"))
    tokens: Any = field(default_factory=lambda: array("i"))
    question: Any = field(default_factory=lambda: array("Q"))  # split.question_mark
    text: Any = field(default_factory=lambda: array("Q"))  # split.text_mark
    mark: Any = field(default_factory=lambda: array("Q"))  # of what the review of a kind compares
    outcome: Any = field(default_factory=lambda: array("b"))  # of length.fit_row
    pieces: Any = field(default_factory=lambda: array("i"))  # rows that came of it

    def extend(self, later: Numbers) -> None:
        """Add those of later rows."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(later, name))

    def arrays(self) -> dict[str, Array]:
        """The same as numpy arrays."""
        import numpy

        return {
            name: numpy.frombuffer(values, values.typecode) if values else numpy.empty(0, "i8")
            for name in self.__slots__
            for values in [getattr(self, name)]
        }


@dataclass(slots=True)
class Chunk:
    """What some examples give."""

    batch: Any  # an Arrow record batch of their rows, within seq_len
    numbers: Numbers
    left: LeftOut
    seen: int  # examples
    answered: int  # of them that teach an answer
    thoughtful: int  # whose answers hold thoughts
    texts_alone: bool
    names: dict[int, Any]  # mark -> what it stands for, if the kind keeps it
    # What the templater learned from them.
    notes: Counter[str]
    turn_ends: set[int]
    plain_template: bool  # given to the tokenizer, which had none


class ChunkBuilder:
    """Builds the rows of some examples."""

    def __init__(self, kind: Kind[Any], templater: Templater, limits: Limits) -> None:
        self.kind, self.templater, self.limits = kind, templater, limits

    def build(self, examples: Sequence[Example]) -> Chunk:
        """The rows of the examples. Raises what the kind raises for a row that ends the run."""
        kind, limits, templater = self.kind, self.limits, self.templater
        templater.notes = Counter()
        left, numbers = LeftOut(), Numbers()
        names: dict[int, Any] = {}
        answers = list(map(answers_of, examples))
        rows: list[Any] = []
        repeated: list[bool] = []
        texts_alone = True
        for row in kind.build(examples, templater, left):
            outcome, pieces = fit_row(
                row, seq_len=limits.seq_len, truncation=limits.truncation, cut=kind.cut
            )
            numbers.number.append(row.number)
            numbers.tokens.append(row.tokens)
            numbers.question.append(question_mark(row.key, limits.seed))
            numbers.text.append(text_mark(row.text, limits.seed))
            numbers.outcome.append(outcome)
            numbers.pieces.append(len(pieces))
            if kind.mark is not None:
                value = kind.mark(row)
                mark = mark_of(value)
                numbers.mark.append(mark)
                if kind.keeps_marks:
                    names[mark] = value
            rows.extend(pieces)
            repeated.extend(place > 0 for place in range(len(pieces)))
            texts_alone = texts_alone and getattr(row, "document", False)
        return Chunk(
            batch=rows_batch(rows, kind.row, repeated=repeated),
            numbers=numbers,
            left=left,
            seen=len(examples),
            answered=sum(map(bool, answers)),
            thoughtful=sum(any(map(holds_thoughts, one)) for one in answers),
            texts_alone=texts_alone,
            names=names,
            notes=templater.notes,
            turn_ends=templater.turn_ends,
            plain_template=templater.gave_template,
        )


def chunks_of(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples in groups that depend on nothing but them."""
    chunk: list[Example] = []
    size_chars = 0
    for example in examples:
        chunk.append(example)
        size_chars += len(example.text or "") + sum(
            len(message.content)
            for group in (example.messages, example.chosen, example.rejected)
            for message in group
        )
        if len(chunk) >= CHUNK_EXAMPLES or size_chars >= CHUNK_CHARS:
            yield chunk
            chunk, size_chars = [], 0
    if chunk:
        yield chunk


class BatchStore:
    """Record batches in the order in which they were added: in memory, and once they are many in a
    file that is removed at the end.

    Args:
        folder: Where that file is made; default: the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.batches: list[Any] = []
        self.size_bytes = 0
        self.path: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> BatchStore:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self.path is not None:
            DISK.discard(self.path)

    def add(self, batch: Any) -> None:
        """Add a record batch. Raises MachineNotReady if the disk does not take it."""
        if batch.num_rows == 0 and (self.batches or self._writer is not None):
            return
        self.size_bytes += batch.nbytes
        if self._writer is None and self.size_bytes <= IN_MEMORY_BYTES:
            self.batches.append(batch)
            return
        try:
            if self._writer is None:
                self._open(batch.schema)
            self._writer.write_batch(batch)
        except OSError as error:
            raise cannot_write(self.path or Path(tempfile.gettempdir()), error) from error

    def _open(self, schema: Any) -> None:
        import pyarrow as pa

        if self.folder is not None:
            make_folder(self.folder)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}rows-", dir=self.folder)
        os.close(handle)
        self.path = Path(name)
        self._writer = pa.ipc.new_stream(name, schema)
        for batch in self.batches:
            self._writer.write_batch(batch)
        self.batches = []

    def read(self) -> Iterator[Any]:
        """Every batch, one in memory at a time. Nothing can be added any more."""
        if self._writer is None:
            yield from self.batches
            return
        import pyarrow as pa

        self._writer.close()
        with pa.OSFile(str(self.path)) as file:
            yield from pa.ipc.open_stream(file)
