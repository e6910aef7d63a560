"""The section of a report on one stage: before and after, curves, costs, checks, sample answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DONE, ResolvedSettings, StageRecord
from advisor.record.stage import Confusion, DataCounts, Evaluation, Expected, Measured, Times
from advisor.render.blocks import PageTable
from advisor.render.run import (
    COUNTERS,
    LOSS_STEPS,
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
    last = metrics[-1] if metrics and stage.status != DONE else {}
    charts = metric_charts(metrics) if last.get("step", LOSS_STEPS) >= LOSS_STEPS else ()
    of = f" of {last['steps']:,}" if isinstance(last.get("steps"), int) else ""
    return {
        "record": stage,
        "at": f"step {last['step']}{of}" if "step" in last else "",
        "trained": what_was_trained(stage),
        "is_done": stage.status == DONE,
        "evaluation": evaluation,
        "charts": list(charts),
        "rollouts": PageTable(columns=ROLLOUT_COLUMNS, rows=tuple(sample_rows(rollouts))),
        "memory": _memory_chart(expected, measured),
        "costs": PageTable(columns=("what", "expected", "measured"), rows=tuple(_costs(stage))),
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
        ("in all", foreseen.total_s, times.total_s),
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
    limit = expected.limit_bytes and ("free before the run", expected.limit_bytes)
    caption = "Memory"
    if bars and measured.peak_bytes is not None and expected.counted_bytes:
        # Two counts stand in one picture: the table below compares like with like.
        counted = COUNTERS.get(str(measured.counter), "a part")
        caption += f"; measured is {counted}, expected of it: {format_gib(expected.counted_bytes)}"
    return bar_chart(caption, bars, show=format_gib, limit=limit or None)


FAR = 4.0  # a limit so many times as large would leave the bars too short to read
ROOM_FOR_NUMBER = 0.04  # of the width: 14 pixels on a phone
MAX_POINTS = 400  # more than a screen shows; the lowest and highest of each span are kept
APART = 11.0  # percent of the height that two labels need
INSET = 4.0  # percent of the height left free above and below the lines

Points = Sequence[tuple[float, float]]  # (step, value), steps rising


class StackedBar(Struct, frozen=True, kw_only=True):
    """An amount by its parts."""

    name: str
    parts: Mapping[str, float]  # in the order drawn; one of 0 or below is listed and not drawn
    whole: float | None = None  # None: the sum of the parts
    band: tuple[float, float] | None = None  # low, high

    @property
    def total(self) -> float:
        """The amount."""
        return sum(self.parts.values()) if self.whole is None else self.whole

    @property
    def widest(self) -> float:
        """Where the bar or its band ends."""
        drawn = sum(value for value in self.parts.values() if value > 0)
        return max(self.total, drawn, *(self.band or ()))


class BarChart(Struct, frozen=True, kw_only=True):
    """Bars from top to bottom, and a list that says the same in words."""

    caption: str
    bars: Sequence[Mapping[str, Any]]
    legend: Sequence[tuple[int, str, str]]  # number, name, amount
    limit: str  # its place; '' if it is not drawn


def bar_chart(
    caption: str,
    bars: Sequence[StackedBar],
    *,
    show: Callable[[float], str],
    limit: tuple[str, float] | None = None,
) -> list[BarChart]:
    """The bars, each with its number above it; [] if there is nothing to draw.

    Args:
        show: An amount with its unit, such as `format_gib`.
        limit: What amounts are held against, and how much that is.
    """
    widest = max((bar.widest for bar in bars), default=0.0)
    if widest <= 0:
        return []
    drawn_limit = limit[1] if limit and limit[1] <= FAR * widest else 0.0
    scale = 1.02 * max(widest, drawn_limit)  # no line or end of a band is cut off
    if limit:
        where = "dashed line" if drawn_limit else "far more, so not drawn"
        caption += f"; {where}: {limit[0]}, {show(limit[1])}"
    names = dict.fromkeys(name for bar in bars for name in bar.parts)
    numbers = {name: at for at, name in enumerate(names, 1)}
    legend = [
        (number, name, " and ".join(show(bar.parts[name]) for bar in bars if name in bar.parts))
        for name, number in numbers.items()
    ]
    drawn = [_drawn(bar, numbers, scale, show) for bar in bars]
    place = f"{drawn_limit / scale:.2%}" if drawn_limit else ""
    return [BarChart(caption=caption, bars=drawn, legend=legend, limit=place)]


def _drawn(
    bar: StackedBar, numbers: Mapping[str, int], scale: float, show: Callable[[float], str]
) -> dict[str, Any]:
    parts, start = [], 0.0
    for name, value in bar.parts.items():
        share = max(0.0, value) / scale
        if share:
            middle = f"{start + share / 2:.2%}" if share >= ROOM_FOR_NUMBER else ""
            parts.append({
                "start": f"{start:.2%}", "width": f"{share:.2%}", "middle": middle,
                "number": numbers[name],
            })  # fmt: skip
        start += share
    band = [f"{end / scale:.2%}" for end in bar.band or ()]
    ends = f" ({' to '.join(map(show, bar.band))})" if bar.band else ""
    says = f"{bar.name}: {show(bar.total)}{ends}"
    return {"says": says, "parts": parts, "end": f"{start:.2%}", "band": band}


class Line(Struct, frozen=True, kw_only=True):
    """Values over steps under a name."""

    name: str
    points: Points

    def says(self) -> str:
        """'Training loss from 4 at step 0 to 2 at step 2'."""
        (first, start), (last, end) = self.points[0], self.points[-1]
        return f"{self.name} from {start:.3g} at step {first:g} to {end:.3g} at step {last:g}"


class LineChart(Struct, frozen=True, kw_only=True):
    """One line, or two in one picture. Heights are in percent from the top."""

    caption: str
    says: str
    first: str  # step
    last: str
    ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[str, Points]]
    ends: Sequence[tuple[float, str]]  # the label at the end of each line
    spots: Sequence[tuple[str, float, float]] = ()


def line_chart(line: Line, *, unit: str = "", beside: Line | None = None) -> list[LineChart]:
    """A chart of a line; [] if it has fewer than two finite points.

    Args:
        unit: The unit of the values.
        beside: A second line in the same picture, whose lowest point is marked.
    """
    line = replace(line, points=_finite(line.points))
    if len(line.points) < 2:
        return []
    second = replace(beside, points=_finite(beside.points)) if beside else Line(name="", points=())
    thinned = thin(line.points)
    xs, ys = zip(*thinned, *second.points, strict=True)
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    if low == high:
        low, high = low - abs(low) * 0.05 - 1e-12, high + abs(high) * 0.05 + 1e-12

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - left) / ((right - left) or 1), (point[1] - low) / (high - low)
        return across * 100, 100 - INSET - up * (100 - 2 * INSET)

    caption, says = line.name, line.says()
    drawn, spots = [("line", list(map(place, thinned)))], []
    ends = [_end(line, place)]
    note = ""
    if second.points:
        caption += f" (solid) and {second.name[:1].lower()}{second.name[1:]} (dashed)"
        drawn.append(("second", list(map(place, second.points))))
        spots = [("point", *place(point)) for point in second.points]
        ends.append(_end(second, place))
        lowest = min(second.points, key=itemgetter(1))
        spots.append(("dot", *place(lowest)))
        label = f"lowest at step {lowest[0]:g}"
        says += f"; {second.says()}; {label}"
        note = f"; large dot: {label} ({lowest[1]:.3g})"
    chart = LineChart(
        caption=f"{caption}{f', in {unit}' if unit else ''}{note}",
        says=says,
        first=f"{left:g}",
        last=f"{right:g}",
        ticks=[(place((0, y))[1], f"{y:.3g}") for y in (high, (low + high) / 2, low)],
        lines=drawn,
        ends=_moved_apart(ends),
        spots=spots,
    )
    return [chart]


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _end(
    line: Line, place: Callable[[tuple[float, float]], tuple[float, float]]
) -> tuple[float, str]:
    last, words = line.points[-1], line.name.split()
    # 'training' for 'Training loss': what tells it from the other line.
    name = words[0].lower() if words[-1] == "loss" and len(words) > 1 else "last"
    return place(last)[1], f"{name} {last[1]:.3g}"


def _moved_apart(ends: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    placed: list[tuple[float, str]] = []
    for y, label in sorted(ends):
        placed.append((max(y, placed[-1][0] + APART) if placed else y, label))
    over = max(0.0, placed[-1][0] - (100 - INSET))
    return [(y - over, label) for y, label in placed]


def thin(points: Points) -> Points:
    """At most 400 points; of each span the lowest and the highest, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return points
    span = math.ceil(len(points) / (MAX_POINTS // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), span):
        part = points[start : start + span]
        kept += sorted({min(part, key=itemgetter(1)), max(part, key=itemgetter(1))})
    return kept
