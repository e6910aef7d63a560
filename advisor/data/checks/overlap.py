"""Evaluation rows that the training data holds too: they make a result look better than it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, Subject, finding
from advisor.data.checks.repeats import normalise
from advisor.data.example import Example, text_of_row
from advisor.data.examples import SkippedRows, Tally, read_examples
from advisor.data.recognition.recognise import DataSet
from advisor.ground.errors import InputError
from advisor.ground.types import DataFinding

MAX_ROWS = 500_000  # of the evaluation file: its hashes stay in memory


def request_key(example: Example) -> int | None:
    """A hash of what is asked; None if nothing is."""
    messages = example.messages
    if not example.chosen and messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    asked = [message.content for message in messages if message.role != "system"]
    return hash(normalise("\n".join(asked))) if asked else None


class EvaluationOverlap(RowCheck):
    """The evaluation file's rows as hashes, and which of them the training data held.

    Raises InputError if the file cannot be read as data.
    """

    place = 95

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.rows = 0
        self.skipped = SkippedRows()
        self.whole: dict[int, int] = {}  # hash of a row -> its number
        self.asked: dict[int, int] = {}
        self.same: dict[int, int] = {}  # evaluation row -> training row
        self.same_request: dict[int, int] = {}
        if about.evaluation is not None:
            self._read(about.evaluation)

    def _read(self, data: DataSet) -> None:
        self.path, self.kind = data.path, data.kind
        for example in read_examples(data, skipped=self.skipped):
            self.rows += 1
            if self.rows > MAX_ROWS:
                what = f"an evaluation file of more than {MAX_ROWS:,} rows is not compared"
                raise InputError(what, where=self.path, hint="take a few thousand rows of it")
            self.whole.setdefault(hash(normalise(text_of_row(example))), example.row)
            key = request_key(example)
            if key is not None:
                self.asked.setdefault(key, example.row)
        if not self.rows:
            hint = f"advise check {shlex.quote(self.path)}"
            raise InputError("no row of it can be used", where=self.path, hint=hint)

    def see(self, row: SeenRow) -> None:
        if not self.rows:
            return
        at = self.whole.get(hash(row.plain))
        if at is not None:
            self.same.setdefault(at, row.number)
            self.same_request.pop(at, None)
        elif self.asked and (key := request_key(row.example)) is not None:
            at = self.asked.get(key)
            if at is not None and at not in self.same:
                self.same_request.setdefault(at, row.number)

    def findings(self) -> Iterator[DataFinding]:
        if not self.rows:
            return
        if self.kind != self.about.kind:
            text = f"{self.path} holds {self.kind}, the training data {self.about.kind}"
            yield finding("evaluation-of-another-kind", "warning", text, self.rows)
        share = len(self.same) / self.rows
        yield from self._shared(
            "evaluation-rows-in-training",
            self.same,
            f" ({share:.0%}) stand in the training data too: the evaluation would look better than"
            " the model is",
        )
        yield from self._shared(
            "evaluation-requests-in-training",
            self.same_request,
            " ask what a training row asks, with another answer",
        )
        if unusable := self.skipped.total:
            text = f"{unusable:,} rows of {self.path} cannot be used"
            yield finding("evaluation-rows-unusable", "warning", text, unusable)

    def _shared(self, id: str, pairs: Mapping[int, int], what: str) -> Iterator[DataFinding]:
        """The finding about evaluation rows, with the training rows that share something."""
        if not pairs:
            return
        name = os.path.basename(self.path)
        few = ", ".join(f"row {row} of {name} is row {at}" for row, at in sorted(pairs.items())[:3])
        more = ", ..." if len(pairs) > 3 else ""
        text = f"{len(pairs):,} of {self.rows:,} evaluation rows{what} ({few}{more})"
        yield finding(id, "warning", text, Tally(len(pairs), sorted(pairs.values())))

    def measures(self) -> dict[str, Any]:
        if not self.rows:
            return {}
        counts = {"same_rows": len(self.same), "same_requests": len(self.same_request)}
        return {"evaluation": {"path": self.path, "rows": self.rows, **counts}}
