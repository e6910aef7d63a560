"""A picture of the decision, made from the loaded rules: steps in order, what each looks at, what
it may conclude, what goes on where.

It shows steps and facts, no rules and no methods, so that a new rule or method leaves it as it is.
"""

from __future__ import annotations

from advisor.methods import schemes, updates
from advisor.ruleset.facts import ORIGINS
from advisor.ruleset.model import DecisionTable, Ruleset
from tools.generate.drawing import (
    BOX_WIDTH,
    BOX_X,
    CAPTION_WIDTH,
    FACTS_WIDTH,
    FACTS_X,
    LABEL_WIDTH,
    LANE_GAP,
    MARGIN,
    NORMAL,
    PAD,
    ROW_GAP,
    SMALL,
    SOFT,
    TITLE,
    Row,
    draw_box,
    draw_facts,
    draw_head,
    draw_lanes,
    draw_spine,
    pill,
    plain,
)
from tools.generate.svg import Canvas, flow, wrapped
from tools.generate.words import count

SETTINGS = "a value for each key of a stage"
SCHEMES = "one of the update schemes"


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
    said = (
        f"{count(len(rows), 'step')}. Each step looks at a few facts and concludes one, which later"
        " steps may look at."
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
        draw_box(canvas, row)
    order = ", ".join(["your own files", *reversed(rules.layers), "base"])
    said_below = (
        "In each step: what any rule forbids is out. Of the rest the first of these layers decides:"
        f" {order}; inside a layer, the higher tier."
    )
    canvas.text(width / 2, end + 34 + 32, said_below, SMALL, fill=SOFT, anchor="middle")
    steps = "; ".join(f"{row.place}. {plain(row.table.id)}: {row.table.about}" for row in rows)
    return canvas.document(width, height, title=TITLE, description=f"{said} {steps}.")


def row_of(rules: Ruleset, table: DecisionTable, place: int) -> Row:
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
    incoming = [fact for fact in table.inputs if fact in produced and fact != table.concludes]
    placed, height = flow(outcomes_of(rules, table), BOX_WIDTH - 2 * PAD, SMALL)
    return Row(
        table=table,
        place=place,
        groups=groups,
        about=wrapped(table.about[:1].upper() + table.about[1:], BOX_WIDTH - 2 * PAD, NORMAL),
        outcomes=placed,
        outcomes_height=height,
        # A step that is asked for each scheme hands those that pass to the step that ranks them.
        concludes=table.id if table.per else table.concludes,
        incoming=[*([table.asks] if table.asks else []), *incoming],
    )


def outcomes_of(rules: Ruleset, table: DecisionTable) -> list[str]:
    """What a step may conclude; names of update schemes as one phrase, whichever there are."""
    if table.per:
        return ["allowed", "ruled out"]
    named = {*schemes(), *updates()}
    values = rules.facts[table.concludes].values
    shown = [SCHEMES if value in named else plain(value) for value in values]
    return list(dict.fromkeys(shown)) or [SETTINGS]


def lanes_of(rows: list[Row]) -> dict[str, tuple[int, list[Row]]]:
    """Concluded fact -> its lane and the steps it goes to; lanes are shared where they do not
    overlap.
    """
    spans: list[tuple[int, int, Row, list[Row]]] = []
    for row in rows:
        to = [
            other for other in rows if row.concludes in other.incoming and other.place > row.place
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
        found[row.concludes] = (lane, to)
    return found
