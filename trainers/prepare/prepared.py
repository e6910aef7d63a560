"""All rows of a stage: built, fitted into seq_len and split into training and held-out rows, with a
record of the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from advisor.data.example import Example
from advisor.data.thoughts import answers_of, holds_thoughts
from advisor.ground.errors import InputError
from advisor.plan.record import DataCounts
from trainers.prepare.conversation import answer_rows
from trainers.prepare.length import Cut, cut_row, fit_rows
from trainers.prepare.row import LeftOut, Row, ids_of, rows_word
from trainers.prepare.sequences import learned_counts, lengths
from trainers.prepare.split import split_rows
from trainers.prepare.template import Templater


class PreparedRow(Protocol):
    """What the pipeline needs of a row, whatever its kind."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def learned(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=PreparedRow)
Build = Callable[[Iterable[Example], Templater, LeftOut], Iterator[Item]]


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Item]):
    """One kind of rows: what an objective trains on."""

    name: str  # in the cache and in messages
    row: type[Item]
    build: Build[Item]
    cut: Cut[Item] | None
    unit: str = "rows"
    limit: str = "seq_len"  # what messages call the longest length
    # all rows -> (the rows to keep, notes, how many were left out)
    review: Callable[[list[Item], Templater], tuple[list[Item], list[str], int]] | None = None
    stratum: Callable[[Item], object] | None = None


ANSWERS: Kind[Row] = Kind(name="answers", row=Row, build=answer_rows, cut=cut_row)


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
    left, seen = LeftOut(), _CountedExamples(examples)
    rows = list(kind.build(seen, templater, left))
    left.raise_if_too_many(seen.count)
    if not rows:
        raise InputError("the data has no rows")
    reviewed: list[str] = []
    repeats = 0
    if kind.review is not None:
        rows, reviewed, repeats = kind.review(rows, templater)
    fit = fit_rows(
        rows, seq_len=seq_len, truncation=truncation, cut=kind.cut, unit=kind.unit, limit=kind.limit
    )
    train, held = split_rows(fit.rows, share=holdout, seed=seed, stratum=kind.stratum)
    disagreement = templater.thoughts_note(seen.answered, seen.thoughtful)
    notes = [
        *templater.remarks,
        *([disagreement] if disagreement and kind.name in TEACH_ANSWERS else []),
        *left.lines(),
        *reviewed,
        *fit.notes,
        *(f"{rows_word(count)}: {text}" for text, count in templater.notes.items()),
    ]
    if holdout > 0 and not held:
        notes.append("nothing is held out: there are too few different rows")
    texts_alone = all(getattr(row, "document", False) for row in rows)
    return Prepared(
        train=tuple(train),
        holdout=tuple(held),
        rows=seen.count,
        dropped=left.total + repeats + fit.dropped,
        truncated=fit.truncated,
        split=fit.split,
        notes=tuple(notes),
        template="none (raw text)" if texts_alone else templater.template_source,
        turn_ends=tuple(sorted(templater.turn_ends)),
    )


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


class _CountedExamples:
    """Examples, counted while they are read."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples, self.count = examples, 0
        self.answered = self.thoughtful = 0  # that teach an answer; whose answers hold thoughts

    def __iter__(self) -> Iterator[Example]:
        for example in self.examples:
            self.count += 1
            answers = answers_of(example)
            self.answered += bool(answers)
            self.thoughtful += any(map(holds_thoughts, answers))
            yield example
