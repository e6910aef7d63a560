"""Measured values over steps as a picture: SVG for the lines, text of the page for every label, so
that labels keep their size on a phone. No script, light and dark.

Nothing is told by colour alone: the second line is dashed and dotted, and each line has its name
and its last value at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter

from advisor.render.html import text

MAX_POINTS = 400  # more than a screen shows; the lowest and highest of each span are kept
APART = 11.0  # percent of the height that two labels need
INSET = 4.0  # percent of the height left free above and below the lines

STYLE = """
.plot { margin: 1.25rem 0; } .plot figcaption { font-size: .9rem; margin-bottom: .35rem; }
.plot .frame { display: grid; grid-template-columns: auto 1fr auto; column-gap: .4rem;
  font-size: 13px; line-height: 1.2; color: var(--quiet); }
.plot svg { grid-column: 2; width: 100%; height: 12rem; display: block; overflow: visible; }
.plot .ys, .plot .ends { position: relative; height: 12rem; }
.plot .ys span, .plot .ends span { position: absolute; transform: translateY(-50%);
  white-space: nowrap; }
.plot .ys { min-width: 3.2em; } .plot .ys span { right: 0; }
.plot .ends { min-width: 7.4em; color: var(--ink); padding-left: .4rem; }
.plot .xs { grid-column: 2; display: flex; justify-content: space-between; padding-top: .3rem; }
.plot svg * { vector-effect: non-scaling-stroke; fill: none; }
.plot .grid { stroke: var(--line); }
.plot .line { stroke: var(--mark); stroke-width: 2; }
.plot .second { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 7 4; }
.plot .point { stroke: var(--warn); stroke-width: 8; stroke-linecap: round; }
@media (max-width: 36rem) { .plot .frame { font-size: 12px; } .plot .ends { min-width: 6.6em; } }
.plot .dot { stroke: var(--ink); stroke-width: 12; stroke-linecap: round; }
"""


def curve(
    name: str,
    points: Sequence[tuple[float, float]],
    *,
    unit: str = "",
    beside: tuple[str, Sequence[tuple[float, float]]] | None = None,
    dot: tuple[float, float, str] | None = None,
) -> str:
    """One line chart as HTML, '' with fewer than two finite points. A page that has some needs
    `STYLE`.

    Args:
        name: What the line shows.
        points: (step, value), steps rising.
        unit: Of the values.
        beside: (what it shows, its points) of a second line in the same picture.
        dot: (step, value, label) of one point of the second line.
    """
    finite = _finite(points)
    second = _finite(beside[1]) if beside else []
    if len(finite) < 2:
        return ""
    kept = thin(finite)
    xs = sorted([x for x, _ in kept] + [x for x, _ in second])
    ys = [y for _, y in kept + second]
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - abs(low) * 0.05 - 1e-12, high + abs(high) * 0.05 + 1e-12

    def down(y: float) -> float:
        """Percent from the top."""
        return 100 - INSET - (y - low) / (high - low) * (100 - 2 * INSET)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - xs[0]) / ((xs[-1] - xs[0]) or 1) * 100, down(y)

    def path(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in (place(*point) for point in values))

    ticks = (high, (low + high) / 2, low)
    line = '<line x1="0" x2="100" y1="{0:.2f}" y2="{0:.2f}" class="grid"/>'
    drawn = [line.format(down(value)) for value in ticks]
    drawn.append(f'<polyline points="{path(kept)}" class="line"/>')
    ends = [(down(finite[-1][1]), f"{_short_name(name)} {short(finite[-1][1])}")]
    title, told = name, _ends(name, finite)
    if beside and second:
        title = f"{name} (solid) and {beside[0][:1].lower()}{beside[0][1:]} (dashed)"
        told += f"; {_ends(beside[0], second)}"
        drawn.append(f'<polyline points="{path(second)}" class="second"/>')
        drawn += [_spot(*place(*point), "point") for point in second]
        ends.append((down(second[-1][1]), f"{_short_name(beside[0])} {short(second[-1][1])}"))
    note = ""
    if dot is not None:
        told += f"; {dot[2]}"
        drawn.append(_spot(*place(dot[0], dot[1]), "dot"))
        note = f"; large dot: {dot[2]} ({short(dot[1])})"
    caption = f"{title}{f', in {unit}' if unit else ''}{note}"
    beside_ticks = "".join(
        f'<span style="top:{down(one):.1f}%">{short(one)}</span>' for one in ticks
    )
    return "\n".join(
        [
            '<figure class="plot">',
            f"<figcaption>{text(caption)}</figcaption>",
            f'<div class="frame"><div class="ys" aria-hidden="true">{beside_ticks}</div>',
            f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"'
            f' aria-label="{text(told)}">{"".join(drawn)}</svg>',
            f'<div class="ends" aria-hidden="true">{_labels(ends)}</div>',
            f'<div class="xs"><span>step {xs[0]:g}</span><span>optimizer steps</span>'
            f"<span>step {xs[-1]:g}</span></div></div>",
            "</figure>",
        ]
    )


def _spot(x: float, y: float, kind: str) -> str:
    """A round point: the drawing is stretched, and a line's cap is not."""
    return f'<path d="M{x:.2f} {y:.2f}h0" class="{kind}"/>'


def _labels(ends: Sequence[tuple[float, str]]) -> str:
    """Labels at the ends of lines, moved apart where they would cover each other."""
    placed: list[tuple[float, str]] = []
    for y, label in sorted(ends):
        at = max(y, placed[-1][0] + APART) if placed else y
        placed.append((at, label))
    over = max(0.0, placed[-1][0] - (100 - INSET)) if placed else 0.0
    return "".join(f'<span style="top:{y - over:.1f}%">{text(label)}</span>' for y, label in placed)


def _short_name(name: str) -> str:
    """'training' of 'Training loss': what tells it from the other line."""
    words = name.split()
    return words[0].lower() if words[-1] == "loss" and len(words) > 1 else "last"


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
        kept += sorted({min(part, key=itemgetter(1)), max(part, key=itemgetter(1))})
    return kept


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"
