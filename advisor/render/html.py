"""A report as one HTML file to forward: no network, no script, readable on a phone, in print, in
light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from advisor.ground.install import as_called
from advisor.ground.terminal import shown
from advisor.render.blocks import Block, Item, Items, Row, Table, Text

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
dl { display: grid; grid-template-columns: 5.5rem 1fr; gap: .3rem 1rem; margin: 1rem 0; }
dt { color: var(--quiet); font-weight: 600; grid-column: 1; }
dd { margin: 0; grid-column: 2; }
li pre { margin: .3rem 0; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
li { margin: .35rem 0; }
.quiet { color: var(--quiet); font-size: .9rem; display: block; }
.warning { color: var(--warn); }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-size: .85rem; overflow-wrap: normal; }
td:first-child, th:first-child { min-width: 8rem; overflow-wrap: break-word; }
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


def document(
    title: str, heading: str, body: Iterable[str], *, footer: str = "", style: str = ""
) -> str:
    """A whole HTML file; `title` and `footer` are plain text, `heading` and `body` are HTML."""
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
        body = "".join(
            f'<td data-column="{text(column)}">{text(cell)}</td>'
            for column, cell in zip(part.columns, row.cells, strict=True)
        )
        rows.append(f"<tr>{body}</tr>")
    return (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>"
    )


def text(plain: str, *, keep_lines: bool = False) -> str:
    """Escaped text; control characters, which HTML forbids, as their escapes."""
    safe = shown(as_called(plain))
    return escape(safe if keep_lines else safe.replace("\n", "\\n"), quote=True)


def section(title: str, *parts: str) -> list[str]:
    """A section of the page; nothing where all its parts are empty."""
    kept = [part for part in parts if part]
    return ["<section>", f"<h2>{text(title)}</h2>", *kept, "</section>"] if kept else []


def items(lines: Iterable[str | Item]) -> str:
    """A list; \'\' without lines."""
    shown = tuple(line if isinstance(line, Item) else Item(text=line) for line in lines)
    return block(Items(items=shown)) if shown else ""


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; \'\' without rows."""
    listed = tuple(Row(cells=tuple(row)) for row in rows)
    return (
        block(Table(columns=tuple(columns), rows=listed, fixed=(False,) * len(columns)))
        if listed
        else ""
    )


def number(value: float | None) -> str:
    """Four significant digits; '' where it is not known."""
    return "" if value is None else f"{value:.4g}"


def interval_words(found: Sequence[float | None] | None) -> str:
    """'-2.2 to -1.8'; '' where it is not known."""
    low, high = found if found is not None and len(found) == 2 else (None, None)
    return f"{low:+.3g} to {high:+.3g}" if low is not None and high is not None else ""
