"""Rows of an evaluation file that the training data holds too: what makes an evaluation look better
than it is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from advisor.data.checks.repeats import normalise
from advisor.data.measure.lengths import parts_of
from advisor.data.same_rows import Example
from advisor.ground.errors import InputError
from advisor.ground.types import Finding

MAX_ROWS = 500_000  # of the evaluation file: its hashes stay in memory
SHOWN_ROWS = 20


def request_key(example: Example) -> int | None:
    """A hash of what is asked, None where nothing is."""
    messages = example.messages
    if not example.chosen and messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    asked = [message.content for message in messages if message.role != "system"]
    return hash(normalise("\n".join(asked))) if asked else None


@dataclass(slots=True)
class Overlap:
    """The evaluation file's rows as hashes, and which of them the training data held."""

    path: str
    kind: str
    rows: int = 0
    skipped: int = 0
    whole: dict[int, int] = field(default_factory=dict)  # hash of a row -> its number
    asked: dict[int, int] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)  # evaluation row -> training row
    same_request: dict[int, int] = field(default_factory=dict)

    def look(self, example: Example, text: bytes) -> None:
        """Notes whether a training row stands in the evaluation file.

        `text` is the row normalised.
        """
        at = self.whole.get(hash(text))
        if at is not None:
            self.same.setdefault(at, example.row)
            return
        if (
            self.asked
            and (key := request_key(example)) is not None
            and (at := self.asked.get(key)) is not None
        ):
            self.same_request.setdefault(at, example.row)

    def measures(self) -> dict[str, object]:
        """The counts, as JSON types."""
        only_asked = {
            row: found for row, found in self.same_request.items() if row not in self.same
        }
        return {
            "path": self.path,
            "rows": self.rows,
            "same_rows": len(self.same),
            "same_requests": len(only_asked),
        }

    def findings(self, kind: str) -> list[Finding]:
        """What the evaluation file shares with the training data."""
        findings: list[Finding] = []
        if self.kind != kind:
            findings.append(
                Finding(
                    id="evaluation-of-another-kind",
                    severity="warning",
                    text=f"{self.path} holds {self.kind}, the training data {kind}",
                    count=self.rows,
                )
            )
        if self.same:
            share = len(self.same) / self.rows
            text = (
                f"{len(self.same):,} of {self.rows:,} evaluation rows ({share:.0%}) stand in the"
                " training data too: the evaluation would look better than the model is"
                f" ({_pairs(self.same, self.path)})"
            )
            findings.append(
                Finding(
                    id="evaluation-rows-in-training",
                    severity="warning",
                    text=text,
                    count=len(self.same),
                    rows=tuple(sorted(self.same.values())[:SHOWN_ROWS]),
                )
            )
        asked = {row: found for row, found in self.same_request.items() if row not in self.same}
        if asked:
            text = (
                f"{len(asked):,} of {self.rows:,} evaluation rows ask what a training row asks,"
                f" with another answer ({_pairs(asked, self.path)})"
            )
            findings.append(
                Finding(
                    id="evaluation-requests-in-training",
                    severity="warning",
                    text=text,
                    count=len(asked),
                    rows=tuple(sorted(asked.values())[:SHOWN_ROWS]),
                )
            )
        if self.skipped:
            findings.append(
                Finding(
                    id="evaluation-rows-unusable",
                    severity="warning",
                    text=f"{self.skipped:,} rows of {self.path} cannot be used",
                    count=self.skipped,
                )
            )
        return findings


def _pairs(found: Mapping[int, int], path: str) -> str:
    few = sorted(found.items())[:3]
    return ", ".join(
        f"row {row} of {os.path.basename(path)} is row {train}" for row, train in few
    ) + (", ..." if len(found) > len(few) else "")


def evaluation_rows(
    path: str | os.PathLike[str], *, mapping: Mapping[str, str] | None = None
) -> Overlap:
    """The rows of an evaluation file, ready to be compared.

    Raises InputError where it cannot be read as data.
    """
    from advisor.data.examples import Skipped, read_examples
    from advisor.data.recognition.recognise import recognise

    recognition = recognise(path, mapping=mapping)
    overlap, skipped = Overlap(path=os.fspath(path), kind=recognition.kind), Skipped()
    for example in read_examples(path, recognition=recognition, skipped=skipped):
        overlap.rows += 1
        if overlap.rows > MAX_ROWS:
            raise InputError(
                f"an evaluation file of more than {MAX_ROWS:,} rows is not compared",
                where=overlap.path,
                hint="take a few thousand rows of it",
            )
        overlap.whole.setdefault(hash(normalise("\n".join(parts_of(example)))), example.row)
        key = request_key(example)
        if key is not None:
            overlap.asked.setdefault(key, example.row)
    overlap.skipped = skipped.total
    if not overlap.rows:
        raise InputError(
            "no row of it can be used",
            where=overlap.path,
            hint=f"advise check {shlex.quote(overlap.path)}",
        )
    return overlap
