"""The whole time of a stage by its parts."""

import pytest
from msgspec.structs import replace

from advisor.estimate import whole_time as module
from advisor.estimate.time import machine_of
from advisor.estimate.types import TimeEstimate
from advisor.estimate.whole_time import EvaluationRows, time_by_parts, total_time
from advisor.ground.types import ModelShape
from tests.estimate.specs import RunSpec, run_of

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
    beside = times.prepare_s + times.evaluate_s + times.save_s
    assert times.total_s == pytest.approx(
        times.load_s + times.before_s + times.train_s + times.after_s + beside
    )


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
    """Together they are known if each is. Rows beyond the largest number that is looked at add
    nothing.
    """
    one = times_of()
    assert times_of(replace(LOOKED, rows=64)) == times_of(replace(LOOKED, rows=10_000))
    both = total_time([one, one])
    assert both.total_s == pytest.approx(2 * one.total_s)
    assert total_time([one, None]) is None


def test_the_numbers_are_those_of_the_trainers():
    """The advisor never imports the trainers; what they measure is written down twice."""
    pytest.importorskip("torch")
    from trainers.evaluation import generation, loss, pairs
    from trainers.keep import held_out_curve, progress

    assert module.HELD_OUT_ROWS == loss.HELD_OUT_ROWS == pairs.HELD_OUT
    assert (module.SAMPLES, module.LONGEST_SAMPLE) == (loss.SAMPLES, loss.LONGEST_SAMPLE)
    assert module.GENERATION_S == generation.GENERATION_S
    assert module.FEWEST_TOGETHER == generation.FEWEST_TOGETHER
    assert len(generation.GENERAL.read_text().splitlines()) == module.GENERAL
    assert (module.TIMES_MEASURED, module.MOST_ROWS, module.LARGEST_SHARE) == (
        held_out_curve.MOST_TIMES, held_out_curve.MOST_ROWS, held_out_curve.LARGEST_SHARE,
    )  # fmt: skip
    assert module.LARGEST_SHARE == progress.LARGEST_SHARE
    assert (module.TRIAL_ROWS, module.TRIAL_SAMPLES, module.TRIAL_GENERAL) == (
        generation.TRIAL_ROWS, generation.TRIAL_SAMPLES, generation.TRIAL_GENERAL,
    )  # fmt: skip
    assert (module.PROMPTS, module.TRIAL_PROMPTS) == (
        pairs.HELD_OUT_PROMPTS, pairs.TRIAL_PROMPTS,
    )  # fmt: skip
