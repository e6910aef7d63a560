"""Blocks of a page as HTML: what they hold is text."""

from __future__ import annotations

from advisor.render.blocks import Item, Items, Row, Table
from advisor.render.html import block, document, marked

HOSTILE = "<script>alert(1)</script>"


def test_code_is_marked_and_escaped():
    """What stands between backticks is code; what it holds is still text."""
    assert marked("say `--gpu <b>` now") == "say <code>--gpu &lt;b&gt;</code> now"


def test_text_from_outside_is_shown_not_run():
    """A name or a path that holds markup appears as the characters it is made of."""
    parts = [
        block(Items(items=(Item(text=HOSTILE, detail=HOSTILE, commands=(HOSTILE,)),))),
        block(Table(columns=(HOSTILE,), rows=(Row(cells=(HOSTILE,)),), fixed=(False,))),
    ]
    page = document(HOSTILE, "Report", parts, footer=f"{HOSTILE} \x1b[2J")
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 8
    assert "\x1b" not in page
