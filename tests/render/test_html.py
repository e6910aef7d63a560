"""Blocks of a page as HTML: what they hold is text, and stacked bars say the same in words, in numbers
and in the drawing, and need no colour.
"""

from __future__ import annotations

import re

import pytest

from advisor.record.run import MachineRecord, RunRecord
from advisor.render.blocks import Item, Items, PageTable, Section
from advisor.render.report import ToPaste, html_templates, render_html
from advisor.render.report_stage import StackedBar, bar_chart

HOSTILE = "<script>alert(1)</script>"


def html_of(block):
    """One block as the report shows it."""
    macros = html_templates().get_template("blocks.html").module
    return str(getattr(macros, type(block).__name__)(block))


def test_code_is_marked_and_escaped():
    """What stands between backticks is code; what it holds is still text."""
    page = html_of(Items(items=(Item(text="say `--gpu <b>` now"),)))
    assert "say <code>--gpu &lt;b&gt;</code> now" in page


def test_text_from_outside_is_shown_not_run():
    """A name or a path that holds markup appears as the characters it is made of."""
    blocks = (
        Items(items=(Item(text=HOSTILE, detail=HOSTILE, commands=(HOSTILE,)),)),
        PageTable(columns=(HOSTILE,), rows=((HOSTILE,),)),
        ToPaste(what=HOSTILE, line=HOSTILE),
    )
    section = Section(title=HOSTILE, blocks=blocks)
    record = RunRecord(
        schema_version=1, name=HOSTILE, model=HOSTILE, status="failed", stages=(),
        versions={HOSTILE: HOSTILE},
        advise_version=f"{HOSTILE} \x1b[2J",
    )  # fmt: skip
    page = render_html("report.html", {
        "record": record, "state": HOSTILE, "is_bad": False, "verdict": (), "command": None,
        "machine": MachineRecord(gpus=(HOSTILE,)), "what": HOSTILE, "stages": (),
        "tasks": {HOSTILE: {HOSTILE: 1.0}, "b": {}}, "sections": (section,),
        "plan_text": HOSTILE, "digests": {HOSTILE: HOSTILE},
    })  # fmt: skip
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 25
    assert "\x1b" not in page


def shown(value: float) -> str:
    return f"{value:g} GiB"


def drawn(*bars, limit=None):
    """The chart of some bars as HTML."""
    (chart,) = bar_chart("Memory", bars, show=shown, limit=limit)
    return html_of(chart)


def widths(page: str) -> list[float]:
    """Width of each drawn part, in percent."""
    return [float(found) for found in re.findall(r'<rect class="part[^>]*width="([\d.]+)%"', page)]


FAR = ("free", 20)
LIMIT = ("memory of the GPU", 20)


@pytest.mark.parametrize(
    ("parts", "more", "limit", "wide", "said"),
    [
        # 8 and 2 of a limit of 20: two fifths and a tenth of the width; both named with amounts.
        ({"weights": 8, "activations": 2}, {"band": (9, 12)}, LIMIT, [40 / 1.02, 10 / 1.02],
         ["e: 10 GiB (9 GiB to 12 GiB)", "dashed line: memory of the GPU, 20 GiB",
          ">1</b>weights 8 GiB</li>", ">2</b>activations 2 GiB</li>"]),
        # A correction below nothing is listed and not drawn; the total is said as it is.
        ({"a": 5, "learned": -1}, {"whole": 4}, None, [98.04], ["e: 4 GiB", "learned -1 GiB"]),
        # Ten times as much as a limit is said and not drawn.
        ({"a": 2}, {}, FAR, [98.04], ["far beyond the picture: free, 20 GiB"]),
        # A part may be named after a task of the user's.
        ({HOSTILE: 1}, {}, None, [98.04], ["&lt;script&gt;"]),
    ],
    ids=["limit", "correction", "far", "hostile"],
)  # fmt: skip
def test_bars_say_in_words_and_numbers_what_they_draw(parts, more, limit, wide, said):
    """Parts are as wide as their share, and stand in a numbered list."""
    page = drawn(StackedBar(name="e", parts=parts, **more), limit=limit)
    assert widths(page) == pytest.approx(wide, abs=0.05)
    assert [words for words in said if words not in page] == []
    assert "<script" not in page
    assert ('class="limit"' in page) is (limit is LIMIT)


def test_nothing_is_drawn_of_nothing():
    assert bar_chart("x", [], show=shown) == []
    assert bar_chart("x", [StackedBar(name="a", parts={})], show=shown) == []
