"""Rows built by several processes, in the order and with the result of one.

On Linux the workers are forks, as those of torch's data loaders are: they start at once and share
the parent's memory, where a new process would import torch with transformers (350 MB, seconds).
They use neither the GPU nor threads. Elsewhere they start anew. Examples and rows travel through
pipes; each worker has one chunk at a time, so that what is under way is bounded. Signals are the
parent's to handle: it ends its workers, and a worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from advisor.data.example import Example
from advisor.ground.errors import AdviseError, Fault, MachineNotReady
from trainers.job.machine import usable_cores
from trainers.rows.building import Chunk, ChunkBuilder, Limits
from trainers.rows.kinds import Kind
from trainers.rows.template import Templater

ALONE_ROWS = 10_000  # are built before workers are worth their start of a few seconds
MOST_WORKERS = 16  # what one process can read and write for


def process_count() -> int:
    """How many processes build rows: one for each usable core, at most 16."""
    return min(usable_cores(), MOST_WORKERS)


def built_chunks(
    chunks: Iterator[list[Example]], builder: ChunkBuilder, *, processes: int
) -> Iterator[Chunk]:
    """What each of the chunks gives, in their order.

    Args:
        chunks: Of examples.
        builder: Builds the first rows here, and all of them if there are no more.
        processes: How many build the rows behind the first ALONE_ROWS.
    """
    alone = 0
    for chunk in chunks:
        yield builder.build(chunk)
        alone += len(chunk)
        if processes > 1 and alone >= ALONE_ROWS:
            break
    else:
        return
    try:
        workers = Workers(builder, processes)
    except (pickle.PicklingError, AttributeError, TypeError):  # a method's own, made in a function
        yield from map(builder.build, chunks)
        return
    with workers:
        yield from workers.build(chunks)


class Failure(NamedTuple):
    """What ended a chunk, as it travels: exceptions with keywords cannot."""

    kind: type[AdviseError] | None  # None: unexpected
    faults: tuple[Fault, ...]
    trace: str = ""

    def error(self) -> Exception:
        """The exception to raise."""
        if self.kind is not None:
            return self.kind(faults=self.faults)
        return RuntimeError(
            f"{self.faults[0].headline}\n\nin a process that builds rows:\n{self.trace}"
        )


class Worker(NamedTuple):
    """One process and the pipe to it."""

    process: Any
    pipe: Any

    def receive(self) -> Chunk:
        """The chunk it is at. Raises what ended it."""
        try:
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise MachineNotReady(
                "a process that builds rows was ended from outside (exit code"
                f" {self.process.exitcode})",
                hint=(
                    "most likely by the kernel, for lack of memory: `dmesg` says; with fewer CPU"
                    " cores (taskset) there are fewer of them"
                ),
            ) from None
        if isinstance(found, Failure):
            raise found.error()
        chunk: Chunk = found
        return chunk

    def send(self, examples: Sequence[Example]) -> None:
        """Give it the next examples."""
        with suppress(OSError):  # it is gone: said when its chunk is asked for
            self.pipe.send(examples)


class Workers:
    """Processes that build rows; they end with the context.

    Raises pickle.PicklingError or TypeError if the kind or the tokenizer cannot travel.
    """

    def __init__(self, builder: ChunkBuilder, count: int) -> None:
        forks = sys.platform == "linux"
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        templater = builder.templater
        setup = Setup(
            builder.kind,
            templater.tokenizer,
            builder.limits,
            templater.learn_all,
            templater.own_template,
            templater.gave_template,
        )
        self.workers: list[Worker] = []
        try:
            for _ in range(count):
                own, other = context.Pipe()
                # Forks inherit the parent's ends of all pipes. One that is open anywhere is never
                # at its end, and a worker would wait for a parent that is gone.
                inherited = [own, *(worker.pipe for worker in self.workers)] if forks else []
                process = context.Process(target=work, args=(other, setup, inherited), daemon=True)
                with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                other.close()
                self.workers.append(Worker(process, own))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(5)

    def build(self, chunks: Iterator[list[Example]]) -> Iterator[Chunk]:
        """What each of the chunks gives, in their order."""
        idle, at_work = deque(self.workers), deque[Worker]()
        for chunk in chunks:
            found = None
            if idle:
                worker = idle.popleft()
            else:
                worker = at_work.popleft()
                found = worker.receive()
            worker.send(chunk)
            at_work.append(worker)
            if found is not None:
                yield found
        while at_work:
            yield at_work.popleft().receive()


class Setup(NamedTuple):
    """What a worker builds rows with."""

    kind: Kind[Any]
    tokenizer: Any
    limits: Limits
    learn_all: bool
    own_template: bool
    gave_template: bool


def work(pipe: Any, setup: Setup, inherited: Sequence[Any]) -> None:
    """Build the rows of each chunk that comes through the pipe, until it is closed.

    Args:
        inherited: The parent's ends of pipes, to be closed here.
    """
    for other in inherited:
        other.close()
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    templater = Templater(setup.tokenizer, learn_all=setup.learn_all)
    templater.own_template = setup.own_template
    templater.gave_template = setup.gave_template
    builder = ChunkBuilder(setup.kind, templater, setup.limits)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(result_of(builder, pipe.recv()))


def result_of(builder: ChunkBuilder, examples: Sequence[Example]) -> Chunk | Failure:
    """The chunk, or what ended it."""
    try:
        return builder.build(examples)
    except AdviseError as error:
        return Failure(type(error), error.faults)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        fault = Fault(what=f"{type(error).__name__}: {first}")
        return Failure(None, (fault,), traceback.format_exc())
