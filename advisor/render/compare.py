"""Base against tuned, side by side: what a person looks at first after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from advisor.plan.record import DryRunRecord, RunRecord, Sample

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_SAMPLES = 5
SIDE_BY_SIDE_COLUMNS = 76  # on a narrower screen the answers are printed below each other


def samples_of(record: RunRecord | DryRunRecord) -> Sequence[Sample]:
    """The sample answers of the last stage that has some; a dry run has none."""
    if isinstance(record, DryRunRecord):
        return ()
    for stage in reversed(record.stages):
        if stage.evaluation and stage.evaluation.samples:
            return stage.evaluation.samples[:SHOWN_SAMPLES]
    return ()


def print_samples(record: RunRecord | DryRunRecord, console: Console) -> None:
    """Print each held-out question with the base model's and the tuned model's answer."""
    from rich.table import Table
    from rich.text import Text

    for number, sample in enumerate(samples_of(record), 1):
        base, tuned = (sample.base or "").strip(), (sample.tuned or "").strip()
        console.print()
        console.print(
            Text(f"Question {number} (not trained on): {sample.prompt.strip()}", style="bold")
        )
        if console.width >= SIDE_BY_SIDE_COLUMNS:
            table = Table(expand=True, show_lines=False)
            table.add_column("before", ratio=1, overflow="fold")
            table.add_column("after", ratio=1, overflow="fold")
            table.add_row(Text(base), Text(tuned))
            console.print(table)
        else:
            for name, answer in (("before", base), ("after", tuned)):
                console.print(Text(f"  {name}: {answer}"))
