"""The page to forward: self-contained, safe, and as complete as the terminal's."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest

from advisor.render.answer.page import page_of
from advisor.render.blocks import Items, Text
from advisor.render.html import advice_page, marked
from tests.render.example_advice import EXAMPLES, injected, scenario_3, scenario_5

VOID = {"meta", "br", "link", "img"}


class _Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text: str) -> _Page:
    """The page as a browser would take it apart."""
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize("name", [*EXAMPLES, "injected"])
def test_a_page_needs_nothing_but_itself(name):
    """No script, no address to load from, no event handler: one file that can be forwarded."""
    page = parsed(advice_page({**EXAMPLES, "injected": injected}[name](), plan_text="version: 1\n"))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form"}
    assert not [
        name
        for name, _ in page.attributes
        if name in ("src", "href", "srcset", "action") or name.startswith("on")
    ]


def test_text_from_outside_is_shown_not_run():
    """A model name, a path or a rule that holds markup appears as the characters it is made of."""
    text = advice_page(injected(), plan_text="model: '<script>alert(2)</script>'\n")
    assert "<script" not in text.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in text
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_says_all_that_the_terminal_says(name):
    """Sentences, reasons, tables and lists of the shared page are all there."""
    advice = EXAMPLES[name]()
    text = re.sub(r"\s+", " ", parsed(advice_page(advice)).text).replace("`", "")
    page = page_of(advice)
    wanted = [page.first.answer, *(section.title for section in page.sections)]
    wanted += [item.text for part in page.first.parts for item in part.items]
    wanted += [part.label for part in page.first.parts]
    wanted += [line for step in page.first.steps for line in (step.text, *step.commands)]
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Text):
                wanted.append(block.text)
            elif isinstance(block, Items):
                wanted += [part for item in block.items for part in (item.text, item.detail)]
            else:
                wanted += [*block.columns, *(cell for row in block.rows for cell in row.cells)]
    assert len(wanted) > 20
    for part in wanted:
        assert re.sub(r"\s+", " ", part).replace("`", "") in text


def test_the_plan_keeps_its_lines():
    """The launch file on the page can be copied as it is."""
    plan = "version: 1\nstages:\n  - name: sft  # first & only\n"
    page = advice_page(scenario_5(), plan_text=plan)
    shown = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert html.unescape(shown[-1]) == plan  # after the lines to type


def test_without_a_plan_there_is_no_plan_section():
    """A remedy alone, or a plan that lacks something, leaves the section out."""
    assert "The plan" not in advice_page(scenario_5())


def test_the_page_names_no_folder_of_the_one_who_made_it():
    """The editor's modeline, which holds a local path, stays out of the page that is forwarded."""
    text = advice_page(
        scenario_5(),
        plan_text="# yaml-language-server: $schema=file:///home/me/plan.schema.json\nversion: 1\n",
    )
    assert "/home/me" not in text
    assert "<pre>version: 1\n</pre>" in text


def test_memory_is_a_bar_whose_parts_are_named():
    """Each part has its number and its size in text, and they add up to what the line says."""
    text = advice_page(scenario_5())
    bar = text[text.index('<div class="memory">') : text.index("</ol>")]
    sizes = re.findall(r"<b>\d</b> [\w ]+ ([\d.]+) GiB", bar)
    assert sum(map(float, sizes)) == pytest.approx(9.1)
    assert 'aria-label="Memory: 9.1 GiB (8.2 GiB to 10.0 GiB)' in bar
    assert "<b>empty</b> free 14.9 GiB" in bar
    shares = re.findall(r'<span style="width:([\d.]+)%"', bar)
    assert sum(map(float, shares)) == pytest.approx(9.1 / 24 * 100, abs=0.1)


def test_a_bar_that_is_too_long_shows_where_the_memory_ends():
    """Nothing is cut off: the limit is a line in the bar, said in words."""
    text = advice_page(scenario_3())  # its band ends above the memory
    assert "<b>dashed line</b> all there is: 22.5 GiB" in text


def test_code_is_marked_and_escaped():
    """What stands between backticks is code; what it holds is still text."""
    assert marked("say `--gpu <b>` now") == "say <code>--gpu &lt;b&gt;</code> now"
