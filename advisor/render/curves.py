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
) -> str:
    """One line chart as SVG, '' with fewer than two finite points.

    Args:
        points: (step, value), steps rising.
        marks: (value, label) of horizontal lines to compare with.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) < 2:
        return ""
    kept = thin(finite)
    xs, ys = (
        [x for x, _ in kept],
        [y for _, y in kept] + [value for value, _ in marks if math.isfinite(value)],
    )
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

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in kept))
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
    title = escape(f"{name}{f' ({unit})' if unit else ''}")
    said = escape(
        f"{name} from {short(finite[0][1])} at step {finite[0][0]:g} to {short(finite[-1][1])} at"
        f" step {finite[-1][0]:g}"
    )
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{said}"><title>{said}</title>{"".join(ticks)}<polyline points="{line}"'
        f' class="line"/><text x="{LEFT}" y="{HEIGHT - 8}">step {xs[0]:g}</text><text'
        f' x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step'
        f" {xs[-1]:g}</text></svg></figure>"
    )


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
