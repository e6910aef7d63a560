"""How many rows show something, and the first of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from advisor.data.examples import rows_words
from advisor.ground.types import Finding

SHOWN_ROWS = 20


@dataclass(slots=True)
class Tally:
    """How many rows show something, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)

    def finding(self, id: str, severity: str, text: str, blocks: tuple[str, ...] = ()) -> Finding:
        """The finding with its rows named in the text."""
        assert severity in ("error", "warning", "note")
        shown = f"{text} ({rows_words(self.rows, self.count)})" if self.rows else text
        return Finding(
            id=id,
            severity=severity,  # type: ignore[arg-type]
            text=shown,
            count=self.count,
            rows=tuple(self.rows),
            blocks=blocks,
        )
