"""The parts of the picture of the decision: boxes, chips and arrows on a canvas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from advisor.ruleset.facts import ORIGINS
from advisor.ruleset.model import DecisionTable
from tools.generate.svg import Canvas, chip_height, chip_width, text_width

TITLE = "How a recommendation is made"
# origin -> caption of its chips, what it means, colours of chip and text
ORIGIN_LOOKS = {
    "asked": ("you say", "asked, or stated by a flag or an answers file", "#dbeafe", "#1e3a8a"),
    "probed": ("machine", "read from your machine", "#dcfce7", "#14532d"),
    "data": ("data", "read from your data", "#ccfbf1", "#134e4a"),
    "model": ("model", "read from the model", "#ede9fe", "#4c1d95"),
    "estimated": (
        "computed",
        "memory, hours, dollars: computed before the rules look",
        "#fef3c7",
        "#78350f",
    ),
    "method": ("its file", "what the file of a method says", "#ffe4e6", "#881337"),
    "concluded": ("from above", "follows from the steps above", "#e2e8f0", "#334155"),
}
LANE_COLOURS = (
    "#b45309",
    "#0e7490",
    "#7c3aed",
    "#be123c",
    "#15803d",
    "#1d4ed8",
    "#a21caf",
    "#4d7c0f",
)
INK, SOFT, RULE = "#0f172a", "#475569", "#94a3b8"

MARGIN = 28
FACTS_X, CAPTION_WIDTH, FACTS_WIDTH = MARGIN, 78, 400  # captions and chips
BOX_X, BOX_WIDTH = MARGIN + 400 + 44, 470
PAD = 16
LABEL_WIDTH = 140  # between a box and the first lane
LANE_GAP = 18
PORT_GAP = 24
ROW_GAP = 34
SMALL, NORMAL = 12.5, 13.5


@dataclass(kw_only=True)
class Row:
    """One step on its way onto the canvas."""

    table: DecisionTable
    place: int
    groups: list[tuple[str, list[tuple[float, float, str]], float]]  # origin, chips, height
    about: list[str]
    outcomes: list[tuple[float, float, str]]
    outcomes_height: float
    concludes: str  # the name of what it hands on
    incoming: list[str] = field(default_factory=list)  # facts that earlier steps concluded
    outgoing: bool = False
    y: float = 0

    @property
    def facts_height(self) -> float:
        return sum(height for _, _, height in self.groups) + 10 * max(len(self.groups) - 1, 0)

    @property
    def height(self) -> float:
        box = PAD + 24 + 18 * len(self.about) + 12 + self.outcomes_height + PAD
        ports = 30 + PORT_GAP * (len(self.incoming) + self.outgoing)
        return max(box, ports, self.facts_height + 8)

    def port_y(self, fact: str) -> float:
        """Where the arrow of a fact from above enters."""
        return self.y + 34 + PORT_GAP * self.incoming.index(fact)

    @property
    def out_y(self) -> float:
        """Where the arrow of the own conclusion leaves: below those that enter."""
        return self.y + self.height - 20


def plain(name: str) -> str:
    return name.replace("_", " ")


def draw_head(canvas: Canvas, rows: Iterable[Row], said: str, width: float) -> float:
    """Title, the steps in one line, what the colours mean. Where it ends."""
    canvas.text(MARGIN, 50, TITLE, 26, bold=True)
    canvas.text(MARGIN, 76, said, 14.5, fill=SOFT)
    names = [f"{row.place} {plain(row.table.id)}" for row in rows]
    space = width - 2 * MARGIN - 22 * (len(names) - 1)
    size = next(
        (
            size
            for size in (14.0, 13.5, 13.0, 12.5)
            if sum(chip_width(name, size) + 2 for name in names) <= space
        ),
        12.5,
    )
    x, y = float(MARGIN), 94.0
    for name in names:
        wide = chip_width(name, size) + 2
        if x > MARGIN:
            if x + 22 + wide > width - MARGIN:
                x, y = MARGIN, y + 34
            else:
                canvas.line([(x + 3, y + 13), (x + 19, y + 13)], stroke=RULE, width=2, arrow=True)
                x += 22
        canvas.rect(x, y, wide, 26, fill=INK, radius=6)
        canvas.text(x + wide / 2, y + 18, name, size, fill="#ffffff", anchor="middle")
        x += wide
    x, y = MARGIN, y + 44
    used = {origin for row in rows for origin, _, _ in row.groups}
    for origin in (origin for origin in ORIGINS if origin in used):
        caption, meaning, fill, ink = ORIGIN_LOOKS[origin]
        wide = chip_width(caption, SMALL) + 6 + text_width(meaning, SMALL)
        if x > MARGIN and x + wide > width - MARGIN:
            x, y = MARGIN, y + 28
        canvas.chip(x, y, caption, SMALL, fill=fill, ink=ink)
        canvas.text(x + chip_width(caption, SMALL) + 6, y + 15, meaning, SMALL, fill=SOFT)
        x += wide + 22
    return y + chip_height(SMALL) + 22


def pill(canvas: Canvas, y: float, text: str) -> None:
    canvas.rect(BOX_X, y, BOX_WIDTH, 34, fill="#0f172a", radius=17)
    canvas.text(
        BOX_X + BOX_WIDTH / 2, y + 22, text, NORMAL, fill="#ffffff", bold=True, anchor="middle"
    )


def draw_spine(canvas: Canvas, top: float, bottom: float) -> None:
    canvas.line(
        [(BOX_X + BOX_WIDTH / 2, top), (BOX_X + BOX_WIDTH / 2, bottom - 1)],
        stroke=INK,
        width=3,
        arrow=True,
    )


def draw_facts(canvas: Canvas, row: Row) -> None:
    """The facts a step looks at, by where they come from, and one arrow into the step."""
    if not row.groups:
        return
    y = row.y + (row.height - row.facts_height) / 2
    for origin, chips, height in row.groups:
        caption, _, fill, ink = ORIGIN_LOOKS[origin]
        canvas.text(FACTS_X + CAPTION_WIDTH - 10, y + 15, caption, 12, fill=ink, anchor="end")
        for x, down, name in chips:
            canvas.chip(FACTS_X + CAPTION_WIDTH + x, y + down, name, SMALL, fill=fill, ink=ink)
        y += height + 10
    middle = row.y + row.height / 2
    canvas.line(
        [(FACTS_X + FACTS_WIDTH + 6, middle), (BOX_X - 2, middle)], stroke=RULE, width=2, arrow=True
    )


def draw_box(canvas: Canvas, row: Row) -> None:
    canvas.rect(
        BOX_X, row.y, BOX_WIDTH, row.height, fill="#f8fafc", stroke=INK, radius=10, line=1.5
    )
    y = row.y + PAD
    canvas.circle(BOX_X + PAD + 11, y + 9, 12, fill=INK)
    canvas.text(
        BOX_X + PAD + 11, y + 14, str(row.place), 13, fill="#ffffff", bold=True, anchor="middle"
    )
    canvas.text(BOX_X + PAD + 32, y + 15, plain(row.table.id), 18, bold=True)
    y += 24
    for line in row.about:
        y += 18
        canvas.text(BOX_X + PAD, y, line, NORMAL, fill=SOFT)
    y += 12
    for x, down, name in row.outcomes:
        canvas.rect(
            BOX_X + PAD + x,
            y + down,
            chip_width(name, SMALL),
            chip_height(SMALL),
            fill="#ffffff",
            stroke="#94a3b8",
            radius=5,
        )
        canvas.text(
            BOX_X + PAD + x + chip_width(name, SMALL) / 2,
            y + down + chip_height(SMALL) * 0.7,
            name,
            SMALL,
            anchor="middle",
        )


def draw_lanes(
    canvas: Canvas, rows: Iterable[Row], lanes: dict[str, tuple[int, list[Row]]]
) -> None:
    """What a step concluded, on its way to the later steps that look at it."""
    edge = BOX_X + BOX_WIDTH
    for index, (fact, (lane, to)) in enumerate(lanes.items()):
        source = next(row for row in rows if row.concludes == fact)
        colour = LANE_COLOURS[index % len(LANE_COLOURS)]
        x = edge + LABEL_WIDTH + LANE_GAP * lane
        canvas.text(edge + 12, source.out_y - 5, plain(fact), SMALL, fill=colour, bold=True)
        for row in to:
            canvas.line(
                [
                    (edge, source.out_y),
                    (x, source.out_y),
                    (x, row.port_y(fact)),
                    (edge + 2, row.port_y(fact)),
                ],
                stroke=colour,
                width=2,
                arrow=True,
            )
            canvas.text(edge + 14, row.port_y(fact) - 5, plain(fact), SMALL, fill=colour, bold=True)
