"""Scores of lm-evaluation-harness before and after training, and how much was lost between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import hypot, sqrt
from pathlib import Path
from statistics import stdev
from typing import Annotated, Any

from msgspec import Struct

from advisor.ground.annotated import JsonObject
from advisor.ground.files import text_of

BASE = "base"  # the name of the plan's model among those that are evaluated
NOISE = 1.96  # standard errors: a smaller difference is what chance alone often makes
EXACT = 9  # decimals: 0.52 - 0.5 is 0.02, and no more
# What stands in a row of results beside the metrics and their standard errors.
NO_METRIC = {"alias", "name", "sample_len", "sample_count"}
TASK_FILES = (".yaml", ".yml")  # of a benchmark that is a file; anything else is a name
# A file that a benchmark's file names: a data file, an include, a module with functions.
NAMED = re.compile(r"[\w./~+@-]+\.(?:jsonl?|csv|tsv|parquet|txt|arrow|ya?ml|py)\b")
FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")


def is_task_file(task: str) -> bool:
    """Whether an entry of `evaluation.tasks` is the path of a file."""
    return task.endswith(TASK_FILES)


def files_of(path: Path, seen: frozenset[Path] = frozenset()) -> list[Path]:
    """The file of a benchmark and the files that it and its includes name, if they are there."""
    if path in seen or not path.is_file():
        return []
    found = [path]
    if path.suffix not in TASK_FILES:
        return found
    text = text_of(path, errors="replace")
    modules = (f"{one.replace('.', '/')}.py" for one in FUNCTION.findall(text))
    for name in dict.fromkeys([*NAMED.findall(text), *modules]):
        found += files_of(path.parent / Path(name).expanduser(), seen | {path})
    return list(dict.fromkeys(found))


class Score(Struct, frozen=True, kw_only=True):
    """One model's score in one benchmark, by the first metric that the benchmark names."""

    benchmark: str
    metric: str  # acc, exact_match (strict-match), ...
    value: float
    stderr: float | None = None
    higher_is_better: bool = True
    rows: int | None = None  # questions asked
    values: tuple[float, ...] | None = None  # of each question, where `value` is their mean


def scores_of(results: Mapping[str, Any]) -> list[Score]:
    """The scores in one answer of the harness: of groups with a mean, else of their parts."""
    table, parts = results["results"], results.get("group_subtasks") or {}
    inside = {child for children in parts.values() for child in children}
    names = [name for name in table if name not in inside and _metrics(table[name])]
    names = names or [name for name in table if _metrics(table[name])]
    return [_score(name, results) for name in names]


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """'acc,none' -> value, without standard errors."""
    return {
        key: float(value)
        for key, value in row.items()
        if "," in key
        and "_stderr," not in key
        and key.partition(",")[0] not in NO_METRIC
        and type(value) in (int, float)
    }


def _score(name: str, results: Mapping[str, Any]) -> Score:
    row = results["results"][name]
    metrics = _metrics(row)
    listed = ((results.get("configs") or {}).get(name) or {}).get("metric_list") or ()
    order = [one.get("metric") for one in listed if isinstance(one, dict)]

    def place(key: str) -> int:
        metric = key.partition(",")[0]
        return order.index(metric) if metric in order else len(order)

    first = min(metrics, key=place)
    metric, _, filter_ = first.partition(",")
    stderr = row.get(f"{metric}_stderr,{filter_}")
    samples = (results.get("samples") or {}).get(name) or ()
    higher = (results.get("higher_is_better") or {}).get(name) or {}
    return Score(
        benchmark=name,
        metric=metric if filter_ in ("none", "") else f"{metric} ({filter_})",
        value=metrics[first],
        stderr=float(stderr) if isinstance(stderr, int | float) else None,
        higher_is_better=higher.get(metric) is not False,
        rows=_rows(name, results),
        values=_values(samples, metric, filter_, metrics[first]),
    )


def _rows(name: str, results: Mapping[str, Any]) -> int | None:
    """Questions asked in a benchmark; in a group, those of all its parts."""
    counts = results.get("n-samples") or {}
    if name in counts:
        return int(counts[name]["effective"])
    known = [_rows(part, results) for part in (results.get("group_subtasks") or {}).get(name) or ()]
    return sum(one or 0 for one in known) if known else None


def _values(
    samples: Sequence[Mapping[str, Any]], metric: str, filter_: str, mean: float
) -> tuple[float, ...] | None:
    """The metric of each question in order; None where the score is not their mean."""
    rows = [one for one in samples if one.get("filter") == filter_ and metric in one]
    values = [one[metric] for one in sorted(rows, key=lambda one: int(one["doc_id"]))]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    found = tuple(float(value) for value in values)
    return found if abs(sum(found) / len(found) - mean) < 1e-9 else None


# --------------------------------------------------------------------------- before and after


class BenchmarkChange(JsonObject, frozen=True, kw_only=True):
    """One benchmark before and after training, as run.json holds it."""

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
        return self.loss > 0 and not self.is_noise if self.exceeds is None else self.exceeds

    @property
    def loss_words(self) -> str:
        """'0.041', or '4.1 %' of what it was."""
        return f"{self.loss:.1%}".replace("%", " %") if self.relative else f"{self.loss:.3g}"

    def numbers(self) -> str:
        """'0.612 -> 0.571 (-0.041, standard error 0.012)'."""
        error = self.difference_stderr
        told = "" if error is None else f", standard error {error:.3g}"
        return f"{self.before:.3g} -> {self.after:.3g} ({self.difference:+.3g}{told})"


class BenchmarkRecord(JsonObject, frozen=True, kw_only=True):
    """`extras.benchmarks` in run.json: the benchmarks before and after training."""

    tasks: Annotated[tuple[str, ...], "`evaluation.tasks` of the plan"] = ()
    max_drop: Annotated[float | None, "the loss that is allowed; null: any"] = None
    limit: Annotated[int | None, "questions of each benchmark; null: all"] = None
    chat_template: Annotated[bool, "whether questions were asked through the chat template"] = False
    seconds: Annotated[float | None, "what all of it took, without loading the models"] = None
    changes: Annotated[tuple[BenchmarkChange, ...], "of each benchmark and each result"] = ()


def compare(
    before: Sequence[Score], after: Sequence[Score], *, result: str, max_drop: float | None
) -> list[BenchmarkChange]:
    """Each benchmark that both models were asked; `after` is of the result of this stage."""
    earlier = {(one.benchmark, one.metric): one for one in before}
    pairs = [(earlier.get((one.benchmark, one.metric)), one) for one in after]
    return [_change(old, new, result, max_drop) for old, new in pairs if old is not None]


def _change(before: Score, after: Score, result: str, max_drop: float | None) -> BenchmarkChange:
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
    old, new = before.values, after.values
    if old is not None and new is not None and len(old) == len(new) > 1:
        found = [later - earlier for earlier, later in zip(old, new, strict=True)]
        return stdev(found) / sqrt(len(found)), True
    if before.stderr is None or after.stderr is None:
        return None, False
    return hypot(before.stderr, after.stderr), False
