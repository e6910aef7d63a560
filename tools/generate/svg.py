"""A small SVG canvas and the width of text on it, so that boxes fit their words.

Standard library only.
"""

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

# Arial, Helvetica and Liberation Sans have these widths (thousandths of the size); Roboto and the
# system fonts of phones are about as wide.
_WIDTHS = {
    **dict.fromkeys("ijl'|", 222), **dict.fromkeys(" !,./:;It[]\\f", 278), **dict.fromkeys("-()r`",
    333), "*": 389, '"': 355, **dict.fromkeys("cksvxyzJ", 500),
    **dict.fromkeys("FTZL", 611), **dict.fromkeys("ABEKPSVXY&", 667), **dict.fromkeys("CDHNRUw",
    722), **dict.fromkeys("GOQ", 778), **dict.fromkeys("mM%", 860), "W": 944, "@": 1015,
    **dict.fromkeys("+<=>~", 584), "→": 1000, "■": 700, "·": 333,
}  # fmt: skip
SLACK = 1.03
BOLD = 1.07
FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line of text in pixels, a little more rather than less."""
    return (
        sum(_WIDTHS.get(letter, 556) for letter in text)
        / 1000
        * size
        * SLACK
        * (BOLD if bold else 1)
    )


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines no wider than `width`."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


class Canvas:
    """Shapes in the order they were drawn."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        stroke: str = "none",
        radius: float = 0,
        line: float = 1,
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
            f' fill="{fill}" stroke="{stroke}" stroke-width="{line:g}"/>'
        )

    def circle(self, x: float, y: float, radius: float, *, fill: str) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        fill: str = "#0f172a",
        bold: bool = False,
        anchor: str = "start",
    ) -> None:
        """A line of text whose baseline is at `y`."""
        weight = ' font-weight="700"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
            f' fill="{fill}"{weight}>{escape(text)}</text>'
        )

    def line(
        self,
        points: Iterable[tuple[float, float]],
        *,
        stroke: str,
        width: float = 1.5,
        arrow: bool = False,
    ) -> None:
        """A line through the points, with an arrow head at its end."""
        listed = list(points)
        joined = " ".join(f"{x:g},{y:g}" for x, y in listed)
        self.parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="{width:g}"'
            ' stroke-linejoin="round"/>'
        )
        if arrow:
            (x0, y0), (x1, y1) = listed[-2:]
            step_x, step_y = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
            back_x, back_y = x1 - 9 * step_x, y1 - 9 * step_y
            self.parts.append(
                f'<polygon points="{x1:g},{y1:g} {back_x + 5 * step_y:g},{back_y + 5 * step_x:g}'
                f' {back_x - 5 * step_y:g},{back_y - 5 * step_x:g}" fill="{stroke}"/>'
            )

    def chip(self, x: float, y: float, text: str, size: float, *, fill: str, ink: str) -> None:
        """A rounded box around one line of text, as wide as `chip_width` says."""
        self.rect(x, y, chip_width(text, size), chip_height(size), fill=fill, radius=5)
        self.text(
            x + chip_width(text, size) / 2,
            y + chip_height(size) * 0.7,
            text,
            size,
            fill=ink,
            anchor="middle",
        )

    def document(self, width: float, height: float, *, title: str, description: str) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
            f' width="{width:g}" height="{height:g}" role="img" aria-label={quoteattr(title)}'
            f' font-family="{FONT}">'
        )
        return "\n".join(
            [
                head,
                f"<title>{escape(title)}</title>",
                f"<desc>{escape(description)}</desc>",
                *self.parts,
                "</svg>",
                "",
            ]
        )


def chip_width(text: str, size: float) -> float:
    return round(text_width(text, size) + 14, 1)


def chip_height(size: float) -> float:
    return size + 9


def flow(
    texts: Iterable[str], width: float, size: float, *, gap: float = 6
) -> tuple[list[tuple[float, float, str]], float]:
    """Chips in lines no wider than `width`: (x, y, text) from 0, 0, and the height of all."""
    placed: list[tuple[float, float, str]] = []
    x = y = 0.0
    for text in texts:
        if x and x + chip_width(text, size) > width:
            x, y = 0.0, y + chip_height(size) + gap
        placed.append((x, y, text))
        x += chip_width(text, size) + gap
    return placed, (y + chip_height(size)) if placed else 0.0
