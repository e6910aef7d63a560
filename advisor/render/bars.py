"""Amounts against a limit as stacked bars: SVG that keeps its text at the size of the page's text
at every width, with a list that says the same in words.

    estimated: 14.2 GiB (13.1 to 15.4)
    [1        |2     |3  |4]          :limit
    measured: 13.8 GiB
    [5                     ]          :limit
    1 weights 8.0 GiB, 2 activations 3.1 GiB, ...

Nothing is told by colour alone: parts are numbered, stand in the order of the list, and have a gap
between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.render.html import text

MOST_PARTS = 7  # more cannot be told apart; the smallest of the rest become one
FILLS = 9  # of a bar, and two of another beside it
REST = "everything else"
FAR = 4.0  # a limit so many times as large would leave the bars too short to read
ROOM_FOR_NUMBER = 0.04  # of the width: 14 pixels on a phone
HEIGHT = 28  # pixels of a bar

STYLE = """
.bars { --p1: #9ec5e8; --p2: #f2c078; --p3: #a8d5a2; --p4: #e3a6b8; --p5: #c3b1e1; --p6: #d9d38a;
  --p7: #b5bdc6; --p8: #8fd3d1; --p9: #e2c4a8; margin: 1rem 0; }
@media (prefers-color-scheme: dark) {
  .bars { --p1: #2f5f8a; --p2: #80561a; --p3: #33663a; --p4: #7d3a50; --p5: #57438a; --p6: #5f5a1e;
  --p7: #4c5560; --p8: #1f6664; --p9: #6b4b30; }
}
.bars figcaption { font-size: .9rem; margin-bottom: .4rem; }
.bars p { margin: .6rem 0 .15rem; }
.bars svg { display: block; width: 100%; overflow: visible; }
.bars rect.part { stroke: var(--paper); stroke-width: 2; }
.bars rect.frame { fill: none; stroke: var(--line); }
.bars .limit { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 5 3; }
.bars .band { stroke: var(--ink); stroke-width: 1.5; }
.bars svg text { font: 600 13px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }
.bars ol { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0;
  margin: .5rem 0; font-size: .9rem; }
.bars b { display: inline-block; min-width: 1.5em; text-align: center; border-radius: 3px;
  margin-right: .35em; color: var(--ink); print-color-adjust: exact; }
""" + "\n".join(
    f".bars .p{number} {{ fill: var(--p{number}); background: var(--p{number}); }}"
    for number in range(1, FILLS + 1)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar: an amount, by its parts."""

    name: str
    parts: Mapping[str, float]  # in the order drawn; one of 0 or below is listed and not drawn
    total: float | None = None  # None: the sum of the parts
    band: tuple[float, float] | None = None  # low, high


def stacked_bars(
    caption: str,
    bars: Sequence[Bar],
    *,
    show: Callable[[float], str],
    limit: float | None = None,
    limit_name: str = "limit",
) -> str:
    """The bars as HTML, each with its number above it; '' without bars. A page that has some needs
    `STYLE`.

    Args:
        bars: From top to bottom, all in one unit.
        show: An amount with its unit, such as `format_gib`.
        limit: What the amounts are held against, in the same unit.
    """
    kept = [_at_most(bar, MOST_PARTS) for bar in bars]
    totals = [sum(bar.parts.values()) if bar.total is None else bar.total for bar in kept]
    ends = [max(0.0, *(bar.band or (0.0,)), _drawn(bar)) for bar in kept]
    widest = max([*totals, *ends], default=0.0)
    if not kept or widest <= 0:
        return ""
    is_far = limit is not None and limit > FAR * widest
    drawn_limit = None if is_far else limit
    widest = 1.02 * max(widest, drawn_limit or 0.0)  # no line or end of a band is cut off
    names = dict.fromkeys(name for bar in kept for name in bar.parts)
    number = {name: place for place, name in enumerate(names, 1)}
    rows = []
    for bar, total in zip(kept, totals, strict=True):
        band = f" ({show(bar.band[0])} to {show(bar.band[1])})" if bar.band else ""
        said = f"{bar.name}: {show(total)}{band}"
        rows += [f"<p>{text(said)}</p>", _drawing(bar, number, widest, drawn_limit, said)]
    against = ""
    if limit:
        where = "far beyond the picture" if is_far else "dashed line"
        against = f"; {where}: {limit_name}, {show(limit)}"
    amounts = []
    for name, place in number.items():
        said = " and ".join(show(bar.parts[name]) for bar in kept if name in bar.parts)
        fill = (place - 1) % FILLS + 1
        amounts.append(f'<li><b class="p{fill}">{place}</b>{text(name)} {text(said)}</li>')
    return "\n".join(
        [
            '<figure class="bars">',
            f"<figcaption>{text(caption + against)}</figcaption>",
            *rows,
            f"<ol>{''.join(amounts)}</ol>",
            "</figure>",
        ]
    )


def _drawn(bar: Bar) -> float:
    return sum(value for value in bar.parts.values() if value > 0)


def _at_most(bar: Bar, most: int) -> Bar:
    """The bar with its smallest parts as one; corrections below 0 stay by themselves."""
    if len(bar.parts) <= most:
        return bar
    below = [name for name, value in bar.parts.items() if value <= 0]
    ordered = sorted(bar.parts, key=lambda name: bar.parts[name], reverse=True)
    largest = {*ordered[: max(1, most - 1 - len(below))], *below}
    parts = {name: value for name, value in bar.parts.items() if name in largest}
    rest = sum(value for name, value in bar.parts.items() if name not in largest)
    parts = {**parts, REST: rest} if rest else parts
    total = sum(bar.parts.values()) if bar.total is None else bar.total
    return replace(bar, parts=parts, total=total)


def _drawing(
    bar: Bar, number: Mapping[str, int], widest: float, limit: float | None, said: str
) -> str:
    """One bar as SVG: across in percent, down in pixels, so that only its width follows the
    page.
    """
    drawn, at = [], 0.0
    for name, value in bar.parts.items():
        share = max(0.0, value) / widest
        if share:
            place = number[name]
            drawn.append(
                f'<rect class="part p{(place - 1) % FILLS + 1}" x="{at:.2%}" y="0"'
                f' width="{share:.2%}" height="{HEIGHT}"/>'
            )
            if share >= ROOM_FOR_NUMBER:
                middle = f'x="{at + share / 2:.2%}" y="{HEIGHT / 2 + 5:g}"'
                drawn.append(f"<text {middle}>{place}</text>")
        at += share
    drawn.append(f'<rect class="frame" x="0" y="0" width="{at:.2%}" height="{HEIGHT}" rx="2"/>')
    if bar.band:
        low, high = (f"{value / widest:.2%}" for value in bar.band)
        line, end = HEIGHT + 6, 4
        drawn.append(f'<line class="band" x1="{low}" x2="{high}" y1="{line}" y2="{line}"/>')
        drawn += [
            f'<line class="band" x1="{x}" x2="{x}" y1="{line - end}" y2="{line + end}"/>'
            for x in (low, high)
        ]
    if limit:
        x = f"{limit / widest:.2%}"
        drawn.append(f'<line class="limit" x1="{x}" x2="{x}" y1="-4" y2="{HEIGHT + 4}"/>')
    height = HEIGHT + (12 if bar.band else 2)
    return f'<svg height="{height}" role="img" aria-label="{text(said)}">{"".join(drawn)}</svg>'
