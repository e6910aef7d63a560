"""Lengths in tokens: counted or approximated, as percentiles, and what a sequence length would cut
and leave empty.

Lengths are kept as counts per length, so that memory does not grow with the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.data.chat_text import said, tools_text
from advisor.data.same_rows import Example
from advisor.ground.types import TokenStats
from advisor.ground.whole_rows import rows_kept_whole

TOKENIZED_ROWS = 1000  # rows a tokenizer counts when `full` is not asked for
CHARS_PER_TOKEN = 4
APPROXIMATION = "characters / 4 (approximation; letters outside ASCII count by their UTF-8 bytes)"
HISTOGRAM_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SEQUENCE_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SHOWN_LENGTHS = 5

CountTokens = Callable[[str], int]


@dataclass(slots=True)
class Lengths:
    """How long rows, requests and answers are.

    The length of a pair is that of the longer of its two sequences, since that must fit.
    """

    count_tokens: CountTokens | None = None
    full: bool = False
    rows: dict[int, int] = field(default_factory=dict)  # tokens -> how many rows
    requests: dict[int, int] = field(
        default_factory=dict
    )  # where a row has a request and an answer
    answers: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    measured: int = 0
    processed: int = (
        0  # tokens of the rows measured; of a pair both sequences, as a trainer reads them
    )
    longest: int = 0  # counted beside the sample: rows that seemed longer than all before them
    _sampled: list[tuple[int, int, int]] = field(default_factory=list)
    _guessed: int = 0
    _state: int = 1

    def add(
        self, example: Example, request_bytes: int, answer_bytes: int, second_bytes: int = 0
    ) -> int:
        """Notes one row: its request, its answer and, of a pair, the other answer.

        Returns the row's length.
        """
        self.seen += 1
        if self.count_tokens is None or not self.full:
            request = -(-request_bytes // CHARS_PER_TOKEN)
            longer = answer_bytes if answer_bytes > second_bytes else second_bytes
            length = -(-(request_bytes + longer) // CHARS_PER_TOKEN)
            if self.count_tokens is not None:
                self._sample(example)
                if length > self._guessed:
                    self._guessed = length
                    self.longest = max(self.longest, self._counted(example)[1])
            else:
                second = (
                    -(-(request_bytes + min(answer_bytes, second_bytes)) // CHARS_PER_TOKEN)
                    if second_bytes
                    else 0
                )
                self._note(request, length, second)
            return length
        counted = self._counted(example)
        self._note(*counted)
        return counted[1]

    def _sample(self, example: Example) -> None:
        """A reservoir: every row has the same chance to be counted, the same rows every time."""
        if len(self._sampled) < TOKENIZED_ROWS:
            self._sampled.append(self._counted(example))
            return
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        place = (self._state >> 24) % self.seen
        if place < TOKENIZED_ROWS:
            self._sampled[place] = self._counted(example)

    def _note(self, request: int, length: int, second: int) -> None:
        self.rows[length] = self.rows.get(length, 0) + 1
        self.measured += 1
        self.processed += length + second
        if request:
            answer = length - request
            self.requests[request] = self.requests.get(request, 0) + 1
            self.answers[answer] = self.answers.get(answer, 0) + 1

    def _counted(self, example: Example) -> tuple[int, int, int]:
        """Tokens of the request, of the row, and of a pair's shorter sequence."""
        count = self.count_tokens
        assert count is not None
        if example.text is not None and example.label is None:
            return 0, count(example.text), 0
        rendered = getattr(count, "rendered", None)
        texts = rendered(example) if rendered is not None else None
        request, *whole = texts or sequences(example)
        lengths = sorted(count(text) for text in whole)
        before = count(request) if request else 0
        return min(before, lengths[-1]), lengths[-1], lengths[0] if len(lengths) > 1 else 0

    def settle(self) -> int | None:
        """Takes the sample over, once all rows are seen.

        Returns how many rows were sampled, None where all were counted.
        """
        if self.count_tokens is None or self.full:
            return None
        for triple in self._sampled:
            self._note(*triple)
        return self.measured if self.measured < self.seen else None


def sequences(example: Example) -> tuple[str, ...]:
    """The request, then each whole sequence: one, or the two of a pair.

    Without a chat template's words, but with the functions that are declared and called.
    """
    messages = example.messages
    tools = [tools_text(example.tools)] if example.tools else []
    if example.chosen:
        request = "\n".join([*tools, *map(said, messages)])
        return request, *(
            "\n".join([request, *map(said, side)]) for side in (example.chosen, example.rejected)
        )
    whole = "\n".join([*tools, *map(said, messages)])
    if messages and messages[-1].role != "assistant":  # a request alone
        return whole, whole
    return "\n".join([*tools, *map(said, messages[:-1])]), whole


def parts_of(example: Example) -> list[str]:
    """Every text of an example, the request's first."""
    if example.text is not None and example.label is None:
        return [example.text]
    return [
        message.content
        for group in (example.messages, example.chosen, example.rejected)
        for message in group
    ]


def token_stats(lengths: Lengths, *, rows: int, sampled_rows: int | None) -> TokenStats | None:
    """Percentiles of the lengths noted; total and mean are of all tokens a trainer reads.

    Args:
        rows: Rows of the whole file, for the total.
        sampled_rows: How many rows were measured, where it was not all of them.
    """
    if not lengths.measured:
        return None
    ordered = sorted(lengths.rows.items())
    mean = lengths.processed / lengths.measured
    return TokenStats(
        total=lengths.processed if sampled_rows is None else round(mean * rows),
        mean=round(mean, 1),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        longest=max(lengths.longest, ordered[-1][0]),
        counted_by=(
            APPROXIMATION
            if lengths.count_tokens is None
            else getattr(lengths.count_tokens, "name", "the model's tokenizer")
        ),
        sampled_rows=sampled_rows,
        histogram=_histogram(ordered),
        request_mean=(
            round(
                sum(length * count for length, count in lengths.requests.items())
                / lengths.measured,
                1,
            )
            if lengths.requests
            else None
        ),
    )


def percentile(ordered: list[tuple[int, int]], percent: int) -> int:
    """The smallest length that at least `percent` of the rows do not exceed (nearest rank)."""
    wanted = math.ceil(percent * sum(count for _, count in ordered) / 100)
    upto = 0
    for length, count in ordered:
        upto += count
        if upto >= wanted:
            return length
    return ordered[-1][0]


def error_of_mean(counts: Mapping[int, int]) -> float:
    """Half of the 95 % interval of the mean, as a share of it (normal approximation)."""
    measured = sum(counts.values())
    mean = sum(length * count for length, count in counts.items()) / measured
    if measured < 2 or not mean:
        return 0.0
    variance = sum(count * (length - mean) ** 2 for length, count in counts.items()) / (
        measured - 1
    )
    return 1.96 * math.sqrt(variance / measured) / mean


def _histogram(ordered: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(longest of the bin, rows in it), from the first to the last bin that holds a row."""
    edges = [*HISTOGRAM_TOKENS]
    while edges[-1] < ordered[-1][0]:
        edges.append(edges[-1] * 2)
    bins = dict.fromkeys(edges, 0)
    place = 0
    for length, count in ordered:
        while length > edges[place]:
            place += 1
        bins[edges[place]] += count
    filled = [index for index, edge in enumerate(edges) if bins[edge]]
    return tuple((edge, bins[edge]) for edge in edges[filled[0] : filled[-1] + 1])


def cuts(lengths: Lengths, kind: str, *, also: int | None = None) -> list[dict[str, Any]]:
    """What each usual sequence length would do to the rows measured, shortest first, up to the
    first that cuts nothing.

    `rows_over` are longer than it, `tokens_cut` is the share of all tokens behind it,
    `answers_lost` counts rows whose request alone fills it, so that nothing is left to learn.
    `padding` is the share of a batch of single rows that is empty, and `packed_sequences` how many
    sequences hold the same tokens when rows are laid end to end.

    Args:
        also: A length to answer for beside the usual ones.
    """
    ordered = sorted(lengths.rows.items())
    measured = sum(count for _, count in ordered)
    if not measured:
        return []
    longest, total = ordered[-1][0], sum(length * count for length, count in ordered)
    wanted = sorted(
        {
            *(edge for edge in SEQUENCE_LENGTHS if edge < 2 * max(longest, SEQUENCE_LENGTHS[0])),
            *((also,) if also else ()),
        }
    )
    table = []
    for edge in wanted:
        over = sum(count for length, count in ordered if length > edge)
        behind = sum((length - edge) * count for length, count in ordered if length > edge)
        kept = total if kind == "raw_text" else total - behind
        table.append(
            {
                "seq_len": edge,
                "rows_over": over,
                "rows_over_share": round(over / measured, 4),
                "tokens_cut_share": (
                    0.0 if kind == "raw_text" else round(behind / total, 4) if total else 0.0
                ),
                "answers_lost": sum(
                    count for length, count in lengths.requests.items() if length >= edge
                ),
                "padding": round(1 - (total - behind) / (edge * measured), 3),
                "packed_sequences": math.ceil(kept / edge),
            }
        )
    kept_rows = table[-SHOWN_LENGTHS:]
    return (
        kept_rows
        if also is None
        else sorted(
            {
                row["seq_len"]: row
                for row in [*kept_rows, *(row for row in table if row["seq_len"] == also)]
            }.values(),
            key=lambda row: row["seq_len"],
        )
    )


def longer_rows(lengths: Lengths, tokens: TokenStats) -> dict[str, int]:
    """How many rows are longer than those kept whole, of how many measured."""
    kept = rows_kept_whole(tokens).tokens
    count = sum(rows for length, rows in lengths.rows.items() if length > kept)
    return {"than_tokens": kept, "rows": count, "of": lengths.measured}
