"""All rows of a stage: read by advisor.data, built as its objective needs them, divided into
training and held-out rows with a record of the others, and kept in the run folder.

The same data, tokenizer, settings and code give the same files, byte for byte, so that no rows are
prepared twice.

Examples are built some at a time and in several processes: what is kept of each in memory is a few
numbers, and the rows themselves are Arrow record batches, which go to the disk. On Linux the
workers are forks, as those of torch's data loaders are: they start at once and share the parent's
memory, where a new process would import torch with transformers (350 MB, seconds); elsewhere there
are none. They use neither the GPU nor threads.

Rows that say or ask the same, or nearly the same, stay on one side, and the split depends on
content and seed alone. Of each row eight bytes of a digest of its question and eight of its text
are looked at, and of the first hundred thousand the smallest hashes of their word sequences. Two
different ones among ten million agree with a probability of 3 in a million, and would then only
stay on one side.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

import numpy

from advisor.data import Example, SkippedRows, content_digest, find_data, read_examples, recognise
from advisor.data.checks.repeats import KEPT_TOGETHER, alike, normalise, sketch
from advisor.data.example import FEWEST_GROUPS, question_mark, text_mark
from advisor.data.examples import Tally
from advisor.data.read.hub import is_hub_id
from advisor.data.templates.chat_text import answers_of, holds_thoughts
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.progress import waiting
from advisor.record.stage import DataCounts
from trainers.job import Tokenizer
from trainers.job.files import digest_of
from trainers.job.job import Job
from trainers.job.machine import (
    is_main_process,
    others_wait_for,
    process_count,
    usable_cores,
    wait_for,
)
from trainers.rows.conversation import ANSWERS
from trainers.rows.row import Array, Item, Kind, LeftOut, Limits, fit_record, fit_row, mark_of
from trainers.rows.sequences import (
    RowsWriter,
    lengths,
    read_rows,
    remove_rows,
    rows_batch,
    values_of,
)
from trainers.rows.template import Templater

TEACH_ANSWERS = ("answers", "pairs", "feedback")  # kinds of rows whose answers are in the data
# Besides our own code, what decides how text becomes tokens.
LIBRARIES = ("transformers", "tokenizers", "jinja2")
CHUNK_EXAMPLES, CHUNK_CHARS = 4096, 1 << 20  # built at once: the first of the two that is reached
ALONE_ROWS = 10_000  # are built before workers are worth their start of a few seconds
MOST_WORKERS = 16  # what one process can read and write for
# What is kept of each row before it is cut or split.
NUMBERS = [
    ("number", "i8"),
    ("question", "u8"),  # question_mark
    ("text", "u8"),  # text_mark
    ("mark", "u8"),  # of what its kind compares
    ("tokens", "i4"),
    ("pieces", "i4"),  # rows that came of it
    ("outcome", "i1"),  # of row.fit_row
]


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
    digest: str = ""  # of the rows, in their order and on their side

    def counts(self) -> DataCounts:
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
        return int(values_of(self.train, "learned").sum(dtype="int64"))


@dataclass(slots=True)
class Chunk:
    """What some examples give, or all of them."""

    numbers: bytearray = field(default_factory=bytearray)  # of NUMBERS: grows without a copy
    left: LeftOut = field(default_factory=LeftOut)
    # Of examples: those seen, that teach an answer, with thoughts in it, that are no plain text.
    counts: Counter[str] = field(default_factory=Counter)
    # What the templater learned from them.
    notes: Counter[str] = field(default_factory=Counter)
    turn_ends: set[int] = field(default_factory=set)
    plain_template: bool = False  # given to the tokenizer, which had none
    sketches: dict[int, array[int]] = field(
        default_factory=dict
    )  # of what a text says, by its mark
    batch: Any = None  # an Arrow record batch of their rows, within seq_len

    def add(self, later: Chunk) -> None:
        """Count also what later examples give, without their rows."""
        self.numbers += later.numbers
        self.sketches |= later.sketches
        self.left.merge(later.left)
        self.counts.update(later.counts)
        self.notes.update(later.notes)
        self.turn_ends |= later.turn_ends
        self.plain_template |= later.plain_template


Build = Callable[[Sequence[Example]], Chunk]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How examples become the rows of a stage.

    Args:
        limits: What rows have to fit into.
        holdout: The share of rows to hold out.
        kind: What the objective trains on.
    """

    templater: Templater
    limits: Limits
    holdout: float
    kind: Kind[Any]

    def build(self, examples: Sequence[Example]) -> Chunk:
        """The rows of the examples. Raises what the kind raises for a row that ends the run."""
        kind, limits, templater = self.kind, self.limits, self.templater
        templater.notes = Counter()
        answers = list(map(answers_of, examples))
        found = Chunk()
        found.counts.update(
            seen=len(examples),
            answered=sum(map(bool, answers)),
            thoughtful=sum(any(map(holds_thoughts, one)) for one in answers),
        )
        numbers: list[tuple[int, ...]] = []
        rows: list[Any] = []
        for row in kind.rows(examples, templater, found.left):
            outcome, pieces = fit_row(row, kind, limits)
            mark = 0 if kind.mark is None else mark_of(kind.mark(row))
            marks = question_mark(row.key, limits.seed), text_mark(row.text, limits.seed), mark
            numbers.append((row.number, *marks, row.tokens, len(pieces), outcome))
            if row.number <= KEPT_TOGETHER:
                found.sketches[marks[1]] = array("I", sketch(normalise(own_words(row))))
            rows.extend(pieces)
            found.counts["talks"] += not getattr(row, "document", False)
        found.numbers += numpy.array(numbers, NUMBERS).tobytes()
        found.batch = rows_batch(rows, kind.row)
        found.notes, found.turn_ends = templater.notes, templater.turn_ends
        found.plain_template = templater.gave_template
        return found

    def write(
        self,
        path: Path,
        examples: Iterable[Example],
        digest: str = "",
        *,
        skipped: SkippedRows | None = None,
        guesses: Sequence[str] = (),
    ) -> None:
        """Build the rows and keep them.

        Raises InputError, each row named, if too many cannot be trained on.

        Args:
            path: As for `read`.
            digest: Of all that the rows depend on.
            skipped: What happens to rows while their file is read.
            guesses: Notes on how it is read.
        """
        found = Chunk()
        with RowsWriter(path) as rows:
            with waiting("reading and tokenising", unit="rows") as done:
                for chunk in built_chunks(examples, self.build):
                    done(chunk.counts["seen"])
                    rows.add(chunk.batch)
                    found.add(chunk)
            if found.plain_template:  # which another process gave to its tokenizer
                self.templater.use_plain_template()
            places, about = self._divide(found)
            if skipped is not None:
                about["rows"] = skipped.seen
                about["dropped"] += skipped.total
                about["notes"] = [*guesses, *skipped.lines(), *about["notes"]]
            remove_rows(path.parent, path.stem.rpartition("-")[0])
            rows.keep(places, digest=digest, about=about)

    def _divide(self, found: Chunk) -> tuple[Array, dict[str, Any]]:
        """(the places of the rows to train on and then of those held out, what to say of them)."""
        kind, limits, templater = self.kind, self.limits, self.templater
        seen = found.counts["seen"]
        found.left.raise_if_too_many(seen)
        of: Array = numpy.frombuffer(found.numbers, NUMBERS)
        if not len(of):
            raise InputError("the data has no rows")
        keep, reviewed = numpy.ones(len(of), bool), []
        if kind.contrary and (contrary := contrary_rows(of)):
            tally = Tally(len(contrary), contrary)
            reviewed.append(f"{tally.in_words} {kind.contrary} ({tally.rows_in_words})")
        if kind.once:
            keep[:] = False
            keep[numpy.unique(of["mark"], return_index=True)[1]] = True
        again = int((~keep).sum())
        if again:
            reviewed.append(f"{Tally(again).in_words} left out: repeated {kind.unit}")
        fit = fit_record(of[keep] if again else of, kind, limits)
        pieces, used = of["pieces"], keep & (of["pieces"] > 0)
        held = numpy.zeros(len(of), bool)
        held[used], about_alike = self._held_out(of if used.all() else of[used], found.sketches)
        disagreement = templater.thoughts_note(found.counts["answered"], found.counts["thoughtful"])
        notes = [
            *templater.remarks,
            *([disagreement] if disagreement and kind.name in TEACH_ANSWERS else []),
            *found.left.lines(),
            *reviewed,
            *fit.pop("notes"),
            *([about_alike] if about_alike else []),
            *(f"{Tally(count).in_words}: {text}" for text, count in found.notes.items()),
        ]
        if self.holdout > 0 and not held.any():
            notes.append("nothing is held out: there are too few different rows")
        order = numpy.argsort(numpy.repeat(of["number"], pieces), kind="stable")
        train, holdout = (
            order[numpy.repeat(side, pieces)[order]] for side in (used & ~held, used & held)
        )
        about = {
            "rows": seen,
            "train": len(train),
            **fit,
            "dropped": found.left.total + again + fit["dropped"],
            "notes": notes,
            "template": templater.template_source if found.counts["talks"] else "none (raw text)",
            "turn_ends": sorted(found.turn_ends),
            "plain_template": templater.gave_template,
        }
        return numpy.concatenate([train, holdout]), about

    def _held_out(self, rows: Array, sketches: Mapping[int, Sequence[int]]) -> tuple[Array, str]:
        """Which rows to hold out, and what to say of rows that are nearly the same.

        They stay on one side, unless most rows are alike, as those of a template are: then too
        little would be left to hold out, or nothing of what most rows are like.
        """
        blank = question_mark("", self.limits.seed)
        strata = rows["mark"] if self.kind.stratified else None
        split = partial(held_out_mask, rows, self.holdout, blank=blank, strata=strata)
        held = split()
        if len(rows) > KEPT_TOGETHER or not held.any():
            return held, ""
        groups = _groups(rows["question"], rows["text"], int(rows["pieces"].sum()), blank)
        pairs = alike(sketches.items())
        together = united(groups, rows["text"], pairs)
        if together is groups:
            return held, ""
        found = numpy.isin(rows["text"], numpy.array(pairs, "u8"))
        alike_rows = f"{int(found.sum()):,} of {len(rows):,} rows are nearly the same as others"
        kept = split(groups=together)
        largest = numpy.unique(together, return_counts=True)[1].max()
        if 2 * largest > len(rows) or 2 * kept.sum() < held.sum():
            return held, (
                f"{alike_rows}, too many to keep apart: rows that are held out resemble rows that"
                " are trained on, so that the comparison flatters the result"
            )
        return kept, f"{alike_rows}: they are held out together, or trained on together"

    def read(self, path: Path, digest: str) -> Prepared[Any] | None:
        """What was written, or None if there is nothing or it is not as it was written.

        Gives the tokenizer the chat template that the rows were written with.
        """
        found = read_rows(path, self.kind.row, digest)
        if found is None:
            return None
        train, holdout, about = found
        if about.pop("plain_template"):
            self.templater.use_plain_template()
        about |= {name: tuple(about[name]) for name in ("notes", "turn_ends")}
        return Prepared(train=train, holdout=holdout, **about)


def contrary_rows(rows: Array) -> list[int]:
    """The numbers of the rows whose text another row has with another mark."""
    _, first, text_of = numpy.unique(rows["text"], return_index=True, return_inverse=True)
    differs = rows["mark"] != rows["mark"][first][text_of]
    several = numpy.zeros(len(first), bool)
    several[text_of[differs]] = True
    return rows["number"][several[text_of]].tolist()


def own_words(row: Any) -> str:
    """What a row of any kind asks and answers, without the system text that all have in common."""
    answers = (getattr(row, name, "") for name in ("expected", "chosen", "rejected"))
    return " ".join([row.key, *(text for text in answers if isinstance(text, str))])


def united(groups: Array, texts: Array, pairs: Iterable[tuple[int, int]]) -> Array:
    """The groups, with those in one that hold a pair of texts; the same array if there are none."""
    group_of = dict(zip(texts.tolist(), groups.tolist(), strict=True))
    above: dict[int, int] = {}

    def first(group: int) -> int:
        while (up := above.get(group, group)) != group:
            above[group] = above.get(up, up)
            group = up
        return group

    for pair in pairs:
        if group_of.keys() >= {*pair}:
            least, most = sorted(first(group_of[text]) for text in pair)
            if least != most:
                above[most] = least
    return numpy.array([*map(first, groups.tolist())], groups.dtype) if above else groups


def held_out_mask(
    rows: Array,
    share: float,
    *,
    blank: int,
    strata: Array | None = None,
    groups: Array | None = None,
) -> Array:
    """Which rows to hold out.

    Args:
        rows: `question` (its mark), `text` (its mark) and `pieces` of each row; none without
            pieces.
        share: The share of sequences to hold out.
        blank: The mark of no question at all.
        strata: A number for the stratum of each row (a class), of which the same share is held out.
        groups: The mark of the group of each row; default: of those that say or ask the same.
    """
    sizes = rows["pieces"]
    if groups is None:
        groups = _groups(rows["question"], rows["text"], int(sizes.sum()), blank)
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


def _groups(questions: Array, texts: Array, sequences: int, blank: int) -> Array:
    """The mark of the group of each row: rows of one group must stay together.

    It is the smallest of the group's questions; of a group without a question, that of its text.
    """
    if len(numpy.unique(questions)) * 2 < sequences:
        return texts
    nothing = numpy.iinfo(numpy.uint64).max
    asks = questions != blank  # rows without a question have nothing in common but that
    groups = numpy.where(asks, questions, nothing)

    def spread(place_of: Array, these: Array) -> None:
        """The smallest mark among these rows of each place goes to all of them."""
        least = numpy.full(place_of.max() + 1, nothing)
        numpy.minimum.at(least, place_of[these], groups[these])
        groups[these] = least[place_of[these]]

    text_of = numpy.unique(texts, return_inverse=True)[1]
    spread(text_of, slice(None))
    if (groups != questions)[asks].any():  # a text has several questions
        question_of = numpy.unique(questions, return_inverse=True)[1]
        changes = True
        while changes:
            before = groups.copy()
            spread(question_of, asks)
            spread(text_of, slice(None))
            changes = (before != groups).any()
    return numpy.where(groups == nothing, texts, groups)


def data_source(job: Job) -> str:
    """The path of the stage's data, or what a data set of the hub is called."""
    # The reader reports anything else that is not there.
    is_on_the_hub = is_hub_id(job.data.path) and not job.data_path.exists()
    return job.data.path if is_on_the_hub else str(job.data_path)


def prepare_rows(
    job: Job, tokenizer: Tokenizer, kind: Kind[Any] = ANSWERS, *, seq_len: int | None = None
) -> Prepared[Any]:
    """The stage's rows ready to train on; from the run folder if the same were prepared before.

    Raises InputError for data that cannot be trained on.

    Args:
        kind: What the objective trains on.
        seq_len: The longest row, in tokens; default: the stage's. Less if the model still has to
            write an answer behind it.
    """
    source = find_data(data_source(job))
    stage = job.stage
    learn_all = job.options.get("loss_on") == "all"
    preparation = Preparation(
        templater=Templater(tokenizer, learn_all=learn_all),
        limits=Limits(seq_len or stage.seq_len, stage.truncation, stage.seed),
        holdout=stage.holdout,
        kind=kind,
    )
    digest = digest_of(
        {
            "data": content_digest(source),
            # Everything that turns conversations into tokens.
            "tokenizer": {
                "rules": tokenizer.backend_tokenizer.to_str(),
                "special": {name: str(one) for name, one in tokenizer.special_tokens_map.items()},
                "template": tokenizer.chat_template,
            },
            "kind": kind.name,
            "settings": [
                *preparation.limits,
                stage.holdout,
                learn_all,
                job.data.mapping,
                *[job.options.get(name) for name in ("source_language", "target_language")],
            ],
            # The code that prepares rows: another version prepares them again.
            "code": [
                path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))
            ],
            "libraries": [importlib.metadata.version(library) for library in LIBRARIES],
        }
    )
    # Named after the stage and task, so that each keeps its own.
    path = job.run / "prepared" / f"{job.entry.name}-{kind.name}-{digest[:16]}.json"
    known = preparation.read(path, digest)
    if known is not None:
        return known
    if not is_main_process():
        return wait_for(path, lambda: preparation.read(path, digest))
    skipped = SkippedRows()

    def examples() -> Iterator[Example]:
        yield from read_examples(data, skipped=skipped)
        skipped.raise_if_too_many(data.path)

    # Of a dry run nothing stays but the rows, which are open.
    is_alone = job.dry_run and process_count() == 1
    kept = TemporaryDirectory() if is_alone else nullcontext(path.parent)
    with others_wait_for(path), kept as folder:
        data = recognise(source, mapping=job.data.mapping)
        guess = f"took {data.why}, guessed from names and contents; if that is wrong, say which"
        guesses = [f"{guess} in `data.mapping`"] if data.confidence == "guessed" else []
        path = Path(folder) / path.name
        preparation.write(path, examples(), digest, skipped=skipped, guesses=guesses)
        if (made := preparation.read(path, digest)) is not None:
            return made
        raise MachineNotReady(  # inside, so that the others hear of it
            "what was written there is read back as something else",
            where=str(path),
            hint="check the disk, and run again",
        )


# ------------------------------------------------------------------------------------ building


def built_chunks(examples: Iterable[Example], build: Build) -> Iterator[Chunk]:
    """What the examples give, some at a time and in their order.

    Raises MachineNotReady if a worker is ended from outside.
    """
    chunks, alone = _chunks_of(examples), 0
    for chunk in chunks:
        yield build(chunk)
        alone += len(chunk)
        if alone >= ALONE_ROWS and builders() > 1:
            yield from _built_by_workers(chunks, build, builders())


def builders() -> int:
    """How many processes build rows: one for each usable core, at most 16."""
    return min(usable_cores(), MOST_WORKERS) if sys.platform == "linux" else 1


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

_build: Build | None = None  # a worker's own


def _built_by_workers(
    chunks: Iterator[list[Example]], build: Build, processes: int
) -> Iterator[Chunk]:
    """What the chunks give, one for each process on its way."""
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (build,))
    at_work: deque[Any] = deque()
    try:
        for chunk in chunks:
            with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
                warnings.simplefilter("ignore", DeprecationWarning)
                at_work.append(pool.submit(_build_in_worker, chunk))
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


def _begin_worker(build: Build) -> None:
    """Leave signals to the parent, which ends its workers, and end if it is gone."""
    global _build
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _build = build


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build_in_worker(examples: Sequence[Example]) -> Chunk:
    assert _build is not None
    return _build(examples)
