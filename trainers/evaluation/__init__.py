"""What training changed: the model before and after it, on data that it was not trained on.

loss.py          loss and sample answers of one model
metrics.py       scores of answers, and whether a difference is more than chance
generation.py    a model that writes
pairs.py         preference training, training by reward, and a reward model
saved_result.py  whether the saved result is the trained model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from advisor.record.stage import Check, Evaluation
from trainers.job import Trainer
from trainers.job.job import Job
from trainers.rows import Prepared
from trainers.rows.row import PreparedRow

Item = TypeVar("Item", bound=PreparedRow)


@dataclass(frozen=True)
class Subject(Generic[Item]):
    """What is evaluated: the model of a trainer, on the data of its stage."""

    job: Job
    trainer: Trainer
    data: Prepared[Item]
    # Of everything that the training depends on: an evaluation of the base with another one does
    # not count.
    fingerprint: str
    # What the model before training is and computes with: another run of it measures the same.
    # None: it is not the plan's model alone, or its files are not known.
    base: Sequence[Any] | None = None


class Evaluator(Protocol):
    """Measures the same of a model before and after training, and compares."""

    def evaluate_base(self) -> None:
        """Measure the model before training; once, also if a run was resumed."""

    def evaluate_tuned(self) -> None:
        """Measure the trained model."""

    def verdict(self) -> tuple[str, str]:
        """(better | worse | not distinguishable, one sentence)."""

    def checks(self) -> Sequence[Check]:
        """What else was looked at, with what was found. May raise TrainingFailed."""

    def record(self) -> Evaluation:
        """The comparison for result.json."""
