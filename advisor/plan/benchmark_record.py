"""What lm-evaluation-harness measured of a base and of results, as the run folder holds it, and how
much was lost between the two.

| file | value |
| --- | --- |
| benchmarks/base.json | ModelScores of the plan's model, before training |
| benchmarks/<stage>.json | ModelScores of a result |
| `benchmarks` in run.json | BenchmarkRecord: both, compared |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Annotated

from advisor.ground.json_values import OMIT_NULL, JsonObject

FOLDER = "benchmarks"  # in a run folder
BASE = "base"
NOISE = 1.96  # standard errors: a smaller difference is what chance alone often makes
EXACT = 9  # decimals: 0.52 - 0.5 is 0.02, and no more


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(JsonObject):
    """One model's score in one benchmark, by the first metric that its file names."""

    benchmark: Annotated[str, "as the harness calls it; of a group, the group or its parts"]
    metric: Annotated[str, "acc, exact_match (strict-match), ..."]
    value: Annotated[float, "mean over the questions"]
    stderr: Annotated[float | None, "its standard error, by the harness"] = None
    higher_is_better: Annotated[bool, "false: perplexity and the like"] = True
    rows: Annotated[int | None, "questions asked"] = None
    values: Annotated[
        tuple[float, ...] | None,
        "the metric of each question in order, where the score is their mean",
        OMIT_NULL,
    ] = None
    others: Annotated[Mapping[str, float], "further metrics"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored(JsonObject):
    """What one entry of `evaluation.tasks` came to."""

    key: Annotated[str, "digest of the benchmark, of the model and of the limit"]
    seconds: Annotated[float, "what it took, without loading the model"] = 0.0
    scores: Annotated[tuple[Score, ...], "one, or one for each part of a group"] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelScores(JsonObject):
    """benchmarks/<name>.json: one model in every benchmark of the plan, as far as it is done."""

    chat_template: Annotated[bool, "whether questions were asked through the chat template"] = False
    versions: Annotated[Mapping[str, str | None], "package -> version"] = field(
        default_factory=dict
    )
    tasks: Annotated[Mapping[str, Scored], "entry of the plan -> its scores"] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkChange(JsonObject):
    """One benchmark before and after training."""

    benchmark: Annotated[str, "as the harness calls it"]
    result: Annotated[str, "the stage (of several tasks: stage-task) whose result was measured"]
    metric: Annotated[str, "acc, exact_match (strict-match), ..."]
    higher_is_better: Annotated[bool, "false: perplexity and the like"] = True
    rows: Annotated[int | None, "questions asked"] = None
    before: Annotated[float, "score of the plan's model"]
    before_stderr: Annotated[float | None, "its standard error"] = None
    after: Annotated[float, "score of the result"]
    after_stderr: Annotated[float | None, "its standard error"] = None
    difference: Annotated[float, "after less before"]
    difference_stderr: Annotated[float | None, "its standard error"] = None
    paired: Annotated[
        bool, "whether that error is of the differences question by question; else of two samples"
    ] = False
    loss: Annotated[float, "how much worse the result is; below 0: better"]
    relative: Annotated[
        bool, "whether `loss` is a share of `before`: the score is not between 0 and 1"
    ] = False
    exceeds: Annotated[bool | None, "whether `loss` is above max_drop; null: there is none"] = None

    @property
    def is_noise(self) -> bool:
        """Whether chance alone often makes a difference of this size."""
        error = self.difference_stderr
        return error is None or abs(self.difference) < NOISE * error

    @property
    def is_lost(self) -> bool:
        """Whether it counts as a loss: above the limit; without one, beyond what chance makes."""
        if self.exceeds is not None:
            return self.exceeds
        return self.loss > 0 and not self.is_noise

    @property
    def loss_words(self) -> str:
        """'0.041', or '4.1 %' of what it was."""
        return f"{self.loss:.1%}".replace("%", " %") if self.relative else _short(self.loss)

    def numbers(self) -> str:
        """'0.612 -> 0.571 (-0.041, standard error 0.012)'."""
        error = (
            ""
            if self.difference_stderr is None
            else f", standard error {_short(self.difference_stderr)}"
        )
        return f"{_short(self.before)} -> {_short(self.after)} ({self.difference:+.3g}{error})"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkRecord(JsonObject):
    """The benchmarks of a run's plan, before and after training."""

    tasks: Annotated[tuple[str, ...], "`evaluation.tasks` of the plan"] = ()
    max_drop: Annotated[float | None, "the loss that is allowed; null: any"] = None
    limit: Annotated[int | None, "questions of each benchmark; null: all"] = None
    chat_template: Annotated[bool, "whether questions were asked through the chat template"] = False
    seconds: Annotated[float | None, "what all of it took, without loading the models"] = None
    changes: Annotated[tuple[BenchmarkChange, ...], "of each benchmark and each result"] = ()

    @property
    def exceeding(self) -> list[BenchmarkChange]:
        """Those that lost more than the plan allows."""
        return [change for change in self.changes if change.exceeds]

    def of_result(self, name: str) -> list[BenchmarkChange]:
        """Those of one result."""
        return [change for change in self.changes if change.result == name]


# --------------------------------------------------------------------------- before and after


def compared(
    before: ModelScores, after: ModelScores, *, result: str, max_drop: float | None
) -> list[BenchmarkChange]:
    """Each benchmark that both models were asked, in the plan's order.

    Args:
        result: The stage whose result `after` is of.
        max_drop: The loss that is allowed.
    """
    changes = []
    for task, scored in after.tasks.items():
        old = before.tasks.get(task)
        found = {(one.benchmark, one.metric): one for one in (old.scores if old else ())}
        for score in scored.scores:
            earlier = found.get((score.benchmark, score.metric))
            if earlier is not None:
                changes.append(_change(earlier, score, result=result, max_drop=max_drop))
    return changes


def _change(before: Score, after: Score, *, result: str, max_drop: float | None) -> BenchmarkChange:
    difference = after.value - before.value
    error, paired = difference_error(before, after)
    worse = -difference if after.higher_is_better else difference
    # A score between 0 and 1 is compared by points. Others (perplexity, BLEU from 0 to 100) have no
    # common scale: they are compared by their share.
    in_points = after.higher_is_better and all(0 <= one.value <= 1 for one in (before, after))
    relative = not in_points and before.value != 0
    loss = worse / abs(before.value) if relative else worse
    return BenchmarkChange(
        benchmark=after.benchmark,
        result=result,
        metric=after.metric,
        higher_is_better=after.higher_is_better,
        rows=after.rows,
        before=before.value,
        before_stderr=before.stderr,
        after=after.value,
        after_stderr=after.stderr,
        difference=difference,
        difference_stderr=error,
        paired=paired,
        loss=loss,
        relative=relative,
        exceeds=None if max_drop is None else round(loss - max_drop, EXACT) > 0,
    )


def difference_error(before: Score, after: Score) -> tuple[float | None, bool]:
    """(the standard error of after less before, whether it is of pairs).

    Both models answer the same questions: where the score is a mean over them, the error is that of
    the mean of their differences. Otherwise the two errors are added as if the samples were others,
    which is too large rather than too small.
    """
    pairs = before.values, after.values
    if pairs[0] is not None and pairs[1] is not None and len(pairs[0]) == len(pairs[1]) > 1:
        found = [new - old for old, new in zip(pairs[0], pairs[1], strict=True)]
        return _error_of_mean(found), True
    if before.stderr is None or after.stderr is None:
        return None, False
    return sqrt(before.stderr**2 + after.stderr**2), False


def _error_of_mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return sqrt(variance / len(values))


def seconds_of(models: Iterable[ModelScores]) -> float:
    """What the measurements took together."""
    return sum(scored.seconds for one in models for scored in one.tasks.values())


def _short(value: float) -> str:
    return f"{value:.3g}"
