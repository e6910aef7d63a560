"""Lengths in tokens: counted or approximated, as percentiles, and what a sequence length would cut
and leave empty.

Lengths are kept as counts per length, so that memory does not grow with the file.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct, field

from advisor.data.checks import RandomSample
from advisor.data.example import Example, parts_of, tools_text
from advisor.ground.types import TokenStats

TOKENIZED_ROWS = 1000  # rows a tokenizer counts when `full` is not asked for
CHARS_PER_TOKEN = 4
APPROXIMATION = "characters / 4 (approximation; letters outside ASCII count by their UTF-8 bytes)"
HISTOGRAM_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SEQUENCE_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SHOWN_LENGTHS = 5

CountTokens = Callable[[str], int]


class Lengths(Struct):
    """How long rows, requests and answers are.

    A pair is as long as the longer of its two sequences, since that must fit.
    """

    count_tokens: CountTokens | None = None
    full: bool = False
    rows: Counter[int] = field(default_factory=Counter)  # tokens -> how many rows
    requests: Counter[int] = field(default_factory=Counter)  # of rows with a request and an answer
    answers: Counter[int] = field(default_factory=Counter)
    seen: int = 0
    measured: int = 0
    processed: int = 0  # tokens measured; of a pair both sequences, as a trainer reads them
    longest: int = 0  # counted beside the sample: rows that seemed longer than all before them
    _sample: RandomSample[tuple[int, int, int]] = field(
        default_factory=lambda: RandomSample(TOKENIZED_ROWS)
    )
    _guessed: int = 0

    def add(self, example: Example, request_bytes: int, answer_bytes: Sequence[int] = ()) -> int:
        """Notes one row: its request, and its answer or the two of a pair.

        Returns the row's length.
        """
        self.seen += 1
        if self.count_tokens is not None and self.full:
            counted = self._counted(example)
            self._note(*counted)
            return counted[1]
        longest, *shorter = sorted(answer_bytes, reverse=True) or [0]
        length = _tokens(request_bytes + longest)
        if self.count_tokens is None:
            has_second = shorter and answer_bytes[1]
            second = _tokens(request_bytes + shorter[0]) if has_second else 0
            self._note(_tokens(request_bytes), length, second)
            return length
        self._sample.offer(lambda: self._counted(example))
        if length > self._guessed:
            self._guessed = length
            self.longest = max(self.longest, self._counted(example)[1])
        return length

    def _note(self, request: int, length: int, second: int) -> None:
        self.rows[length] += 1
        self.measured += 1
        self.processed += length + second
        if request:
            self.requests[request] += 1
            self.answers[length - request] += 1

    def _counted(self, example: Example) -> tuple[int, int, int]:
        """Tokens of the request, of the row, and of a pair's shorter sequence."""
        count = self.count_tokens
        assert count is not None
        if example.text is not None and example.label is None:
            return 0, count(example.text), 0
        rendered = getattr(count, "rendered", lambda _example: None)
        request, *whole = rendered(example) or sequences(example)
        longest, *shorter = sorted(map(count, whole), reverse=True)
        before = count(request) if request else 0
        return min(before, longest), longest, shorter[0] if shorter else 0

    def stats(self, rows_in_all: int | None = None) -> TokenStats | None:
        """Percentiles of the lengths noted, once all rows are seen; total and mean are of all
        tokens a trainer reads.

        Args:
            rows_in_all: Rows of the whole file, if it was read in part.
        """
        for counted in self._sample.kept:
            self._note(*counted)
        if not self.measured:
            return None
        in_part = rows_in_all is not None or self.measured < self.seen
        rows = self.seen if rows_in_all is None else rows_in_all
        ordered = sorted(self.rows.items())
        mean = self.processed / self.measured
        counted_by = APPROXIMATION
        if self.count_tokens is not None:
            counted_by = getattr(self.count_tokens, "name", "the model's tokenizer")
        asked = _total(self.requests.items()) / self.measured
        return TokenStats(
            total=round(mean * rows) if in_part else self.processed,
            mean=round(mean, 1),
            p50=percentile(ordered, 50),
            p90=percentile(ordered, 90),
            p95=percentile(ordered, 95),
            p99=percentile(ordered, 99),
            longest=max(self.longest, ordered[-1][0]),
            counted_by=counted_by,
            sampled_rows=self.measured if in_part else None,
            histogram=_histogram(ordered),
            request_mean=round(asked, 1) if self.requests else None,
        )

    def error_of_mean(self) -> float:
        """Half of the 95 % interval of the mean, as a share of it (normal approximation)."""
        measured = self.measured
        mean = _total(self.rows.items()) / measured
        if measured < 2 or not mean:
            return 0.0
        squares = sum(count * (length - mean) ** 2 for length, count in self.rows.items())
        return 1.96 * math.sqrt(squares / (measured - 1) / measured) / mean

    def measures(self, tokens: TokenStats | None, kind: str, seq_len: int | None) -> dict[str, Any]:
        """What was counted, as JSON types.

        Args:
            seq_len: A length to answer for beside the usual ones.
        """
        measures: dict[str, Any] = {}
        for name, counts in (("request_tokens", self.requests), ("answer_tokens", self.answers)):
            if ordered := sorted(counts.items()):
                measures[name] = {
                    "p50": percentile(ordered, 50),
                    "p95": percentile(ordered, 95),
                    "longest": ordered[-1][0],
                }
        if tokens is not None:
            kept = tokens.kept_whole().tokens
            longer = sum(count for length, count in self.rows.items() if length > kept)
            measures["longer_rows"] = {"than_tokens": kept, "rows": longer, "of": self.measured}
        measures["sequence_lengths"] = self.cuts(kind, also=seq_len)
        return measures

    def cuts(self, kind: str, *, also: int | None = None) -> list[dict[str, Any]]:
        """What each usual sequence length would do to the rows measured, shortest first, up to the
        first that cuts nothing.

        `rows_over` are longer than it, `tokens_cut` is the share of all tokens behind it,
        `answers_lost` counts rows whose request alone fills it, so that nothing is left to learn.
        `padding` is the share of a batch of single rows that is empty, and `packed_sequences` how
        many sequences hold the same tokens when rows are laid end to end.

        Args:
            also: A length to answer for beside the usual ones.
        """
        if not self.measured:
            return []
        most = 2 * max(max(self.rows), SEQUENCE_LENGTHS[0])
        asked = {also} if also else set()
        usual = {edge for edge in SEQUENCE_LENGTHS if edge < most}
        wanted = asked | {*sorted(usual | asked)[-SHOWN_LENGTHS:]}
        total = _total(self.rows.items())
        table = []
        for edge in sorted(wanted):
            over = [(length - edge, count) for length, count in self.rows.items() if length > edge]
            rows_over = sum(count for _, count in over)
            behind = _total(over)
            cut = 0 if kind == "raw_text" else behind
            table.append(
                {
                    "seq_len": edge,
                    "rows_over": rows_over,
                    "rows_over_share": round(rows_over / self.measured, 4),
                    "tokens_cut_share": round(cut / max(1, total), 4),
                    "answers_lost": sum(
                        count for length, count in self.requests.items() if length >= edge
                    ),
                    "padding": round(1 - (total - behind) / (edge * self.measured), 3),
                    "packed_sequences": math.ceil((total - cut) / edge),
                }
            )
        return table


def _tokens(size_bytes: int) -> int:
    """About how many tokens so many bytes are."""
    return -(-size_bytes // CHARS_PER_TOKEN)


def _total(counted: Iterable[tuple[int, int]]) -> int:
    """The tokens of rows counted by length."""
    return sum(length * count for length, count in counted)


def sequences(example: Example) -> tuple[str, ...]:
    """The request, then each whole sequence: one, or the two of a pair.

    Without a chat template's words, but with the functions that are declared and called.
    """
    asked, answers = parts_of(example)
    if example.tools:
        asked = [tools_text(example.tools), *asked]
    return "\n".join(asked), *("\n".join([*asked, *answer]) for answer in answers or [[]])


def percentile(ordered: list[tuple[int, int]], percent: int) -> int:
    """The smallest length that at least `percent` of the rows do not exceed (nearest rank)."""
    wanted = math.ceil(percent * sum(count for _, count in ordered) / 100)
    upto = 0
    for length, count in ordered:
        upto += count
        if upto >= wanted:
            return length
    return ordered[-1][0]


def _histogram(ordered: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(longest of the bin, rows in it), from the first to the last bin that holds a row."""
    edges = [*HISTOGRAM_TOKENS]
    while edges[-1] < ordered[-1][0]:
        edges.append(edges[-1] * 2)
    bins: Counter[int] = Counter()
    for length, count in ordered:
        bins[bisect_left(edges, length)] += count
    return tuple((edges[place], bins[place]) for place in range(min(bins), max(bins) + 1))
