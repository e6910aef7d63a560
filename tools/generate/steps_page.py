"""The part of the page of settings about optimizer steps and held-out rows."""

from collections.abc import Iterable

from advisor.advice.search.rows import LARGE_HELD, MOST_HELD, MOST_ROWS_HELD
from advisor.methods import methods
from advisor.ruleset.model import Ruleset
from tools.generate.markdown import grid
from tools.generate.words import cell, source_link

TEXT = (
    "Where the usual values would leave fewer optimizer steps than this, the batch is halved until"
    " there are enough, down to the smallest one; where that does not suffice, the rows are read"
    " more often. What a layer of your own sets stays, and nothing changes where the number of rows"
    f" is not known. At most {MOST_HELD:.0%} of the rows are held out, and of large sets"
    f" {LARGE_HELD:.0%}, at most {MOST_ROWS_HELD:,}."
)


def steps_sections(rules: Ruleset) -> list[str | Iterable[str]]:
    """A heading, what is done, and one line an objective."""
    rows = []
    for one in methods().objectives.values():
        forms = [(f"`{one.id}`", one.steps), (f"`{one.id}`, classes", one.steps.get("classes"))]
        for name, steps in forms:
            if steps:
                rows.append(
                    [
                        name,
                        str(steps["least"]),
                        str(steps["smallest_batch"]),
                        str(steps["most_epochs"]),
                        str(steps.get("held_out", "")),
                        cell(steps["text"]),
                        ", ".join(source_link(source, rules) for source in steps["sources"]),
                    ]
                )
    headings = [
        "Objective", "Steps at least", "Smallest batch", "Most epochs", "Held-out rows", "Because",
        "Sources",
    ]  # fmt: skip
    return ["## Few rows", TEXT, grid(headings, rows)]
