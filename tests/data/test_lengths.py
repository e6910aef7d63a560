"""What a sequence length would cut, what it would leave empty, and what the lengths suggest."""

import pytest
from msgspec.structs import replace

from advisor.advice.facts import situation_facts
from advisor.advice.search.fit import fit_stage
from advisor.advice.search.rows import sequence_length
from advisor.advice.search.settings import StageCase
from advisor.commands.check import check_data
from advisor.data import profile
from advisor.data.measure import Depth
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE
from tests.data.conftest import findings, jsonl


def pair(request_tokens: int, answer_tokens: int) -> dict[str, object]:
    """A row of that many tokens, at four characters each."""
    return {"question": "q" * 4 * request_tokens, "answer": "a" * 4 * answer_tokens}


def test_each_length_says_what_it_cuts_loses_and_leaves_empty(tmp_path):
    """Rows of 100, 200 and 400 tokens against 128, 256 and 512, counted by hand."""

    def table(rows, *keys):
        measured = profile(jsonl(tmp_path, rows)).measures["sequence_lengths"]
        return {row["seq_len"]: tuple(row[key] for key in keys) for row in measured}

    rows = [pair(10, 90), pair(150, 50), pair(100, 300)]
    lost = table(rows, "rows_over", "tokens_cut_share", "answers_lost")
    assert set(lost) == {128, 256, 512}
    # 72 + 272 of 700 tokens stand behind 128; the request of the second row alone fills it.
    assert lost[128] == (2, round(344 / 700, 4), 1)
    assert lost[256] == (1, round(144 / 700, 4), 0)
    # 700 tokens in three sequences of 512; laid end to end they need two.
    filled = table(rows, "rows_over", "padding", "packed_sequences")
    assert filled[512] == (0, round(1 - 700 / 1536, 3), 2)
    text = [{"text": "x" * 4 * 300}]
    assert table(text, "rows_over", "tokens_cut_share", "packed_sequences")[128] == (1, 0.0, 3)


def test_the_longest_row_is_counted_as_a_trainer_reads_it(tmp_path):
    """Of a preference request and the longer answer have to fit; what a trainer reads is both
    sequences. With a tokenizer and a sample the longest row is still the longest row.
    """
    row = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 120}
    tokens = profile(jsonl(tmp_path, [row])).tokens
    assert (tokens.longest, tokens.total) == (40, 30 + 40)
    rows = [*([pair(5, 5)] * 2999), {"question": "w " * 5000, "answer": "x"}]
    tokens = profile(jsonl(tmp_path, rows), count_tokens=lambda text: len(text.split())).tokens
    assert tokens.longest == 5001


def test_rows_over_a_stated_length_are_counted_and_named(tmp_path):
    """`--seq-len` says which rows a run would stop at, and which have nothing left to learn."""
    path = jsonl(tmp_path, [pair(10, 20)] * 18 + [pair(10, 200), pair(200, 10)])
    found = findings(path, Depth(seq_len=100))
    over = found["rows-over-length"]
    assert (over.severity, over.count, over.rows) == ("warning", 2, (19, 20))
    assert "a run stops at them" in over.text
    assert found["requests-fill-the-length"].rows == (20,)
    assert "rows-over-length" not in findings(path, Depth(seq_len=300))


def suggested(path):
    return check_data(str(path))[1]["suggested"]


def planned(path):
    """seq_len and packing of the plan that the same data get: sft+lora on one GPU."""
    found = parse_composition("sft+lora")
    known = {"task": "other", "model": "Qwen/Qwen3-8B", "gpu": "A100 80GB"}
    answers = {key: Answer(value=value, origin="flag") for key, value in known.items()}
    stated = situation_of(AnswerSet(known=answers), probed=UNKNOWN_MACHINE)
    situation = replace(stated, data=profile(path))
    facts = situation_facts(situation)
    return fit_stage(StageCase(load_rules(), situation, facts, found, found.chain[-1])).reasons


@pytest.mark.parametrize(
    "rows",
    [
        [pair(10, 20), pair(10, 700)] * 300,
        [pair(10, 20 + number % 200) for number in range(2000)],
        [pair(20, 300 + number % 3) for number in range(400)],
        [pair(10, 20)] * 399 + [pair(10, 9000)],
        [pair(10, 20 + number % 3) for number in range(40)],
    ],
)
def test_length_and_packing_are_the_plans_with_the_same_reasons(tmp_path, rows):
    """The page and the plan are decided by the same functions, whatever the rows."""
    path = jsonl(tmp_path, rows)
    page, plan = suggested(path), planned(path)
    assert (page["seq_len"], page["packing"]) == (plan["seq_len"].value, plan["packing"].value)
    assert page["because"] == plan["seq_len"].because
    assert plan["packing"].because.startswith(page["packing_because"])


SORTED = [{"text": f"Message {n} " + "word " * (n % 20), "label": "ab"[n % 2]} for n in range(300)]
ROOM, CUT = range(1025), "left out (truncation: truncate cuts them instead)"


@pytest.mark.parametrize(
    ("rows", "lengths", "packing", "because"),
    [
        # One outlier does not set the length: nearly all rows fit.
        ([pair(10, 200)] * 399 + [pair(10, 20_000)], ROOM, True, ["1 of 400 rows are longer", CUT]),
        ([pair(10, 200)] * 59 + [pair(10, 20_000)], ROOM, True, ["1 of 60 rows are longer", CUT]),
        # One long document asks for no long sequence.
        ([{"text": "a word " * 80}] * 99 + [{"text": "a word " * 9000}], [2048], True,
         ["split without loss"]),
        # A model that sorts packs no rows, and no trainer of pairs packs them.
        (SORTED, ROOM, False, ["the longest row"]),
        ([{"prompt": str(n), "chosen": "b " * 20, "rejected": "c " * 20} for n in range(60)], ROOM,
         False, []),
    ],
)  # fmt: skip
def test_length_and_packing_are_suggested_with_their_reasons(
    tmp_path, rows, lengths, packing, because
):
    """What nearly all rows need, and what becomes of the others."""
    found = suggested(jsonl(tmp_path, rows))
    assert found["seq_len"] in lengths
    assert found["packing"] is packing
    assert [words for words in because if words not in found["because"]] == []
    assert (found["objective"] == "classification") == (rows is SORTED)


def test_a_sample_says_that_it_is_one(tmp_path):
    """Advice measures the first rows of a large file, the check all of it, and both say so."""
    path = jsonl(tmp_path, [pair(10, 900)] * 3000 + [pair(10, 950)])
    quick, whole = sequence_length(profile(path), None), suggested(path)
    assert "the longest row of the 2,000 measured" in quick.because
    assert "the longest row (" in whole["because"]
