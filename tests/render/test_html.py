"""Blocks of a page as HTML: what they hold is text, and stacked bars say the same in words, in numbers
and in the drawing, and need no colour.
"""

from __future__ import annotations

import re

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


def test_parts_are_as_wide_as_their_share_and_stand_in_a_numbered_list():
    """8 and 2 of a limit of 20: two fifths and a tenth of the width; both named with their
    amounts.
    """
    bar = StackedBar(name="estimated", parts={"weights": 8, "activations": 2}, band=(9, 12))
    page = drawn(bar, limit=("memory of the GPU", 20))
    whole, part = widths(page)
    assert abs(whole - 40 / 1.02) < 0.02
    assert abs(part - 10 / 1.02) < 0.02
    assert "estimated: 10 GiB (9 GiB to 12 GiB)" in page
    assert "dashed line: memory of the GPU, 20 GiB" in page
    assert ">1</b>weights 8 GiB</li>" in page
    assert ">2</b>activations 2 GiB</li>" in page


def test_a_correction_below_nothing_is_listed_and_not_drawn():
    """The total is said as it is; no rectangle has a negative width."""
    page = drawn(StackedBar(name="e", parts={"a": 5, "learned": -1}, whole=4))
    assert len(widths(page)) == 1
    assert "e: 4 GiB" in page
    assert "learned -1 GiB" in page


def test_names_from_outside_are_escaped_and_nothing_is_drawn_of_nothing():
    """A part may be named after a task of the user's."""
    page = drawn(StackedBar(name="<b>", parts={"<script>": 1}))
    assert "<script>" not in page
    assert "<b>:" not in page
    assert bar_chart("x", [], show=shown) == []
    assert bar_chart("x", [StackedBar(name="a", parts={})], show=shown) == []


def test_a_limit_far_away_leaves_the_bars_long_enough_to_read():
    """Ten times as much is said and not drawn."""
    page = drawn(StackedBar(name="e", parts={"a": 2}), limit=("free", 20))
    assert "far beyond the picture: free, 20 GiB" in page
    assert 'class="limit"' not in page
    assert widths(page)[0] > 90
