"""A picture of the decision, made from the loaded rules: steps in order, what each looks at, what
it may conclude, what goes on where.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from advisor.ruleset.facts import ORIGINS
from advisor.ruleset.model import Ruleset, Table
from tests.generating.svg import Canvas, chip_height, chip_width, flow, text_width, wrapped
from tests.generating.words import count

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
LAYER_COLOURS = ("#64748b", "#0f766e", "#c2410c", "#7e22ce", "#1d4ed8")
INK, SOFT, RULE = "#0f172a", "#475569", "#94a3b8"

MARGIN = 28
FACTS_X, CAPTION_WIDTH, FACTS_WIDTH = MARGIN, 78, 400  # captions and chips
BOX_X, BOX_WIDTH = MARGIN + 400 + 44, 470
PAD = 16
LABEL_WIDTH = 118  # between a box and the first lane
LANE_GAP = 18
PORT_GAP = 24
ROW_GAP = 34
SMALL, NORMAL = 12.5, 13.5


@dataclass(kw_only=True)
class Row:
    """One step on its way onto the canvas."""

    table: Table
    place: int
    groups: list[tuple[str, list[tuple[float, float, str]], float]]  # origin, chips, height
    about: list[str]
    outcomes: list[tuple[float, float, str]]
    outcomes_height: float
    rules: list[tuple[str, int]]  # layer, number of rules
    incoming: list[str] = field(default_factory=list)  # facts that earlier steps concluded
    outgoing: bool = False
    y: float = 0

    @property
    def facts_height(self) -> float:
        return sum(height for _, _, height in self.groups) + 10 * max(len(self.groups) - 1, 0)

    @property
    def height(self) -> float:
        box = PAD + 24 + 18 * len(self.about) + 12 + self.outcomes_height + 34
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


def picture(rules: Ruleset) -> str:
    """The SVG's text."""
    rows = [row_of(rules, table, place) for place, table in enumerate(rules.tables.values(), 1)]
    lanes = lanes_of(rows)
    width = (
        BOX_X
        + BOX_WIDTH
        + LABEL_WIDTH
        + LANE_GAP * max((lane for lane, _ in lanes.values()), default=0)
        + LANE_GAP
        + MARGIN
    )
    canvas = Canvas()
    total = sum(len(listed) for listed in rules.rules.values())
    said = (
        f"{count(len(rows), 'step')}, {count(total, 'rule')}. Each step looks at a few facts and"
        " concludes one, which later steps may look at."
    )
    y = draw_head(canvas, rows, said, width)
    start = y
    y += 34 + ROW_GAP
    for row in rows:
        row.y = y
        y += row.height + ROW_GAP
    end = y
    height = end + 52 + 30 + MARGIN
    background = Canvas()
    background.rect(0.5, 0.5, width - 1, height - 1, fill="#ffffff", stroke="#cbd5e1", radius=14)
    canvas.parts[:0] = background.parts
    pill(canvas, start, "Your answers, your data, your model, your machine")
    canvas.text(FACTS_X, start + 22, "What each step looks at", NORMAL, bold=True)
    canvas.text(
        width - MARGIN, start + 22, "What goes on to later steps", NORMAL, bold=True, anchor="end"
    )
    for row in rows:
        draw_spine(canvas, row.y - ROW_GAP, row.y)
    draw_spine(canvas, end - ROW_GAP, end)
    pill(canvas, end, "The answer: what to do, why, why not the others, and plan.yaml")
    draw_lanes(canvas, rows, lanes)
    for row in rows:
        draw_facts(canvas, row)
        draw_box(canvas, row, rules)
    order = ", ".join(["your own files", *reversed(rules.layers), "base"])
    canvas.text(
        width / 2, end + 34 + 32,
        f"In each step: what any rule forbids is out. Of the rest the first of these layers decides: {order}; inside a layer, the higher tier.",
        SMALL, fill=SOFT, anchor="middle"
    )  # fmt: skip
    steps = "; ".join(f"{row.place}. {plain(row.table.id)}: {row.table.about}" for row in rows)
    return canvas.document(width, height, title=TITLE, description=f"{said} {steps}.")


def row_of(rules: Ruleset, table: Table, place: int) -> Row:
    produced = {other.concludes for other in rules.tables.values()}
    groups = []
    for origin in ORIGINS:
        names = [
            plain(fact)
            for fact in table.inputs
            if rules.facts[fact].origin == origin and fact not in produced
        ]
        if names:
            groups.append((origin, *flow(names, FACTS_WIDTH - CAPTION_WIDTH, SMALL)))
    listed = rules.rules[table.id]
    values = list(rules.facts[table.concludes].values)
    keys = dict.fromkeys(key for rule in listed if rule.kind == "set" for key in rule.then)
    placed, height = flow(
        [plain(str(value)) for value in [*values, *keys]], BOX_WIDTH - 2 * PAD, SMALL
    )
    by_layer = Counter(rule.layer for rule in listed)
    layers = ["base", *rules.layers]
    return Row(
        table=table, place=place, groups=groups,
        about=wrapped(table.about[:1].upper() + table.about[1:], BOX_WIDTH - 2 * PAD, NORMAL),
        outcomes=placed, outcomes_height=height,
        rules=[(layer, by_layer[layer]) for layer in layers],
        incoming=[fact for fact in table.inputs if fact in produced],
    )  # fmt: skip


def lanes_of(rows: list[Row]) -> dict[str, tuple[int, list[Row]]]:
    """Concluded fact -> its lane and the steps it goes to; lanes are shared where they do not
    overlap.
    """
    spans: list[tuple[int, int, Row, list[Row]]] = []
    for row in rows:
        to = [
            other
            for other in rows
            if row.table.concludes in other.incoming and other.place > row.place
        ]
        if to:
            row.outgoing = True
            spans.append((row.place, max(other.place for other in to), row, to))
    found: dict[str, tuple[int, list[Row]]] = {}
    taken: list[list[tuple[int, int]]] = []
    for first, last, row, to in sorted(
        spans, key=lambda span: (span[1] - span[0], span[0])
    ):  # short ones next to the boxes: fewest crossings
        lane = next(
            (
                lane
                for lane, others in enumerate(taken)
                if all(
                    last < other_first or first > other_last for other_first, other_last in others
                )
            ),
            len(taken),
        )
        taken[lane : lane + 1] = [[*(taken[lane] if lane < len(taken) else []), (first, last)]]
        found[row.table.concludes] = (lane, to)
    return found


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


def draw_box(canvas: Canvas, row: Row, rules: Ruleset) -> None:
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
    x, y = BOX_X + BOX_WIDTH - PAD, row.y + row.height - 12
    for layer, number_of in reversed(row.rules):
        if number_of:
            label = f"{number_of} {layer}"
            x -= text_width(label, 12)
            canvas.text(x, y, label, 12, fill=SOFT)
            canvas.rect(
                x - 14,
                y - 9,
                10,
                10,
                fill=LAYER_COLOURS[["base", *rules.layers].index(layer) % len(LAYER_COLOURS)],
                radius=2,
            )
            x -= 26
    canvas.text(x + 8, y, "rules:", 12, fill=SOFT, anchor="end")


def draw_lanes(
    canvas: Canvas, rows: Iterable[Row], lanes: dict[str, tuple[int, list[Row]]]
) -> None:
    """What a step concluded, on its way to the later steps that look at it."""
    edge = BOX_X + BOX_WIDTH
    for index, (fact, (lane, to)) in enumerate(lanes.items()):
        source = next(row for row in rows if row.table.concludes == fact)
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
