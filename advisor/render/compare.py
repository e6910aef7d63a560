"""Base against tuned, side by side: what a person looks at first after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_SAMPLES = 5
SIDE_BY_SIDE_COLUMNS = 76  # below this the answers stand one under the other


def samples_of(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The sample answers of the last stage that has some, from run.json."""
    for stage in reversed(record.get("stages") or []):
        samples = (stage.get("evaluation") or {}).get("samples")
        if samples:
            return list(samples)[:SHOWN_SAMPLES]
    return []


def print_samples(record: Mapping[str, Any], console: Console) -> None:
    """Print each held-out question with the base model's and the tuned model's answer."""
    from rich.table import Table
    from rich.text import Text

    for number, sample in enumerate(samples_of(record), 1):
        console.print()
        console.print(
            Text(
                f"Question {number} (not trained on): {str(sample['prompt']).strip()}", style="bold"
            )
        )
        if console.width >= SIDE_BY_SIDE_COLUMNS:
            table = Table(expand=True, show_lines=False)
            table.add_column("before", ratio=1, overflow="fold")
            table.add_column("after", ratio=1, overflow="fold")
            table.add_row(Text(str(sample["base"]).strip()), Text(str(sample["tuned"]).strip()))
            console.print(table)
        else:
            for name, key in (("before", "base"), ("after", "tuned")):
                console.print(Text(f"  {name}: {str(sample[key]).strip()}"))
