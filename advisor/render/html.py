"""Advice as one HTML file to forward: no network, no script, readable on a phone, in print, in
light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from advisor.advice.types import Advice
from advisor.render.answer.first import MEMORY, First
from advisor.render.answer.page import page_of
from advisor.render.blocks import Block, Item, Items, Table, Text
from advisor.render.markup import text
from advisor.render.memory_bar import STYLE as MEMORY_STYLE
from advisor.render.memory_bar import memory_bar

# A browser that honours this loads nothing and runs nothing, whatever a model name or a data path
# contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CODE = re.compile(r"`([^`]+)`")
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --quiet: #56606b; --line: #d5dae0;
  --paper: #ffffff; --soft: #f3f5f7; --mark: #0b6e4f; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --quiet: #a3adb8; --line: #3a434d; --paper: #15191d; --soft: #1f252b;
  --mark: #59c59c; --warn: #f0b261; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 52rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--quiet); margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .9em; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: .75rem;
  white-space: pre-wrap; }
.answer { background: var(--soft); border-left: 4px solid var(--mark); padding: .25rem 1rem;
  border-radius: 0 6px 6px 0; }
.answer p { margin: .6rem 0; font-size: 1.1rem; }
dl { display: grid; grid-template-columns: 5.5rem 1fr; gap: .3rem 1rem; margin: 1rem 0; }
dt { color: var(--quiet); font-weight: 600; grid-column: 1; }
dd { margin: 0; grid-column: 2; }
.step p { margin: .8rem 0 .3rem; }
.step pre, li pre { margin: .3rem 0; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
li { margin: .35rem 0; }
.quiet { color: var(--quiet); font-size: .9rem; display: block; }
.warning { color: var(--warn); }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-size: .85rem; overflow-wrap: normal; }
td:first-child, th:first-child { min-width: 8rem; overflow-wrap: break-word; }
td.fixed { white-space: nowrap; letter-spacing: .05em; }
tr.chosen { background: var(--soft); }
tr.chosen td:first-child { font-weight: 600; box-shadow: inset 4px 0 0 var(--mark); }
footer { margin-top: 2.5rem; color: var(--quiet); font-size: .85rem; }
@media (max-width: 36rem) {
  dl { display: block; }
  dt { margin-top: .6rem; }
  table, tbody, tr, td { display: block; }
  thead { display: none; }
  tr { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
  td { border: 0; padding: .2rem .75rem; }
  td:first-child { font-weight: 600; padding-top: .5rem; }
  td::before { content: attr(data-column) " "; color: var(--quiet); font-size: .85rem; }
  td:first-child::before { content: ""; }
}
@media print { body { font-size: 11pt; } main { max-width: none; padding: 0; }
h2 { break-after: avoid; } tr, li { break-inside: avoid; } }
"""


def advice_page(advice: Advice, *, plan_text: str | None = None) -> str:
    """The whole page as text. Everything that came from outside (names, paths, rules) is escaped.

    `plan_text` is the launch file to show at the end; None leaves that part out.
    """
    page = page_of(advice)
    body = [
        *_first(advice, page.first),
        *(
            line
            for section in page.sections
            for line in (
                f"<section><h2>{text(section.title)}</h2>",
                *map(block, section.blocks),
                "</section>",
            )
        ),
        *(_plan(plan_text) if plan_text is not None else ()),
    ]
    about = page.composition if advice.fits else "nothing fits"
    title = f"Fine-tuning advice: {about}"
    return document(
        title,
        f"Fine-tuning advice: <code>{text(about)}</code>",
        body,
        footer=page.in_short,
        style=MEMORY_STYLE,
    )


def document(
    title: str, heading: str, body: Iterable[str], *, footer: str = "", style: str = ""
) -> str:
    """A whole HTML file of ready-made parts; `title` and `footer` are plain text, `heading` and
    `body` are HTML.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{text(title)}</title>",
        f"<style>{STYLE}{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{heading}</h1>",
        *body,
        f"<footer>{text(footer)}</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _first(advice: Advice, first: First) -> list[str]:
    """What is seen first, as on a terminal, with the memory as a bar."""
    lines = ['<div class="answer">', f"<p>{marked(first.answer)}</p>", "</div>", "<dl>"]
    for part in first.parts:
        lines.append(f"<dt>{text(part.label)}</dt>")
        lines += [f'<dd class="{text(item.tone)}">{marked(item.text)}</dd>' for item in part.items]
        if part.label == MEMORY:
            lines += ["<dd>", *memory_bar(advice), "</dd>"]
    lines.append("</dl>")
    for step in first.steps:
        commands = "".join(f"<pre>{text(command)}</pre>" for command in step.commands)
        lines.append(f'<div class="step"><p>{marked(step.text)}</p>{commands}</div>')
    return lines


def _plan(plan_text: str) -> list[str]:
    # The editor's modeline names a folder of this computer: of no use to whoever the page is
    # forwarded to.
    plan_text = "".join(
        line
        for line in plan_text.splitlines(keepends=True)
        if not line.startswith("# yaml-language-server:")
    )
    return [
        "<section><h2>The plan</h2>",
        "<p>Save this as <code>plan.yaml</code> and run <code>advise run plan.yaml</code>.</p>",
        f"<pre>{text(plan_text, keep_lines=True)}</pre>",
        "</section>",
    ]


def block(part: Block) -> str:
    """One block of a page as HTML."""
    if isinstance(part, Text):
        return f'<p class="{text(part.tone)}">{marked(part.text)}</p>'
    if isinstance(part, Items):
        return "\n".join(["<ul>", *(_item(item) for item in part.items), "</ul>"])
    return table(part)


def _item(item: Item) -> str:
    quiet = f'<span class="quiet">{marked(item.detail)}</span>' if item.detail else ""
    commands = "".join(f"<pre>{text(command)}</pre>" for command in item.commands)
    return f'<li class="{text(item.tone)}">{marked(item.text)}{quiet}{commands}</li>'


def marked(plain: str) -> str:
    """Escaped text with what stands between backticks as code."""
    return CODE.sub(r"<code>\1</code>", text(plain))


def table(part: Table) -> str:
    """A table as HTML."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in part.columns)
    rows = []
    for row in part.rows:
        cells = zip(part.columns, row.cells, part.fixed, strict=True)
        body = "".join(
            f'<td data-column="{text(column)}"{" class=fixed" if fixed else ""}>{text(cell)}</td>'
            for column, cell, fixed in cells
        )
        rows.append(f"<tr{' class=chosen' if row.chosen else ''}>{body}</tr>")
    return (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>"
    )
