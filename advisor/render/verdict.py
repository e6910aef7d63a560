"""The lines of a verdict, as every screen shows them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from advisor.ground.terminal import shown
from advisor.record.judge import folder_verdict
from advisor.record.run import RunRecord
from advisor.record.verdict import Verdict

LABEL_WIDTH = 9  # at least
OF_THE_STATE = {
    "done": "done; nothing was compared",
    "failed": "the run failed",
    "stopped": "the run is not finished",
    "running": "the run is going on",
}


def verdict_of(record: RunRecord, folder: Path) -> Verdict | None:
    """The verdict on a run, with commands that can be typed from here.

    An unfinished run has none, whatever its finished stages came to.
    """
    if record.status != "done":
        return None
    return folder_verdict(folder, record) or record.verdict


def verdict_lines(record: RunRecord, folder: Path, *, width: int = 80) -> list[str]:
    """'  Task     better: held-out loss ...', wrapped; the next command on a whole line."""
    found = verdict_of(record, folder)
    if found is None:
        return []
    lines = []
    column = max(LABEL_WIDTH, *(len(about) + 1 for about, _ in found.lines()))
    for about, said in found.lines():
        label = f"  {about.capitalize():<{column}}"
        lines += textwrap.wrap(
            shown(said),
            width=max(40, width),
            initial_indent=label,
            subsequent_indent=" " * len(label),
            break_long_words=False,
            break_on_hyphens=False,
        )
    if found.next is not None and found.next.command:
        lines.append(f"    {shown(found.next.command)}")
    return lines
