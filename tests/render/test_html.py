"""Blocks of a page as HTML: what they hold is text."""

from __future__ import annotations

from advisor.render.blocks import Item, Items, PageTable, Section
from advisor.render.markup import html_templates, render_html
from advisor.render.report import ToPaste

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
    page = render_html("report.html", {
        "name": HOSTILE, "state": HOSTILE, "is_bad": False, "verdict": (), "command": None,
        "max_steps": None, "sections": (section,), "plan_text": HOSTILE, "versions": section,
        "made_with": f"{HOSTILE} \x1b[2J",
    })  # fmt: skip
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 23
    assert "\x1b" not in page
