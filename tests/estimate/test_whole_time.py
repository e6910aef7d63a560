"""A stage's whole time by its parts, and how much data it reads, against the rows themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.data.lengths import HISTOGRAM_TOKENS, _histogram
from advisor.estimate import whole_time as module
from advisor.estimate.memory.static import host_moments
from advisor.estimate.padding import tokens_read as read_by
from advisor.estimate.run import stage_of
from advisor.estimate.time import machine_of
from advisor.estimate.types import TimeEstimate
from advisor.estimate.whole_time import EvaluationRows, time_by_parts, total_time
from advisor.ground.types import ModelShape, TokenStats
from advisor.ground.units import GIB
from tests.conftest import examples
from tests.estimate.specs import RunSpec, memory_estimate, run_of

SMOLLM = ModelShape(
    id="SmolLM2-135M", origin="size", params=134_515_008, architecture="llama", hidden_size=576,
    layers=30, heads=9, kv_heads=3, head_dim=64, intermediate_size=1536, vocab_size=49152,
    tied_embeddings=True,
)  # fmt: skip
SPEC = RunSpec(micro_batch_size=4, seq_len=256, rank=8, weights_dtype="float32")
LOOKED = EvaluationRows(rows=20, row_tokens=96, answer_tokens=56)
MACHINE = machine_of(None, cpu_cores=2)


def training(steps=1, low=1.0, high=1.0):
    """100 seconds of training."""
    step_s = 100.0 / steps
    return TimeEstimate(
        step_s=step_s, steps=steps, tokens_per_s_per_gpu=1.0, because="",
        low_s=low * step_s, high_s=high * step_s,
    )  # fmt: skip


def times_of(looked=LOOKED, *, model=SMOLLM, trained=None, **changed):
    run = run_of(replace(SPEC, **changed), model)
    return time_by_parts(run, MACHINE, looked, trained or training())


def test_the_parts_are_those_of_a_measured_run():
    """A run of this stage took 9.5 s, 74 s and 103 s beside its training, on two cores that other
    programs used, too: the training took 2.4 times its estimate.
    """
    times = times_of()
    assert 9.5 / 2.4 < times.load_s < 9.5 * 1.5
    assert 74 / 2.4 < times.before_s < 74 * 1.5
    assert 103 / 2.4 < times.after_s < 103 * 1.5
    assert times.train_s == 100.0
    parts = ("load_s", "before_s", "train_s", "after_s", "prepare_s", "evaluate_s", "save_s")
    assert times.total_s == pytest.approx(sum(getattr(times, part) for part in parts))


def test_tokenising_held_out_loss_checkpoints_and_a_download_count():
    """50,000 rows of 96 tokens take ten seconds; held-out loss and checkpoints 5 % at most."""
    looked, hub = replace(LOOKED, all_rows=50_000), replace(SMOLLM, origin="catalogue")
    times = times_of(looked, model=hub, trained=training(50, 0.8, 1.5))
    assert times.prepare_s == pytest.approx(9.6)
    assert 0 < times.save_s < times.evaluate_s == pytest.approx(5.0)
    assert times.download_s == pytest.approx(4 * 134_515_008 / 30e6)
    assert times.low_s == pytest.approx(0.8 * times.total_s)
    assert times.high_s == pytest.approx(1.5 * times.total_s)
    half = times.with_training(50.0)
    assert half.total_s < times.total_s - 50.0
    assert half.low_s / half.total_s == pytest.approx(0.8)
    assert times_of(looked, trained=training(50)).download_s == 0
    assert times_of(looked, model=hub, evaluation=False).evaluate_s == 0


def test_what_is_not_measured_takes_no_time():
    """Without the comparison the probe and the checks are left; a trial has few of all."""
    whole = times_of()
    unjudged = times_of(replace(LOOKED, judge=False))
    assert unjudged.before_s < 1 < whole.before_s
    assert unjudged.after_s < whole.after_s
    assert times_of(objective="cpt").before_s < whole.before_s / 2
    assert times_of(replace(LOOKED, trial=True)).before_s < whole.before_s / 2
    assert times_of(objective="rm").before_s < 1


def test_times_of_a_chain_add_up():
    """Together they are known if each is, and rows beyond the most looked at add nothing."""
    one = times_of()
    assert times_of(replace(LOOKED, rows=64)) == times_of(replace(LOOKED, rows=10_000))
    assert total_time([one, one]).total_s == pytest.approx(2 * one.total_s)
    assert total_time([one, None]) is None


def test_the_numbers_are_those_of_the_trainers():
    """The advisor never imports the trainers; what they measure is written down twice."""
    pytest.importorskip("torch")
    from trainers.evaluation import generation, loss, pairs
    from trainers.keep import held_out_curve, progress

    theirs = {
        "HELD_OUT_ROWS": loss.HELD_OUT_ROWS, "SAMPLES": loss.SAMPLES,
        "LONGEST_SAMPLE": loss.LONGEST_SAMPLE, "GENERATION_S": generation.GENERATION_S,
        "FEWEST_TOGETHER": generation.FEWEST_TOGETHER,
        "GENERAL": len(generation.GENERAL.read_text().splitlines()),
        "TIMES_MEASURED": held_out_curve.MOST_TIMES, "MOST_ROWS": held_out_curve.MOST_ROWS,
        "LARGEST_SHARE": held_out_curve.LARGEST_SHARE, "TRIAL_ROWS": generation.TRIAL_ROWS,
        "TRIAL_SAMPLES": generation.TRIAL_SAMPLES, "TRIAL_GENERAL": generation.TRIAL_GENERAL,
        "PROMPTS": pairs.HELD_OUT_PROMPTS, "TRIAL_PROMPTS": pairs.TRIAL_PROMPTS,
    }  # fmt: skip
    assert (
        {name: getattr(module, name) for name in theirs},
        pairs.HELD_OUT,
        progress.LARGEST_SHARE,
    ) == (theirs, loss.HELD_OUT_ROWS, held_out_curve.LARGEST_SHARE)


def stats(lengths, *, sides=1):
    counts = sorted({length: lengths.count(length) for length in lengths}.items())
    total = sides * sum(lengths)
    return TokenStats(
        total=total, mean=total / len(lengths), p50=0, p90=0, p95=0, p99=0, longest=max(lengths),
        counted_by="test", histogram=_histogram(counts),
    )  # fmt: skip


def test_the_bases_own_answers_take_blocks_of_time():
    """180 rows of 96 tokens ask for a fifth of all tokens: 48 rows, or 69 answers, of which some are
    cut: three blocks; 500 answers at most. A file takes none.
    """
    run, looked = run_of(SPEC, SMOLLM), replace(LOOKED, all_rows=200)

    def prepare_s(replay, share=0.2):
        own = {**run.options, "replay": replay, "replay_share": share}
        asking = replace(run, stage=replace(run.stage, options=own))
        return time_by_parts(asking, MACHINE, looked, training()).prepare_s

    none, one, two = prepare_s("general.jsonl"), prepare_s({"rows": 30}), prepare_s({"rows": 60})
    assert none == times_of(looked).prepare_s < one < two < prepare_s({"rows": 90})
    assert prepare_s({"rows": 500}) == prepare_s({"rows": 90}) < prepare_s({"rows": 500}, 0.8)
    assert prepare_s({"rows": 500}, 0.8) - one == pytest.approx(15 * (two - one))


def tokens_read(rows, **stage):
    """Tokens of a row that is read, and the share of rows that are."""
    usual = {"objective": "sft", "seq_len": 512, "truncation": "drop", "packing": False}
    return read_by(rows, stage_of({"update": "lora", **usual, **stage}))


EVEN = stats([*range(1, 513)])  # as many rows of each length, as the histogram takes for granted
ALIKE, WRITTEN = stats([300] * 4), replace(stats([300] * 4, sides=2), request_mean=40.0)
CUT = (128.5 + 256) / 2


@pytest.mark.parametrize(
    ("rows", "stage", "tokens", "share"),
    [
        (EVEN, {"seq_len": 256}, 128.5, 0.5),  # longer rows are left out with their tokens
        (EVEN, {"seq_len": 256, "truncation": "truncate"}, CUT, 1.0),
        # What is parted is read whole.
        (stats([3000] * 4), {"objective": "cpt", "truncation": "stop"}, None, 1.0),
        (stats([3000] * 4), {"packing": True, "truncation": "stop"}, None, 1.0),
        # Where no row is short enough the longest that could be read stands.
        (ALIKE, {"seq_len": 100}, 100, 1.0),
        # A stage that writes its answers reads the request and its own longest answer.
        *((WRITTEN, {"objective": name, "truncation": "stop", "response_tokens": 64, "seq_len": most},
           read, 1.0) for name in ("ppo", "grpo", "rloo") for most, read in ((512, 104), (96, 96))),
    ],
)  # fmt: skip
def test_rows_are_read_as_the_stage_says(rows, stage, tokens, share):
    found = tokens_read(rows, **stage)
    assert found[1] == pytest.approx(share, rel=0.01)
    assert tokens is None or found[0] == pytest.approx(tokens, rel=0.01)


def test_both_sides_count_only_where_both_run():
    both, one = (
        tokens_read(stats([100] * 8, sides=2), objective=name)[0] for name in ("dpo", "sft")
    )
    assert both == pytest.approx(200)
    assert one == pytest.approx(both / 2, rel=0.2)  # from the histogram's bins
    assert tokens_read(WRITTEN, truncation="stop", response_tokens=64)[0] > 104


@examples(2, deadline=200)
@given(
    st.lists(st.integers(1, 2 * HISTOGRAM_TOKENS[-1]), max_size=40),
    *[st.integers(HISTOGRAM_TOKENS[0], 40_000)] * 2,
    st.sampled_from(["drop", "truncate"]),
)
def test_a_longer_sequence_never_reads_fewer_rows(lengths, first, second, truncation):
    rows = stats([8, *lengths])
    kept = [
        tokens_read(rows, seq_len=length, truncation=truncation)
        for length in sorted((first, second))
    ]
    assert kept[0][1] <= kept[1][1] + 1e-9
    assert all(0 < tokens <= rows.longest * 1.001 for tokens, _ in kept)


LLAMA_70B = "meta-llama/Llama-3.1-70B"
WEIGHTS = 2 * 8_030_261_248  # of Llama 3.1 8B in bfloat16, as the hub counts them
SHARDED = RunSpec(
    objective="sft", update="full", weights_dtype="bfloat16", precision="pure",
    optimizer="adamw_fused", micro_batch_size=1, seq_len=1024, gpus=8, sharding="fsdp",
)  # fmt: skip
LORA = {"update": "lora", "rank": 16, "precision": "mixed"}
FOUR_BIT = replace(SHARDED, update="lora", quantization="nf4", precision="mixed")


def moments(spec, model="meta-llama/Llama-3.1-8B", machines=1):
    found = host_moments(run_of(spec, model, machines=machines))
    return {one.name: one.size_bytes for one in found}


@pytest.mark.parametrize(
    ("changed", "machines", "moment", "expected"),
    [
        # The base is whole in each machine while it is loaded, whatever is trained.
        *((changed, machines, "loading", WEIGHTS) for changed in ({}, LORA) for machines in (1, 2)),
        # All weights are put together in the first machine, and the adapters alone where they are
        # trained: rank 16 on all linear layers, float32.
        ({}, 2, "saving", WEIGHTS),
        (LORA, 1, "saving", 4 * 41_943_040),
        # A checkpoint holds parts twice while they are written: a weight and two moments of it,
        # shared out over the machines.
        ({}, 1, "checkpoint", 2 * 3 * WEIGHTS),
        ({}, 2, "checkpoint", 3 * WEIGHTS),
        # Offloaded weights, gradients and two moments stay beside the weights that are saved; in a
        # checkpoint weights and moments stand once more, since they need no copy from a GPU.
        ({"offload_weights": True}, 1, "training", 4 * WEIGHTS),
        ({"offload_weights": True}, 1, "checkpoint", 7 * WEIGHTS),
        ({"offload_weights": True}, 1, "saving", 5 * WEIGHTS),
    ],
)
def test_machines_hold_so_much_in_each_moment(changed, machines, moment, expected):
    """Bytes of the first machine."""
    found = moments(replace(SHARDED, **changed), machines=machines)
    assert found[moment] == pytest.approx(expected, rel=1e-6 if "offload_weights" in changed else 0)


@pytest.mark.parametrize(
    "changed", [{"sharding": "ddp"}, {"framework": "torchtune"}, {"gpus": 1, "sharding": None}]
)
def test_nothing_is_said_where_nothing_is_divided_by_our_trainers(changed):
    """A whole model on each GPU, or one GPU; others read and save a model in ways of their own."""
    assert moments(replace(SHARDED, **changed)) == {}


def test_4_bit_base_is_whole_on_each_gpu_while_it_is_loaded():
    """On any number of GPUs it needs 4.1 bits a weight, and 16 bits of embeddings and output."""
    # 80 layers of 855,638,016 linear weights; 128,256 x 8,192 twice.
    base = 80 * 855_638_016 * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * 128_256 * 8_192 * 2
    few, many = (memory_estimate(replace(FOUR_BIT, gpus=gpus), LLAMA_70B) for gpus in (8, 64))
    assert few.needed.name == many.needed.name == "loading"
    assert few.need_bytes == many.need_bytes > base > 34 * GIB
    assert "loading" not in moments(FOUR_BIT, LLAMA_70B)  # quantised on the GPUs, tensor by tensor
    theirs = memory_estimate(replace(FOUR_BIT, framework="fsdp-qlora"), LLAMA_70B)
    assert all(moment.name != "loading" for moment in theirs.moments)
