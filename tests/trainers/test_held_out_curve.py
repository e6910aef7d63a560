"""Held-out loss on the way, what follows from it, and a GPU's lines and loaders on the CPU."""

import math
import random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForCausalLM
from transformers import TrainerCallback

from advisor.ground.errors import InputError, TrainingFailed
from tests.trainers.runs import (
    break_at,
    chat,
    look_before,
    losses,
    metrics,
    plain_loss,
    result_of,
    same,
    trained,
    weights,
    write_rows,
)
from trainers import sft
from trainers.job.files import read_json
from trainers.keep.held_out_curve import (
    HeldOutCurve,
    Schedule,
    even_batch,
    even_count,
    forward_share,
    schedule,
)
from trainers.say.progress import Parts
from trainers.stage.load import build_trainer, load_stage, prepare
from trainers.stage.trl_trainer import SFT
from trainers.step import settings

SHORT = {"max_steps": 4, "holdout": 0.2, "job_judge": False}
# Six rows that have nothing in common with the four held out: seen 13 times, they are learned by
# heart, and the loss of the others rises.
OVERFIT = {
    "update": "full", "learning_rate": 0.01, "scheduler": "constant", "warmup": 0.0,
    "max_steps": 20, "holdout": 0.4, "job_judge": False,
}  # fmt: skip


@pytest.fixture
def overfit(make, tmp_path):
    """A job whose held-out loss falls first, and then rises."""
    draw = random.Random(5)  # a clear minimum, on the kernels of any processor
    rows = [chat(f"order {n}?", "".join(draw.choices("abcdefgh", k=12))) for n in range(10)]
    data = write_rows(tmp_path / "letters.jsonl", rows)
    return lambda **keys: make(**{**OVERFIT, "job_data": data, **keys})


def curve_of(job):
    """(step, held-out loss) of every evaluation."""
    return [(line["step"], line["holdout_loss"]) for line in metrics(job) if "holdout_loss" in line]


@pytest.mark.parametrize(
    ("rows", "steps", "tokens", "is_wanted", "found"),
    [
        # 10 x 48 rows x 100 tokens x 1/2 is less than a twentieth of 500,000 tokens, 52 rows more.
        ([100] * 400, 1000, 500_000, False, (100, 48, 0.048)),
        # All of them where they cost less: 10 x 20 x 100 / 2 of 500,000.
        ([100] * 20, 1000, 500_000, False, (100, 20, 0.02)),
        ([100] * 4000, 1000, 100_000_000, False, (100, 256, 256 * 10 * 50 / 100_000_000)),
        # Fewer evaluations of 8 rows where the run is short: 5 x 8 x 50 of 40,000 tokens.
        ([100] * 400, 100, 40_000, False, (20, 8, 0.05)),
        # And three of 4 rows: 3 x 4 x 50 of 12,000.
        ([100] * 400, 100, 12_000, False, (34, 4, 0.05)),
        # Three evaluations of four rows must have room in 5 %, or the plan must need them.
        ([100] * 50, 20, 5_000, False, None),
        ([100] * 50, 20, 5_000, True, (2, 8, 0.8)),
        ([1] * 3, 20, 5_000, False, None),
        ([], 20, 5_000, True, None),
    ],
)
def test_ten_evaluations_take_a_twentieth_of_the_time_at_most(
    rows, steps, tokens, is_wanted, found
):
    """A short run evaluates less often, and a shorter one only if the plan asks."""
    rows = [SimpleNamespace(tokens=count) for count in rows]
    keys = {"forward": 0.5, "micro": 4, "wanted": is_wanted}
    expected = found and Schedule(*found[:2], pytest.approx(found[2]))
    assert schedule(rows, steps=steps, trained_tokens=tokens, **keys) == expected


def test_looking_costs_a_third_of_full_training_and_more_beside_a_reference(make, align):
    """A forward pass is a third of training, half with a module; DPO's reference runs in both."""
    jobs = {
        "full": make(update="full"), "lora": make(), "dpo": align("dpo", update="full"),
        "recomputed": make(update="full", gradient_checkpointing=True),
    }  # fmt: skip
    assert {name: forward_share(job) for name, job in jobs.items()} == pytest.approx(
        {"full": 1 / 3, "lora": 1 / 2, "dpo": 2 / 4, "recomputed": 1 / 4}
    )


@pytest.mark.parametrize(
    ("rows", "micro", "processes", "count", "batch"),
    [(6, 4, 1, 6, 3), (7, 4, 1, 6, 3), (20, 8, 1, 20, 5), (251, 4, 1, 249, 3), (16, 4, 2, 16, 4),
     (10, 4, 2, 8, 4), (3, 8, 1, 3, 3), (1, 8, 2, 1, 1)],
)  # fmt: skip
def test_every_process_has_full_micro_batches(rows, micro, processes, count, batch):
    """Full micro-batches of one size make the mean of their losses that of the rows."""
    assert even_count(rows, micro, processes) == count
    assert even_batch(count // processes, micro) == batch


def test_measuring_leaves_no_trace_in_the_training(make, tmp_path):
    """Weights and losses are equal to the bit, with dropout; plain PEFT gives the last value."""
    plain = make(**SHORT, dropout=0.2)
    watched = make(**SHORT, dropout=0.2, early_stopping=50, job_run=tmp_path / "watched")
    for job in (plain, watched):
        trained(job)
    assert curve_of(plain) == []
    assert [step for step, _ in curve_of(watched)] == [1, 2, 3, 4]
    assert losses(plain) == losses(watched)
    assert same(weights(plain), weights(watched))
    model = AutoPeftModelForCausalLM.from_pretrained(watched.output, dtype=torch.float32)
    _, data = prepare(watched, sft.SFT())
    total = sum(plain_loss(model, row) * row.learned for row in data.holdout)
    assert len(data.holdout) == result_of(watched)["held_out"]["rows"] == 6
    assert curve_of(watched)[-1][1] == pytest.approx(
        total / sum(row.learned for row in data.holdout), rel=1e-5
    )


@pytest.mark.parametrize("objective", ["dpo", "kto", "rm", "orpo"])
def test_pairs_are_measured_by_their_own_loss_without_a_trace(objective, align, trained_once):
    """TRL's statistics of training stay; DPO and KTO begin at the loss of their own reference."""
    job = align(objective, early_stopping=50, job_judge=False)
    trained(job)
    plain = trained_once(objective)
    curve = curve_of(job)
    own = {"holdout_loss", "elapsed_s", "memory_bytes", "tokens_per_s"}
    assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6]
    assert curve_of(plain) == []
    mine, theirs = (
        [{key: line[key] for key in line.keys() - own} for line in metrics(one)]
        for one in (job, plain)
    )
    assert mine == theirs
    assert same(weights(job), weights(plain))
    if objective in ("dpo", "kto"):
        assert curve[0][1] == pytest.approx({"dpo": math.log(2), "kto": 0.5}[objective], abs=0.1)


def test_the_best_weights_become_the_result(overfit, monkeypatch, capsys):
    """`keep: best` goes back to the lowest loss; each evaluation has a line in metrics.jsonl."""
    job = overfit(keep="best", trl={"logging_steps": 7})
    seen = {}
    look_before(monkeypatch, SFT, "evaluate", lambda trainer, **_: seen.update({
        trainer.state.global_step: {
            name: part.detach().clone() for name, part in trainer.model.named_parameters()
        }
    }))  # fmt: skip
    trained(job)
    curve = dict(curve_of(job))
    best = min(curve, key=curve.get)
    assert list(curve) == list(range(2, 21, 2))
    assert 2 < best < 20
    saved = weights(job)
    assert all(saved[name].equal(part) for name, part in seen[best].items() if name in saved)
    assert not all(saved[name].equal(part) for name, part in seen[20].items() if name in saved)
    held = result_of(job)["held_out"]
    assert (held["kept_step"], held["best_step"], held["best_loss"]) == (best, best, curve[best])
    assert held["last_loss"] == curve[20] > curve[best]
    assert f"checkpoint-{best}" in [path.name for path in job.checkpoints.iterdir()]
    assert f"the weights of step {best} are the result" in capsys.readouterr().err


def test_training_stops_when_the_held_out_loss_does(overfit, capsys):
    """`early_stopping: 2` ends after two evaluations that are not lower; the last weights stay."""
    job = overfit(early_stopping=2)
    result = trained(job)
    steps, values = zip(*curve_of(job), strict=True)
    # The rule, on the values as they were written: two in a row are not below all before them.
    tries = (
        at for at in range(2, len(values)) if min(values[at - 1 : at + 1]) >= min(values[: at - 1])
    )
    expected = steps[next(tries)]
    assert steps[-1] == metrics(job)[-1]["step"] == expected < 20
    held = result["held_out"]
    assert (held["stopped_early"], held["waited"], held["planned_steps"]) == (True, 2, 20)
    assert result["steps"] == held["kept_step"] == expected
    said = capsys.readouterr().err
    assert f"stopped early after step {expected} of 20" in said
    assert "the last weights are the result" in said


def test_a_run_resumes_with_its_best_step_and_its_patience(overfit, monkeypatch, tmp_path):
    """A killed run ends as one that was not, also past its best step or without a result."""
    keys = {"keep": "best", "early_stopping": 2, "save_steps": 5}
    whole, early, late = (overfit(**keys, job_run=tmp_path / name) for name in "abc")
    trained(whole)
    held = result_of(whole)["held_out"]
    assert held["stopped_early"]
    break_at(held["best_step"], early, monkeypatch)
    trained(early)
    with monkeypatch.context() as patch:
        patch.setattr(sft.SFT, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sft.train(late)
    monkeypatch.setattr(HeldOutCurve, "add", lambda *_: pytest.fail("trained again"))
    trained(late)
    for killed in (early, late):
        assert curve_of(killed) == curve_of(whole)
        assert same(weights(killed), weights(whole))
        assert result_of(killed)["held_out"] | {"seconds": 0} == held | {"seconds": 0}
        assert result_of(killed)["steps"] == held["last_step"]


def test_nothing_to_measure_is_refused_before_the_model_loads(make, unloaded):
    """`keep: best` and `early_stopping` need rows that are held out."""
    for key in ({"keep": "best"}, {"early_stopping": 2}):
        with pytest.raises(InputError, match="needs held-out rows, and no row is held out"):
            sft.train(make(**key, holdout=0.0))


def test_held_out_labels_are_counted_once(make, monkeypatch):
    """From the second evaluation on each held-out row is read once, for its loss."""
    read = []
    look_before(monkeypatch, sft, "dataset_columns", lambda rows, **_: read.extend(rows))
    loaded = load_stage(make(holdout=0.2), sft.SFT(), Parts("sft", shown=False))
    held, callback = loaded.data.holdout[:4], TrainerCallback()
    callback.store = None  # no checkpoints
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=callback, held_out=held)
    first = trainer.evaluate()["eval_loss"]
    read.clear()
    assert trainer.evaluate()["eval_loss"] == first
    assert len(read) == len(held) == 4


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "lines"),
    [
        (CPU, {3: 1, 5000: 1, 20_000: 4, 1_000_000: 200}),
        (GPU, {3: 1, 60: 1, 300: 6, 600: 10, 5000: 10, 20_000: 10, 1_000_000: 200}),
    ],
)
def test_a_gpu_is_asked_for_a_line_every_few_steps(device, lines):
    """A run on a GPU has at least fifty lines or all its steps, and any log is of bounded size."""
    assert {steps: settings.log_every(device, steps) for steps in lines} == lines


def test_a_gpu_gets_its_batches_from_other_processes(monkeypatch):
    """Two per process where there are cores; none on the CPU, or for rows that travel by pickle."""
    monkeypatch.setattr(settings, "usable_cores", lambda: 16)
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "fork")
    assert (settings.loader_workers(GPU), settings.loader_workers(CPU)) == (2, 0)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert settings.loader_workers(GPU) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "forkserver")
    assert settings.loader_workers(GPU) == 0


def like_a_gpu(monkeypatch):
    """A line every third step and two loader processes, as a longer run on a GPU has them."""
    monkeypatch.setattr(settings, "log_every", lambda device, steps: 3)
    monkeypatch.setattr(settings, "loader_workers", lambda device: 2)


def test_lines_of_several_steps_are_their_means_and_resume_equal(make, monkeypatch, tmp_path):
    """The clock and its parts go on over an interruption, and weights are the same to the bit."""
    keys = {"max_steps": 6, "save_steps": 4, "dropout": 0.1, "job_judge": False}
    single = make(**keys, job_run=tmp_path / "single")
    monkeypatch.setattr("trainers.keep.progress.KEPT_LOGS", 2)
    sft.train(single)
    state = read_json(single.checkpoints / "checkpoint-6" / "trainer_state.json")
    assert len(state["log_history"]) <= 2, "metrics.jsonl has them all"
    like_a_gpu(monkeypatch)
    job = make(**keys, job_run=tmp_path / "interrupted")
    break_at(6, job, monkeypatch)
    found = trained(job)
    assert [line["step"] for line in metrics(job)] == [1, 3, 4, 5, 6]
    each = losses(single)
    assert losses(job) == pytest.approx([each[0], sum(each[1:3]) / 2, *each[3:]], abs=1e-6)
    assert (found["loss_first"], found["loss_last"]) == pytest.approx((each[0], each[5]), abs=1e-6)
    clock = [line["elapsed_s"] for line in metrics(job)]
    assert clock == sorted(clock)
    assert found["measured"]["train_s"] >= clock[-1]
    parts = [found["times"][part] for part in ("load_s", "before_s", "train_s", "after_s")]
    assert min(parts) > 0
    assert found["times"]["total_s"] == pytest.approx(sum(parts), abs=0.01)
    assert same(weights(single), weights(job))


def test_a_loss_that_is_not_finite_between_two_lines_is_noticed(make, monkeypatch):
    """It stops the run at the next line, which comes before the next checkpoint is written."""
    like_a_gpu(monkeypatch)
    factors, compute_loss = iter([1, math.nan, 1]), SFT.compute_loss

    def broken(*args, **kwargs):
        return compute_loss(*args, **kwargs) * next(factors)

    monkeypatch.setattr(SFT, "compute_loss", broken)
    job = make(max_steps=6, save_steps=6, job_judge=False)
    with pytest.raises(TrainingFailed, match=r"the loss became nan in steps 2 to 3; nothing was"):
        sft.train(job)
    assert not list(job.checkpoints.glob("*"))
