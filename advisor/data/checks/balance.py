"""Answers marked good and bad: whether there are both, and whether the better ones are only
longer.
"""

from __future__ import annotations

from typing import Any

from advisor.data.chat_text import said
from advisor.data.checks import About, Check, Row, finding
from advisor.ground.types import Finding

FEWEST_PAIRS = 20
LONGER_SHARE = 0.7


class Seen(Check):
    """Answers of each side."""

    place = 90

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.good = self.bad = 0
        self.longer_chosen = self.longer_rejected = 0

    def see(self, row: Row) -> None:
        example = row.example
        if example.good is not None:
            self.good += example.good
            self.bad += not example.good
        if self.about.kind == "preference":
            chosen, rejected = (
                sum(len(said(turn)) for turn in side) for side in (example.chosen, example.rejected)
            )
            self.longer_chosen += chosen > rejected
            self.longer_rejected += rejected > chosen

    def findings(self, rows: int) -> list[Finding]:
        decided = self.longer_chosen + self.longer_rejected
        if decided >= FEWEST_PAIRS and self.longer_chosen >= LONGER_SHARE * decided:
            text = (
                f"the chosen answer is the longer one in {self.longer_chosen / decided:.0%} of the"
                " pairs: the model may learn length"
            )
            return [finding("chosen-is-longer", "note", text, self.longer_chosen)]
        if self.about.kind == "unpaired_feedback" and rows and rows in (self.good, self.bad):
            missing = "bad" if self.good else "good"
            text = f"no answer is marked {missing}: learning from feedback needs both"
            return [finding("one-sided-feedback", "error", text, rows, blocks=("kto",))]
        return []

    def measures(self) -> dict[str, Any]:
        if self.about.kind == "unpaired_feedback":
            return {"feedback": {"good": self.good, "bad": self.bad}}
        if self.about.kind == "preference":
            longer = {"chosen_longer": self.longer_chosen, "rejected_longer": self.longer_rejected}
            return {"pairs": longer}
        return {}
