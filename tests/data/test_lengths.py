"""What a sequence length would cut, what it would leave empty, and what the lengths suggest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.commands.check import check_data
from advisor.data import profile
from advisor.data.measure.lengths import suggest_packing
from advisor.ground.types import TokenStats


def jsonl(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(request_tokens: int, answer_tokens: int) -> dict[str, object]:
    """A row of that many tokens, at four characters each."""
    return {"question": "q" * 4 * request_tokens, "answer": "a" * 4 * answer_tokens}


def test_each_length_says_what_it_cuts_loses_and_leaves_empty(tmp_path):
    """Three rows of 100, 200 and 400 tokens against 128, 256 and 512, counted by hand."""
    table = {
        row["seq_len"]: row
        for row in profile(jsonl(tmp_path, [pair(10, 90), pair(150, 50), pair(100, 300)])).measures[
            "sequence_lengths"
        ]
    }
    assert set(table) == {128, 256, 512}
    # 72 + 272 of 700 tokens stand behind 128; the request of the second row alone fills it.
    assert (
        table[128]["rows_over"],
        table[128]["tokens_cut_share"],
        table[128]["answers_lost"],
    ) == (2, round(344 / 700, 4), 1)
    assert (
        table[256]["rows_over"],
        table[256]["tokens_cut_share"],
        table[256]["answers_lost"],
    ) == (1, round(144 / 700, 4), 0)
    # 700 tokens in three sequences of 512; laid end to end they need two.
    assert (table[512]["rows_over"], table[512]["padding"], table[512]["packed_sequences"]) == (
        0,
        round(1 - 700 / 1536, 3),
        2,
    )


def test_a_text_over_the_length_is_cut_into_pieces_and_loses_nothing(tmp_path):
    """Raw text has no answer to lose."""
    row = profile(jsonl(tmp_path, [{"text": "x" * 4 * 300}])).measures["sequence_lengths"][0]
    assert (row["seq_len"], row["rows_over"], row["tokens_cut_share"], row["packed_sequences"]) == (
        128,
        1,
        0.0,
        3,
    )


def test_a_pair_is_as_long_as_its_longer_sequence(tmp_path):
    """Request and the longer answer have to fit; what a trainer reads is both sequences."""
    result = profile(
        jsonl(tmp_path, [{"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 120}])
    )
    assert result.tokens is not None
    assert (result.tokens.longest, result.tokens.total) == (40, 30 + 40)


def test_rows_over_a_stated_length_are_counted_and_named(tmp_path):
    """`--seq-len` says which rows a run would stop at, and which have nothing left to learn."""
    rows = [pair(10, 20)] * 18 + [pair(10, 200), pair(200, 10)]
    found = {
        finding.id: finding for finding in profile(jsonl(tmp_path, rows), seq_len=100).findings
    }
    assert (
        found["rows-over-length"].severity,
        found["rows-over-length"].count,
        found["rows-over-length"].rows,
    ) == ("warning", 2, (19, 20))
    assert "a run stops at them" in found["rows-over-length"].text
    assert (found["requests-fill-the-length"].count, found["requests-fill-the-length"].rows) == (
        1,
        (20,),
    )
    assert not {"rows-over-length"} & {
        finding.id for finding in profile(jsonl(tmp_path, rows), seq_len=300).findings
    }


def test_very_long_requests_are_a_warning(tmp_path):
    """A request beyond 8,192 tokens leaves no room for its answer at usual lengths."""
    found = {
        finding.id: finding
        for finding in profile(jsonl(tmp_path, [pair(10, 20)] * 59 + [pair(9000, 10)])).findings
    }
    assert found["very-long-requests"].rows == (60,)


@pytest.mark.parametrize(
    ("kind", "mean", "packing"),
    [
        ("paired", 100, True),
        ("paired", 900, False),
        ("raw_text", 900, True),
        ("preference", 100, False),
    ],
)
def test_packing_is_suggested_where_rows_leave_room(kind, mean, packing):
    """Short rows and raw text are worth laying end to end; pairs are read one by one."""
    tokens = TokenStats(
        total=1000, mean=mean, p50=1, p90=1, p95=1, p99=1, longest=1000, counted_by="words"
    )
    objectives = {"paired": ("sft",), "raw_text": ("cpt",), "preference": ("dpo", "sft")}[kind]
    assert suggest_packing(kind, tokens, 1024, objectives)[0] is packing


def test_the_suggested_length_is_the_plans(tmp_path):
    """The page suggests what the fit search would take for the same data."""
    from advisor.advice.fit import sequence_length

    path = str(jsonl(tmp_path, [pair(10, 20), pair(10, 700)] * 30))
    result, advice = check_data(path)
    assert advice["suggested"]["seq_len"] == sequence_length(result, None).value >= 710


def test_the_longest_row_is_counted_even_outside_the_sample(tmp_path):
    """With a tokenizer and a sample the longest row is still the longest row."""
    rows = [pair(5, 5) for _ in range(3000)]
    rows[2999] = {"question": "w " * 5000, "answer": "x"}
    tokens = profile(jsonl(tmp_path, rows), count_tokens=lambda text: len(text.split())).tokens
    assert tokens is not None
    assert tokens.longest == 5001
