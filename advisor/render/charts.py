"""Amounts against a limit as stacked bars, and values over steps as lines.

A chart holds what its macro in templates/blocks.html draws: places in percent and every text. SVG
has the shapes alone; labels are text of the page, which keeps its size on a phone. Nothing is told
by colour alone: parts are numbered and stand in the order of the list, the second line is dashed
and dotted, and each line has its name and its last value at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

ROOM_FOR_NUMBER = 0.04  # of the width: 14 pixels on a phone
MAX_POINTS = 400  # more than a screen shows; the lowest and highest of each span are kept
APART = 11.0  # percent of the height that two labels need
INSET = 4.0  # percent of the height left free above and below the lines

Points = Sequence[tuple[float, float]]  # (step, value), steps rising


@dataclass(frozen=True, kw_only=True, slots=True)
class StackedBar:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
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
    limit_name, limit_amount = limit or ("", 0.0)
    scale = 1.02 * max(widest, limit_amount)  # no line or end of a band is cut off
    if limit_amount:
        caption += f"; dashed line: {limit_name}, {show(limit_amount)}"
    names = dict.fromkeys(name for bar in bars for name in bar.parts)
    numbers = {name: at for at, name in enumerate(names, 1)}
    legend = [
        (number, name, " and ".join(show(bar.parts[name]) for bar in bars if name in bar.parts))
        for name, number in numbers.items()
    ]
    drawn = [_drawn(bar, numbers, scale, show) for bar in bars]
    place = f"{limit_amount / scale:.2%}" if limit_amount else ""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Values over steps under a name."""

    name: str
    points: Points

    @property
    def short_name(self) -> str:
        """'training' for 'Training loss': what tells it from the other line."""
        words = self.name.split()
        return words[0].lower() if words[-1] == "loss" and len(words) > 1 else "last"

    def says(self) -> str:
        """'Training loss from 4 at step 0 to 2 at step 2'."""
        (first, start), (last, end) = self.points[0], self.points[-1]
        return f"{self.name} from {start:.3g} at step {first:g} to {end:.3g} at step {last:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """One line, or two in one picture. Heights are in percent from the top."""

    caption: str
    says: str
    first: str  # step
    last: str
    ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[str, Points]]
    ends: Sequence[tuple[float, str]]  # the label at the end of each line
    spots: Sequence[tuple[str, float, float]] = field(default=())


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
    last = line.points[-1]
    return place(last)[1], f"{line.short_name} {last[1]:.3g}"


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
