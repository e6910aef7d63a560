"""Answers marked good and bad: whether both are there, and the better ones are only longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, finding
from advisor.data.example import said
from advisor.ground.types import DataFinding

FEWEST_PAIRS = 20
LONGER_SHARE = 0.7


class BetterAndWorse(RowCheck):
    """Answers of each side."""

    place = 90

    def see(self, row: SeenRow) -> None:
        example = row.example
        if example.good is not None:
            self.counts["good" if example.good else "bad"] += 1
        if self.about.kind == "preference":
            chosen, rejected = (
                sum(len(said(turn)) for turn in side) for side in (example.chosen, example.rejected)
            )
            self.counts["chosen_longer"] += chosen > rejected
            self.counts["rejected_longer"] += rejected > chosen

    def findings(self) -> Iterator[DataFinding]:
        longer = self.counts["chosen_longer"]
        decided = longer + self.counts["rejected_longer"]
        if decided >= FEWEST_PAIRS and longer >= LONGER_SHARE * decided:
            text = (
                f"the chosen answer is the longer one in {longer / decided:.0%} of the pairs: the"
                " model may learn length"
            )
            yield finding("chosen-is-longer", "note", text, longer)
            return
        missing = next((name for name in ("good", "bad") if not self.counts[name]), None)
        if self.about.kind == "unpaired_feedback" and self.about.rows and missing:
            text = f"no answer is marked {missing}: learning from feedback needs both"
            yield finding("one-sided-feedback", "error", text, self.about.rows, ("kto",))

    def measures(self) -> dict[str, Any]:
        if self.about.kind == "unpaired_feedback":
            return {"feedback": {name: self.counts[name] for name in ("good", "bad")}}
        if self.about.kind == "preference":
            longer = ("chosen_longer", "rejected_longer")
            return {"pairs": {name: self.counts[name] for name in longer}}
        return {}
