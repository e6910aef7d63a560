"""A cleaned copy of a data file as JSON and as a page: how many rows it has, and what was
changed.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from advisor.data.fix import Fixed

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


def fixed_json(fixed: Fixed) -> dict[str, Any]:
    """What was written and changed; the file of changes holds every single one."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": fixed.path,
        "out": fixed.out,
        "changes_path": fixed.changes_path,
        "rows_before": fixed.rows_before,
        "rows_after": fixed.rows_after,
        "changes": [
            {"change": what, "count": count, "rows": list(fixed.rows[what])}
            for what, count in fixed.counts.items()
        ],
    }


def print_fixed(fixed: Fixed, console: Console) -> None:
    """Print where the copy is, and a line for each kind of change with its first rows."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print(
        Text.assemble(
            (fixed.out, "bold"),
            f": {fixed.rows_after:,} of {fixed.rows_before:,} rows; {fixed.path} is as it was",
        )
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for what, count in sorted(fixed.counts.items(), key=lambda item: -item[1]):
        rows = fixed.rows[what]
        named = ", ".join(map(str, rows[:8])) + (", ..." if count > 8 else "")
        table.add_row(f"{count:,}", Text(f"{what} (row{'s' if count > 1 else ''} {named})"))
    if not fixed.counts:
        console.print(Padding(Text("nothing had to be changed"), (0, 0, 0, 2)))
    else:
        console.print(Padding(table, (0, 0, 0, 2)))
    console.print(
        Text(
            f"every change: {fixed.changes_path}; then: advise check {shlex.quote(fixed.out)}",
            style="dim",
        )
    )
