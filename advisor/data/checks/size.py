"""Whether there are more than a few rows, and which are too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from advisor.data.checks import RowCheck, SeenRow, finding, findings_of
from advisor.ground.types import DataFinding

# OpenAI's guide sees gains from 50 to 100 examples; runs on 10 and 25 rows are documented failures
FEW_ROWS = 50
LONG_TOKENS = 8192
# of the rows over the length asked about: more stop a run (plan key `truncation`)
STOP_SHARE = 0.05
LOST = ": cut to fit, nothing of their answers is left to learn"


class RowLengths(RowCheck):
    """Rows, and requests alone, that are very long or over the length asked about."""

    place = 50
    says: ClassVar = {
        "very-long-rows": ("warning", f"{{rows}} longer than about {LONG_TOKENS:,} tokens"),
        "very-long-requests": (
            "warning",
            f"{{rows}} whose request alone is longer than about {LONG_TOKENS:,} tokens{LOST}",
        ),
    }

    def see(self, row: SeenRow) -> None:
        is_document, limit = self.about.kind == "raw_text", self.about.seq_len
        if row.tokens > LONG_TOKENS and not is_document:
            self.tallies["very-long-rows"].add(row.number)
            if row.request_tokens > LONG_TOKENS:
                self.tallies["very-long-requests"].add(row.number)
        if limit is not None and row.tokens > limit:
            self.tallies["texts-over-length" if is_document else "rows-over-length"].add(row.number)
            if row.request_tokens >= limit:
                self.tallies["requests-fill-the-length"].add(row.number)

    def findings(self) -> Iterator[DataFinding]:
        yield from super().findings()
        about, limit, rows = self.about, self.about.seq_len or 0, self.about.rows
        if 0 < rows < FEW_ROWS and about.kind != "raw_text":
            text = (
                f"only {rows} usable row{'s' if rows > 1 else ''}; {FEW_ROWS} to 100 good ones"
                " are where gains begin"
            )
            yield finding("few-rows", "warning", text, rows)
        names = ("texts-over-length", "rows-over-length", "requests-fill-the-length")
        texts, over, lost = (self.tallies[name] for name in names)
        longer, nearly = f"are longer than {limit:,} tokens", "" if about.exact else "about "
        text = f"{nearly}{texts.count:,} of {rows:,} texts {longer}: they are cut into pieces"
        yield from findings_of(texts, names[0], "note", f"{text}, nothing is lost")
        share = over.count / max(1, rows)
        what = (
            "a run stops at them unless `truncation` says drop or truncate"
            if share > STOP_SHARE
            else "left out of the training, or cut with truncation: truncate"
        )
        text = f"{nearly}{over.count:,} of {rows:,} rows ({share:.1%}) {longer}: {what}"
        yield from findings_of(over, names[1], "warning", text)
        text = f"{nearly}{lost.in_words} whose request alone fills {limit:,} tokens{LOST}"
        yield from findings_of(lost, names[2], "warning", text)
