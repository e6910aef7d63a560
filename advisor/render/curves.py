"""Measured values over steps as a picture of its own: plain SVG, no script, no font of its own,
light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
MAX_POINTS = 400  # more than a screen shows; the lowest and highest of each span are kept


def curve(
    name: str,
    points: Sequence[tuple[float, float]],
    *,
    unit: str = "",
    marks: Sequence[tuple[float, str]] = (),
    beside: tuple[str, Sequence[tuple[float, float]]] | None = None,
    dot: tuple[float, float, str] | None = None,
) -> str:
    """One line chart as SVG, '' with fewer than two finite points.

    Args:
        name: What the line shows.
        points: (step, value), steps rising.
        unit: Of the values.
        marks: (value, label) of horizontal lines to compare with.
        beside: (what it shows, its points) of a second line in the same picture.
        dot: (step, value, label) of one point of the second line.
    """
    finite = _finite(points)
    second = _finite(beside[1]) if beside else []
    if len(finite) < 2:
        return ""
    kept = thin(finite)
    xs = sorted([x for x, _ in kept] + [x for x, _ in second])
    ys = [y for _, y in kept + second] + [value for value, _ in marks if math.isfinite(value)]
    low, high = min(ys), max(ys)
    low, high = (
        (low - abs(low) * 0.05 - 1e-12, high + abs(high) * 0.05 + 1e-12)
        if low == high
        else (low, high)
    )

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def path(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in values))

    ticks = []
    for value in (low, (low + high) / 2, high):
        _, y = place(xs[0], value)
        ticks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/><text'
            f' x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
        )
    for value, label in marks:
        _, y = place(xs[0], value)
        ticks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="mark"/><text'
            f' x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    unit_words = f" ({unit})" if unit else ""
    title = escape(f"{name}{unit_words}")
    told = _ends(name, finite)
    drawn = f'<polyline points="{path(kept)}" class="line"/>'
    if beside and second:
        title = (
            f'<span class="key line"></span>{escape(name)} <span class="key second"></span>'
            f"{escape(beside[0])}{escape(unit_words)}"
        )
        told += f"; {_ends(beside[0], second)}"
        drawn += f'<polyline points="{path(second)}" class="second"/>'
        drawn += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="point"/>'
            for x, y in (place(*point) for point in second)
        )
    if dot is not None:
        x, y = place(dot[0], dot[1])
        told += f"; {dot[2]}"
        anchor = "end" if x > WIDTH / 2 else "start"
        drawn += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="dot"/><text x="{x:.1f}"'
            f' y="{max(y - 22, TOP):.1f}" text-anchor="{anchor}">{escape(dot[2])}</text>'
        )
    said = escape(told)
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{said}"><title>{said}</title>{"".join(ticks)}{drawn}<text'
        f' x="{LEFT}" y="{HEIGHT - 8}">step {xs[0]:g}</text><text'
        f' x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step'
        f" {xs[-1]:g}</text></svg></figure>"
    )


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _ends(name: str, points: Sequence[tuple[float, float]]) -> str:
    """'Training loss from 4 at step 0 to 2 at step 2'."""
    (first, start), (last, end) = points[0], points[-1]
    return f"{name} from {short(start)} at step {first:g} to {short(end)} at step {last:g}"


def thin(
    points: Sequence[tuple[float, float]], most: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """At most `most` points; of each span the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    span = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), span):
        part = points[start : start + span]
        kept += sorted(
            {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        )
    return kept


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"
