"""What decides on a stage: one measure before and after, on the same held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from advisor.methods import objective
from advisor.record.evaluation import Evaluation, Metric
from advisor.record.run import StageRecord
from advisor.record.verdict import BETTER, UNCLEAR, WORSE

WORDS = (BETTER, WORSE, UNCLEAR)
HELD_OUT_LOSS = "held-out loss"
USUAL_HELD = 64  # rows that tell small differences, where the objective's file names no number


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What decides on one trained stage."""

    name: str
    metric: Metric

    @property
    def difference(self) -> float | None:
        """After less before."""
        before, after = self.metric.before, self.metric.after
        return None if before is None or after is None else after - before

    @property
    def half_width(self) -> float | None:
        """Half of the interval of the difference."""
        found = self.metric.interval
        if found is None or len(found) != 2 or found[0] is None or found[1] is None:
            return None
        return (found[1] - found[0]) / 2

    def rows_needed(self) -> int | None:
        """About how many held-out rows would tell a difference of the size that was seen: an
        interval narrows with the root of the rows. None where that cannot be said.
        """
        half, difference, rows = self.half_width, self.difference, self.metric.rows
        if not half or not difference or not rows:
            return None
        return ceil(rows * (half / abs(difference)) ** 2)


def what_decides(stage: StageRecord) -> Compared | None:
    """The comparison that decides whether a stage learned its task; None without one."""
    found = stage.evaluation
    if found is None:
        return None
    if found.decides in found.metrics:
        return Compared(name=str(found.decides), metric=found.metrics[str(found.decides)])
    if found.holdout_loss_after is not None and found.holdout_loss_before is not None:
        loss = Metric(
            before=found.holdout_loss_before,
            after=found.holdout_loss_after,
            interval=found.holdout_loss_interval,
            rows=found.rows,
            word=_word_of_loss(found, stage.verdict.word if stage.verdict else None),
        )
        return Compared(name=HELD_OUT_LOSS, metric=loss)
    named = [(name, one) for name, one in found.metrics.items() if one.after is not None]
    return Compared(name=named[0][0], metric=named[0][1]) if named else None


def _word_of_loss(found: Evaluation, said: str | None) -> str:
    if said in WORDS:
        return str(said)
    interval = found.holdout_loss_interval
    low, high = interval if interval is not None and len(interval) == 2 else (None, None)
    if low is None or high is None or low <= 0 <= high:
        return UNCLEAR
    return BETTER if high < 0 else WORSE


def usual_rows(stage: StageRecord) -> int:
    """How many held-out rows tell small differences, by the objective's own file."""
    stated: int | None = objective(stage.objective).steps.get("held_out")
    return stated or USUAL_HELD


def round_up(count: int) -> int:
    """Two figures: an estimate claims no more."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
