"""The scores in what lm-evaluation-harness answers: which of its numbers counts for a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.errors import InputError
from advisor.plan.benchmark_record import Score
from advisor.plan.benchmarks import shown_task

# What stands in a row beside the metrics, besides their standard errors.
NO_METRIC = {"alias", "name", "sample_len", "sample_count"}


def scores_of(results: Mapping[str, Any], task: str) -> list[Score]:
    """The scores of an entry: of a group that has a mean, the group; else each of its parts.

    Raises InputError if there is none.
    """
    table, parts = results["results"], results.get("group_subtasks") or {}
    groups = [name for name, children in parts.items() if children]
    inside = {child for name in groups for child in parts[name]}
    names = [name for name in table if name not in inside and metrics_of(table[name])]
    names = names or [name for name in table if metrics_of(table[name])]
    found = [score_of(name, results) for name in names]
    if not found:
        raise InputError(
            "the benchmark gave no number",
            where=f"evaluation.tasks: {shown_task(task)}",
            hint="its metric_list names no metric that lm-evaluation-harness could compute",
        )
    return found


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """'acc,none' -> value, in the order of the benchmark's file, without standard errors."""
    return {
        key: float(value)
        for key, value in row.items()
        if "," in key
        and "_stderr," not in key
        and key.partition(",")[0] not in NO_METRIC
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def score_of(name: str, results: Mapping[str, Any]) -> Score:
    """The score of one benchmark by its first metric."""
    row = results["results"][name]
    metrics = metrics_of(row)
    named = ((results.get("configs") or {}).get(name) or {}).get("metric_list") or ()
    order = [one.get("metric") for one in named if isinstance(one, dict)]
    first = min(metrics, key=lambda key: _place(key.partition(",")[0], order))
    value = metrics[first]
    metric, _, filter_ = first.partition(",")
    stderr = row.get(f"{metric}_stderr,{filter_}")
    higher = (results.get("higher_is_better") or {}).get(name, {}).get(metric)
    values = values_of((results.get("samples") or {}).get(name) or (), metric, filter_, value)
    return Score(
        benchmark=name,
        metric=_metric_name(first),
        value=value,
        stderr=float(stderr) if isinstance(stderr, int | float) else None,
        higher_is_better=higher is not False,
        rows=rows_of(name, results),
        values=values,
        others={_metric_name(key): one for key, one in metrics.items() if key != first},
    )


def _place(metric: str, order: Sequence[Any]) -> int:
    """Where a metric stands in the benchmark's own list; behind it if it is not there."""
    return order.index(metric) if metric in order else len(order)


def _metric_name(key: str) -> str:
    """'exact_match (strict-match)' of 'exact_match,strict-match'."""
    metric, _, filter_ = key.partition(",")
    return metric if filter_ in ("none", "") else f"{metric} ({filter_})"


def rows_of(name: str, results: Mapping[str, Any]) -> int | None:
    """Questions asked in a benchmark; in a group, those of all its parts."""
    counts = results.get("n-samples") or {}
    if name in counts:
        return int(counts[name]["effective"])
    parts = (results.get("group_subtasks") or {}).get(name) or ()
    known = [rows_of(part, results) for part in parts]
    return sum(one or 0 for one in known) if known else None


def values_of(
    samples: Sequence[Mapping[str, Any]], metric: str, filter_: str, mean: float
) -> tuple[float, ...] | None:
    """The metric of each question in order; None where the score is not their mean."""
    rows = [one for one in samples if one.get("filter") == filter_ and metric in one]
    rows.sort(key=lambda one: int(one["doc_id"]))
    values = [one[metric] for one in rows]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    found = tuple(float(value) for value in values)
    return found if abs(sum(found) / len(found) - mean) < 1e-9 else None
