"""Examples as rows, some at a time and in several processes: what is kept of each in memory is a
few numbers, and the rows themselves are Arrow record batches, which go to the disk.

The same examples give the same batches, in whatever process they were built. On Linux the workers
are forks, as those of torch's data loaders are: they start at once and share the parent's memory,
where a new process would import torch with transformers (350 MB, seconds). They use neither the GPU
nor threads.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from advisor.data.example import Example, question_mark, text_mark
from advisor.data.templates.bounded import bound_chat_templates
from advisor.data.templates.chat_text import answers_of, holds_thoughts
from advisor.ground.errors import MachineNotReady
from trainers.job.machine import usable_cores
from trainers.rows.row import Kind, LeftOut, mark_of
from trainers.rows.selection import Limits, fit_row
from trainers.rows.stored import rows_batch
from trainers.rows.template import Templater

CHUNK_EXAMPLES, CHUNK_CHARS = 512, 1 << 20  # built at once: the first of the two that is reached
ALONE_ROWS = 10_000  # are built before workers are worth their start of a few seconds
MOST_WORKERS = 16  # what one process can read and write for
# What is kept of each row before it is cut or split.
NUMBERS = [
    ("number", "i8"),
    ("question", "u8"),  # question_mark
    ("text", "u8"),  # text_mark
    ("mark", "u8"),  # of what the review of a kind compares
    ("tokens", "i4"),
    ("pieces", "i4"),  # rows that came of it
    ("outcome", "i1"),  # of selection.fit_row
]


@dataclass(slots=True)
class Chunk:
    """What some examples give, or all of them."""

    numbers: bytearray = field(default_factory=bytearray)  # of NUMBERS: grows without a copy
    left: LeftOut = field(default_factory=LeftOut)
    seen: int = 0  # examples
    answered: int = 0  # of them that teach an answer
    thoughtful: int = 0  # whose answers hold thoughts
    texts_alone: bool = True
    names: dict[int, Any] = field(default_factory=dict)  # mark -> what it stands for, if kept
    # What the templater learned from them.
    notes: Counter[str] = field(default_factory=Counter)
    turn_ends: set[int] = field(default_factory=set)
    plain_template: bool = False  # given to the tokenizer, which had none
    batch: Any = None  # an Arrow record batch of their rows, within seq_len

    def add(self, later: Chunk) -> None:
        """Count also what later examples give, without their rows."""
        self.numbers += later.numbers
        self.left.merge(later.left)
        self.seen += later.seen
        self.answered += later.answered
        self.thoughtful += later.thoughtful
        self.texts_alone = self.texts_alone and later.texts_alone
        self.names.update(later.names)
        self.notes.update(later.notes)
        self.turn_ends |= later.turn_ends
        self.plain_template = self.plain_template or later.plain_template


class ChunkBuilder:
    """Builds the rows of some examples."""

    def __init__(self, kind: Kind[Any], templater: Templater, limits: Limits) -> None:
        self.kind, self.templater, self.limits = kind, templater, limits

    def build(self, examples: Sequence[Example]) -> Chunk:
        """The rows of the examples. Raises what the kind raises for a row that ends the run."""
        import numpy

        kind, limits, templater = self.kind, self.limits, self.templater
        templater.notes = Counter()
        answers = list(map(answers_of, examples))
        found = Chunk(
            seen=len(examples),
            answered=sum(map(bool, answers)),
            thoughtful=sum(any(map(holds_thoughts, one)) for one in answers),
        )
        numbers: list[tuple[int, ...]] = []
        rows: list[Any] = []
        repeated: list[bool] = []
        for row in kind.rows(examples, templater, found.left):
            outcome, pieces = fit_row(row, kind, limits)
            mark = 0
            if kind.mark is not None:
                value = kind.mark(row)
                mark = mark_of(value)
                if kind.keeps_marks:
                    found.names[mark] = value
            marks = question_mark(row.key, limits.seed), text_mark(row.text, limits.seed), mark
            numbers.append((row.number, *marks, row.tokens, len(pieces), outcome))
            rows.extend(pieces)
            repeated.extend(place > 0 for place in range(len(pieces)))
            found.texts_alone = found.texts_alone and getattr(row, "document", False)
        found.numbers += numpy.array(numbers, NUMBERS).tobytes()
        found.batch = rows_batch(rows, kind.row, repeated)
        found.notes, found.turn_ends = templater.notes, templater.turn_ends
        found.plain_template = templater.gave_template
        return found


def built_chunks(examples: Iterable[Example], builder: ChunkBuilder) -> Iterator[Chunk]:
    """What the examples give, some at a time and in their order.

    Raises MachineNotReady if a worker is ended from outside.
    """
    chunks, alone = _chunks_of(examples), 0
    for chunk in chunks:
        yield builder.build(chunk)
        alone += len(chunk)
        if alone >= ALONE_ROWS and process_count() > 1:
            yield from _built_by_workers(chunks, builder, process_count())


def process_count() -> int:
    """How many processes build rows: one for each usable core, at most 16."""
    return min(usable_cores(), MOST_WORKERS)


def _chunks_of(examples: Iterable[Example]) -> Iterator[list[Example]]:
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


# ------------------------------------------------------------------------------------ workers

_builder: ChunkBuilder | None = None  # a worker's own


def _built_by_workers(
    chunks: Iterator[list[Example]], builder: ChunkBuilder, processes: int
) -> Iterator[Chunk]:
    """What the chunks give, one for each process on its way."""
    forks = sys.platform == "linux"
    if not forks:
        try:
            pickle.dumps(builder)
        except (pickle.PicklingError, AttributeError, TypeError):  # made in a function
            yield from map(builder.build, chunks)
            return
    context = multiprocessing.get_context("fork" if forks else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (builder,))
    at_work: deque[Any] = deque()
    try:
        for chunk in chunks:
            with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
                warnings.simplefilter("ignore", DeprecationWarning)
                at_work.append(pool.submit(_build, chunk))
            if len(at_work) > processes:
                yield at_work.popleft().result()
        while at_work:
            yield at_work.popleft().result()
    except BrokenProcessPool:
        raise MachineNotReady(
            "a process that builds rows was ended from outside",
            hint=(
                "most likely by the kernel, for lack of memory: `dmesg` says; with fewer CPU cores"
                " (taskset) there are fewer of them"
            ),
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(builder: ChunkBuilder) -> None:
    """Leave signals to the parent, which ends its workers, and end if it is gone."""
    global _builder
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bound_chat_templates()  # in a process that began anew
    _builder = builder


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(examples: Sequence[Example]) -> Chunk:
    assert _builder is not None
    return _builder.build(examples)
