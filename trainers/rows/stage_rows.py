"""All rows of a stage: read by advisor.data, built as its objective needs them, divided into
training and held-out rows with a record of the others, and kept in the run folder.

The same data, tokenizer, settings and code give the same files, byte for byte, so that no rows are
prepared twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

from advisor.data import Example, SkippedRows, content_digest, find_data, read_examples, recognise
from advisor.data.example import question_mark
from advisor.data.read.hub import is_hub_id
from advisor.data.read.source import DataSource
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.progress import waiting
from advisor.record.stage import DataCounts
from trainers.job.files import digest_of
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count
from trainers.job.types import Tokenizer
from trainers.rows.building import NUMBERS, Chunk, ChunkBuilder, built_chunks
from trainers.rows.conversation import ANSWERS
from trainers.rows.row import Item, Kind, Marked, Review, rows_word
from trainers.rows.selection import Limits, fit_record, held_out_mask
from trainers.rows.sequences import Array, lengths, numbers_of
from trainers.rows.stored import RowsWriter, RowTable, read_rows, remove_rows, write_rows
from trainers.rows.template import Templater
from trainers.say.processes import others_wait_for, wait_for

TEACH_ANSWERS = ("answers", "pairs", "feedback")  # kinds of rows whose answers are in the data
# Besides our own code, what decides how text becomes tokens.
LIBRARIES = ("transformers", "tokenizers", "jinja2")


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
        return int(numbers_of(self.train, "learned").sum(dtype="int64"))


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
        templater, found = self.templater, Chunk()
        builder = ChunkBuilder(self.kind, templater, self.limits)
        with RowsWriter(path) as rows:
            with waiting("reading and tokenising", unit="rows") as done:
                for chunk in built_chunks(examples, builder):
                    done(chunk.seen)
                    rows.add(chunk.batch)
                    found.add(chunk)
            if found.plain_template:  # which another process gave to its tokenizer
                templater.use_plain_template()
            order, about = self._divide(found, rows)
            if skipped is not None:
                about["rows"] = skipped.seen
                about["dropped"] += skipped.total
                about["notes"] = [*guesses, *skipped.lines(), *about["notes"]]
            remove_rows(path.parent, path.stem.rpartition("-")[0])
            write_rows(path, rows, order, digest=digest, about=about)

    def _divide(self, found: Chunk, rows: RowsWriter) -> tuple[dict[str, Array], dict[str, Any]]:
        """(the places of the rows to train on and then of those held out, with fields that the
        review gives them; what to say of them).
        """
        import numpy

        kind, limits, templater = self.kind, self.limits, self.templater
        found.left.raise_if_too_many(found.seen)
        of: Array = numpy.frombuffer(found.numbers, NUMBERS)
        if not len(of):
            raise InputError("the data has no rows")
        review = Review()
        if kind.review is not None:
            review = kind.review(
                Marked(numbers=of["number"], texts=of["text"], marks=of["mark"], names=found.names)
            )
        keep = review.keep if review.keep is not None else numpy.ones(len(of), bool)
        fit = fit_record(of if keep.all() else of[keep], kind, limits)
        pieces, used = of["pieces"], keep & (of["pieces"] > 0)
        table = rows.table()
        held = numpy.zeros(len(of), bool)
        held[used] = held_out_mask(
            of if used.all() else of[used],
            self.holdout,
            blank=question_mark("", limits.seed),
            keys_of=lambda marks: _keys(marks, of["question"], pieces, table),
            strata=of["mark"][used] if kind.stratified else None,
        )
        disagreement = templater.thoughts_note(found.answered, found.thoughtful)
        notes = [
            *templater.remarks,
            *([disagreement] if disagreement and kind.name in TEACH_ANSWERS else []),
            *found.left.lines(),
            *review.notes,
            *fit.notes,
            *(f"{rows_word(count)}: {text}" for text, count in found.notes.items()),
        ]
        if self.holdout > 0 and not held.any():
            notes.append("nothing is held out: there are too few different rows")
        about = {
            "rows": found.seen,
            "dropped": found.left.total + int((~keep).sum()) + fit.dropped,
            "truncated": fit.truncated,
            "split": fit.split,
            "notes": notes,
            "template": "none (raw text)" if found.texts_alone else templater.template_source,
            "turn_ends": sorted(found.turn_ends),
            "chat_template": templater.tokenizer.chat_template if templater.gave_template else None,
        }
        order = numpy.argsort(numpy.repeat(of["number"], pieces), kind="stable")
        train, holdout = (
            order[numpy.repeat(side, pieces)[order]] for side in (used & ~held, used & held)
        )
        places = numpy.concatenate([train, holdout])
        columns = {
            name: numpy.repeat(values, pieces)[places] for name, values in review.columns.items()
        }
        return {"place": places, **columns}, {**about, "train": len(train)}

    def read(self, path: Path, digest: str) -> Prepared[Any] | None:
        """What was written, or None if there is nothing or it is not as it was written.

        Gives the tokenizer the chat template that the rows were written with.
        """
        found = read_rows(path, self.kind.row, digest)
        if found is None:
            return None
        train, holdout, about = found
        template = about.pop("chat_template")
        tokenizer = self.templater.tokenizer
        if template is not None and not tokenizer.chat_template:
            tokenizer.chat_template = template
        about |= {name: tuple(about[name]) for name in ("notes", "turn_ends")}
        return Prepared(train=train, holdout=holdout, **about)


def _keys(
    marks: Collection[int], questions: Array, pieces: Array, table: RowTable
) -> dict[int, str]:
    """The questions that some marks stand for, read from the rows."""
    import numpy

    places = numpy.flatnonzero(
        (pieces > 0) & numpy.isin(questions, numpy.fromiter(marks, numpy.uint64, len(marks)))
    )
    known, first = numpy.unique(questions[places], return_index=True)
    rows = (numpy.cumsum(pieces) - pieces)[places[first]]  # the first row of each
    return {
        mark: table.values(row, ["key"])["key"]
        for mark, row in zip(known.tolist(), rows.tolist(), strict=True)
    }


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
    # A data set of the hub is not a path; the reader reports anything else that is not there.
    is_on_the_hub = is_hub_id(job.data.path) and not job.data_path.exists()
    source = find_data(job.data.path if is_on_the_hub else str(job.data_path))
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
            "tokenizer": _tokenizer_parts(tokenizer),
            "kind": kind.name,
            "settings": [
                *preparation.limits,
                stage.holdout,
                learn_all,
                job.data.mapping,
                *[job.options.get(name) for name in ("source_language", "target_language")],
            ],
            "code": _code_digest(),
        }
    )
    # Named after the stage and task, so that each keeps its own.
    path = job.run / "prepared" / f"{job.entry.name}-{kind.name}-{digest[:16]}.json"
    known = preparation.read(path, digest)
    if known is not None:
        return known
    if not is_main_process():
        return wait_for(path, lambda: preparation.read(path, digest))
    with others_wait_for(path):
        if job.dry_run and process_count() == 1:
            with TemporaryDirectory() as folder:  # rows that stay on the disk stay open
                return _made(preparation, job, source, Path(folder) / path.name, digest)
        return _made(preparation, job, source, path, digest)


def _made(
    preparation: Preparation, job: Job, source: DataSource, path: Path, digest: str
) -> Prepared[Any]:
    """The rows, built, written and read back."""
    skipped = SkippedRows()
    data = recognise(source, mapping=job.data.mapping)
    guess = f"took {data.why}, guessed from names and contents; if that is wrong, say which"
    guesses = [f"{guess} in `data.mapping`"] if data.confidence == "guessed" else []

    def examples() -> Iterator[Example]:
        yield from read_examples(data, skipped=skipped)
        skipped.raise_if_too_many(data.path)

    preparation.write(path, examples(), digest, skipped=skipped, guesses=guesses)
    made = preparation.read(path, digest)
    if made is None:
        raise MachineNotReady(
            "what was written there is read back as something else",
            where=str(path),
            hint="check the disk, and run again",
        )
    return made


@once
def _code_digest() -> str:
    """A digest of the code that prepares rows: another version prepares them again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return digest.hexdigest()


def _tokenizer_parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that turns conversations into tokens: vocabulary, rules, special tokens, chat
    template.
    """
    return {
        "rules": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
