"""The section of a report on one stage: before and after, curves, costs, checks, sample answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DONE, ResolvedSettings, StageRecord
from advisor.record.stage import Confusion, DataCounts, Evaluation, Expected, Measured, Times
from advisor.render.blocks import PageTable
from advisor.render.charts import (
    BarChart,
    Line,
    LineChart,
    Points,
    StackedBar,
    bar_chart,
    line_chart,
)
from advisor.render.run import (
    COUNTERS,
    learned_words,
    picked_samples,
    rule_of_picking,
    speed_words,
    what_was_trained,
)

Lines = Sequence[Mapping[str, Any]]
SHOWN_CHARACTERS = 400  # of a text
# What is drawn of metrics.jsonl: key -> name and unit. A trainer that logs more is drawn by adding
# a line here.
DRAWN = {
    "loss": ("Training loss", ""),
    "learning_rate": ("Learning rate", ""),
    "reward": ("Mean reward", ""),
    "kl": ("KL to the reference", "nats a token"),
    "entropy": ("Entropy", "nats"),
    "clip_fraction": ("Share of clipped tokens", ""),
    "explained_variance": ("Explained variance of the value", ""),
    "clip_ratio_region_mean": ("Share of clipped tokens", ""),
    "frac_reward_zero_std": ("Prompts whose answers all got the same reward", "share"),
    "engine_mismatch": ("Engine mismatch of log-probabilities", "nats"),
    "correction_capped": ("Importance weights that were too large", "share"),
    "response_tokens": ("Length of answers", "tokens"),
    "completions_mean_length": ("Length of answers", "tokens"),
    "completions_clipped_ratio": ("Answers cut at response_tokens", "share"),
    "ended": ("Answers that end by themselves", "share"),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_s": ("Speed", "tokens/s"),
    "memory_bytes": ("Memory", "GiB"),
}
ROLLOUT_COLUMNS = ("step", "which", "prompt", "answer", "reward", "tokens")
OF_A_REWARD = re.compile(r"rewards/([\w.-]+)/mean")  # one of several


def stage_values(
    stage: StageRecord, metrics: Lines, rollouts: Lines, resolved: ResolvedSettings | None
) -> dict[str, Any]:
    """What templates/stage.html shows of a stage; of one that did not finish how far it came."""
    evaluation, data = stage.evaluation or Evaluation(), stage.data or DataCounts()
    picked, confusion = picked_samples(evaluation), evaluation.confusion or Confusion()
    counts = {
        "rows trained on": data.train_rows,
        "held out": data.holdout_rows,
        "dropped": data.dropped,
        "truncated": data.truncated,
    }
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    return {
        "record": stage,
        "trained": what_was_trained(stage),
        "is_done": stage.status == DONE,
        "evaluation": evaluation,
        "charts": list(metric_charts(metrics)),
        "rollouts": PageTable(columns=ROLLOUT_COLUMNS, rows=tuple(sample_rows(rollouts))),
        "memory": _memory_chart(expected, measured),
        "costs": PageTable(columns=("", "expected", "measured"), rows=tuple(_costs(stage))),
        "data": [f"{count:,} {name}" for name, count in counts.items() if count is not None],
        "notes": data.notes,
        "resolved": resolved,
        "confusion": list(zip(confusion.labels, confusion.counts, strict=False)),
        "samples": picked,
        "how_picked": rule_of_picking(picked, evaluation),
    }


def metric_charts(metrics: Lines) -> Iterator[LineChart]:
    """A chart of each number that was logged; the held-out loss beside the training loss."""
    keys = dict.fromkeys(key for line in metrics for key in line if OF_A_REWARD.fullmatch(key))
    own = {key: (f"Mean of reward {key.split('/')[1]}", "") for key in keys}
    for key, (name, unit) in {**DRAWN, **own}.items():
        scale = 2**30 if key == "memory_bytes" else 1
        line = Line(name=name, points=_points(metrics, key, scale))
        held_out = _points(metrics, "holdout_loss") if key == "loss" else ()
        beside = Line(name="Held-out loss", points=held_out) if held_out else None
        yield from line_chart(line, unit=unit, beside=beside)


def _points(metrics: Lines, key: str, scale: float = 1) -> Points:
    return [
        (float(line["step"]), line[key] / scale)
        for line in metrics
        if isinstance(line.get(key), int | float) and "step" in line
    ]


def sample_rows(lines: Lines) -> Iterator[tuple[str, ...]]:
    """The best and the worst answer of the first and of the last step, and one that was cut."""
    steps = sorted({line["step"] for line in lines})
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        own = [line for line in lines if line["step"] == step]
        scored = [line for line in own if isinstance(line.get("reward"), int | float)]
        shown: list[int] = []
        for which, chosen in (
            ("best", max(scored, key=itemgetter("reward"), default=None)),
            ("worst", min(scored, key=itemgetter("reward"), default=None)),
            ("cut", next((line for line in own if line.get("ended") is False), None)),
        ):
            if chosen is not None and id(chosen) not in shown:
                shown.append(id(chosen))
                cut = which != "cut" and chosen.get("ended") is False
                yield _sample_row(step, f"{which}, cut" if cut else which, chosen)


def _sample_row(step: int, which: str, line: Mapping[str, Any]) -> tuple[str, ...]:
    rewards, tokens = line.get("rewards"), line.get("tokens")
    named = rewards if isinstance(rewards, dict) else {}
    parts = ", ".join(f"{name} {_score(score)}" for name, score in named.items())
    reward = f"{_score(line.get('reward'))}{f' ({parts})' if len(named) > 1 else ''}"
    count = f"{tokens:,}" if isinstance(tokens, int) else ""
    return f"{step:,}", which, _cut(line.get("prompt")), _cut(line.get("answer")), reward, count


def _cut(value: Any) -> str:
    words = " ".join(value.split()) if isinstance(value, str) else ""
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} ..."


def _score(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "none"


def _costs(stage: StageRecord) -> Iterator[tuple[str, str, str]]:
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    if measured.peak_bytes is not None:
        counter = COUNTERS.get(str(measured.counter), "measured")
        estimate = format_gib(expected.counted_bytes) if expected.counted_bytes else ""
        yield f"peak memory ({counter})", estimate, format_gib(measured.peak_bytes)
    yield from _time_rows(stage)
    if speed := speed_words(measured):
        yield "speed", "", speed
    if expected.learned is not None:
        yield "learned from earlier runs", learned_words(expected.learned), ""


def _time_rows(stage: StageRecord) -> list[tuple[str, str, str]]:
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    foreseen, times = expected.times or Times(), stage.times or Times()
    train_s = measured.train_s if measured.train_s is not None else times.train_s
    planned_s = expected.duration_s if expected.duration_s is not None else foreseen.train_s
    parts = (
        ("loading rows and model", foreseen.load_s, times.load_s),
        ("measuring the base before", foreseen.before_s, times.before_s),
        ("training", planned_s, train_s),
        ("saving, checking and measuring after", foreseen.after_s, times.after_s),
        ("in all, when it was finished", foreseen.total_s, times.total_s),
    )
    return [
        (name, "" if before is None else format_duration(before), format_duration(after))
        for name, before, after in parts
        if after is not None
    ]


def _memory_chart(expected: Expected, measured: Measured) -> list[BarChart]:
    bars = []
    if expected.terms and expected.peak_bytes:
        low, high = expected.low_bytes, expected.high_bytes
        bar = StackedBar(
            name="expected, of the whole process",
            parts={term.name: term.bytes for term in expected.terms},
            whole=expected.peak_bytes,
            band=(low, high) if low and high else None,
        )
        bars.append(bar)
    if measured.peak_bytes is not None:
        counted = COUNTERS.get(str(measured.counter), "measured")
        parts = {f"measured: {counted}": measured.peak_bytes}
        if measured.reserved_bytes and measured.reserved_bytes > measured.peak_bytes:
            parts["held by the allocator besides"] = measured.reserved_bytes - measured.peak_bytes
        bars.append(StackedBar(name="measured", parts=parts))
    free = expected.limit_bytes
    limit = ("free before the run", free) if free else None
    return bar_chart("Memory", bars, show=format_gib, limit=limit)
