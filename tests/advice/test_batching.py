"""Rows share a sequence where the rules' batch is kept; else similar lengths share a batch."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice.planning import comment_of
from advisor.advice.search import fit
from advisor.advice.search.packing import GAINS, MULTIPLE, SAME_ROWS, Packing, packing_of
from advisor.data.lengths import Lengths
from advisor.estimate import run
from advisor.estimate.padding import padded_tokens, rows_in_sequence
from advisor.ground.types import DataProfile
from advisor.render.answer.needs import padding_words
from tests.advice.situations import asked
from tests.advice.situations import fitted as fitted_stage
from tests.conftest import examples
from trainers.rows.batches import Batches
from trainers.rows.packing import bins_of

np = pytest.importorskip("numpy")  # only trainers need it
ON_CPU = {"gpu": "none", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "composition": "sft+lora"}


def stats_of(lengths):
    counts = Counter(map(int, lengths))
    found = Lengths(measured=len(lengths), processed=int(sum(lengths)), rows=counts)
    return replace(found.stats(), counted_by="the model's tokenizer")


def chat_lengths(count=2000, seed=0):
    """As in a set of short questions and answers: half below 80 tokens, a few of 500 and more."""
    draw = random.Random(seed)
    return np.array([min(700, max(10, int(draw.lognormvariate(4.4, 0.8)))) for _ in range(count)])


def fitted(*, composition="sft+qlora", lengths=None, **known):
    """The settings of a stage on rows of these lengths, and the stage."""
    stated = {"task": "other", "model": "Qwen/Qwen3-8B", "gpu": "RTX 4090", **known}
    lengths = chat_lengths() if lengths is None else lengths
    data = DataProfile(
        path="chats.jsonl", kind="paired", format="messages", mapping={}, rows=len(lengths),
        tokens=stats_of(lengths), objectives=("sft",),
    )  # fmt: skip
    stage = fitted_stage(composition, replace(asked(**stated), data=data))
    return {key: chosen.value for key, chosen in stage.reasons.items()}, stage


def test_short_rows_are_packed_on_a_gpu_with_as_many_in_a_step():
    """Sixteen rows a step, the longest in the sequence, and reasons that say what is saved."""
    values, stage = fitted()
    lengths = chat_lengths()
    assert values["packing"] is True
    assert values["seq_len"] >= lengths.max()
    per_step = values["micro_batch_size"] * values["grad_accum"]
    _, ends = bins_of(lengths.astype(np.int32), values["seq_len"])
    assert per_step * len(lengths) / len(ends) == pytest.approx(16, rel=SAME_ROWS)
    comments = {key: comment_of(chosen) for key, chosen in stage.reasons.items()}
    assert comments["grad_accum"].startswith("about 1")
    assert "rows in " in comments["grad_accum"]
    assert "would be padding; now none" in comments["packing"]
    assert comments["group_by_length"].startswith("if this model lets packed rows see each other")
    (said,) = padding_words(SimpleNamespace(stages=[stage]))
    assert "Padding: none, since short rows share a sequence (about 6" in said


@pytest.mark.parametrize(
    "case",
    [
        {"gpu": "none", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        {"model": "Qwen/Qwen3.5-4B"},  # linear attention: a state goes on from row to row
        {"gpus": 8},  # two rows on each: one sequence would hold more
        {"composition": "sft+prefix"},
        {"lengths": np.full(2000, 300)},  # nothing is gained
    ],
)
def test_elsewhere_rows_of_similar_length_share_a_batch(case):
    """Where rows are not packed the batch counts rows, and one line says so if it matters."""
    values, stage = fitted(**case)
    assert not values.get("packing")
    assert values["group_by_length"] is True
    assert values["micro_batch_size"] * values["grad_accum"] * case.get("gpus", 1) == 16
    assert "if this model" not in comment_of(stage.reasons["group_by_length"])
    said = padding_words(SimpleNamespace(stages=[stage]))
    similar = "since rows of similar length share a batch (about "
    hardly = {"lengths", "composition"} & {*case}
    assert [similar in line for line in said] == ([] if hardly else [True])


def test_rows_that_fit_in_memory_alone_are_not_packed(monkeypatch):
    """Where the longer sequence does not fit and single rows do, rows are grouped."""
    long = Packing(seq_len=262_144, sequences=1, rows=16.0)
    monkeypatch.setattr(fit, "packing_suits", lambda *_, **__: ("gains", long))
    values, stage = fitted()
    assert stage.cost.fits == "fits"
    assert values["seq_len"] < 1000
    assert not values.get("packing")
    assert values["micro_batch_size"] * values["grad_accum"] == 16


@pytest.mark.parametrize(("grouped", "within"), [(False, 0.06), (True, 0.12)])
@pytest.mark.parametrize("micro", [4, 16])
def test_padding_is_estimated_as_it_is_counted(micro, grouped, within):
    """Of rows at random and of grouped ones, within a few per cent of the trainer's own batches."""
    lengths = chat_lengths()
    batches = Batches(lengths.astype(np.int32), micro, 16, 0, True)
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    expected = padded_tokens(
        stats_of(lengths), seq_len=1024, micro=micro, per_step=16, rows=len(lengths),
        grouped=grouped,
    )  # fmt: skip
    counted = batches.computed(batches.order(0) if grouped else shuffled)
    assert expected == pytest.approx(counted / len(lengths), rel=within)


def test_padding_is_in_the_estimated_time(monkeypatch):
    """Grouped rows take less time than rows at random, of which fewer are taken at once."""
    values, grouped = fitted(**ON_CPU)
    assert values["micro_batch_size"] > 1

    def at_random(*args, **given):
        return padded_tokens(*args, **given | {"grouped": False})

    monkeypatch.setattr(run, "padded_tokens", at_random)
    assert fitted(**ON_CPU)[1].cost.duration_s > 1.1 * grouped.cost.duration_s


@examples(2)
@given(
    median=st.integers(20, 1500), spread=st.floats(0.05, 1.2), count=st.integers(30, 3000),
    rows=st.sampled_from([8, 16, 32, 64, 128]), cards=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_a_packed_step_keeps_its_rows(median, spread, count, rows, cards):
    """Counted with the trainer's own packing, whatever the lengths."""
    draw = random.Random(count)
    lengths = np.array(
        [max(4, min(4000, int(median * np.exp(draw.gauss(0, spread))))) for _ in range(count)]
    )
    longest = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    found = packing_of(stats_of(lengths), rows=rows, cards=cards, longest=longest, most=8192)
    if found is None:
        return
    assert longest <= found.seq_len <= 8192
    assert found.sequences % cards == 0
    assert abs(found.rows - rows) <= SAME_ROWS * rows
    each = rows_in_sequence(stats_of(lengths), found.seq_len)
    _, ends = bins_of(lengths.astype(np.int32), found.seq_len)
    if count > 20 * each and each >= GAINS:
        assert each == pytest.approx(len(lengths) / len(ends), rel=0.25)
