"""A PPO stage from plan to result: it learns, resumes, runs in parts, and says what goes wrong."""

import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
from msgspec import structs

torch = pytest.importorskip("torch")

from advisor.ground.errors import InputError, Stopped, TrainingFailed
from advisor.ground.signals import receiving
from advisor.launch import Options, run_plan
from advisor.plan.keys import key_specs
from advisor.plan.write import plan_text
from advisor.record.files import trained_record
from advisor.record.stage import Adjusted, Adjustment
from advisor.render.report import report_page
from tests.trainers.alignment import OWN, TWO, check_two_rewards, stage_of
from tests.trainers.ppo.conftest import UPDATES, metrics, save_module
from tests.trainers.runs import lines_of, result_of, torchrun, trained, weights, write_rows
from tests.trainers.test_stopping import without_clock
from trainers.evaluation.pairs import RewardEvaluator
from trainers.job.files import read_json, write_json
from trainers.job.job import JUDGE, TRAIN
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.ppo import loop, objective, roles, train
from trainers.ppo import math as formulas
from trainers.ppo.learning import Learner
from trainers.ppo.loop import PPOTrainer
from trainers.ppo.objective import PPO
from trainers.ppo.roles import POLICY, VALUE
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.say.progress import Parts
from trainers.stage.load import build_stage, load_stage


def learned(job):
    """(mean reward of the first update, mean of the last three)."""
    rewards = [line["reward"] for line in metrics(job.run)]
    return rewards[0], sum(rewards[-3:]) / 3


WHOLE = {"update": "full", "learning_rate": 1e-3, "value_learning_rate": 1e-3, **UPDATES["full"]}


@pytest.mark.parametrize(
    ("steps", "keys"),
    [(14, {}), pytest.param(20, WHOLE, marks=pytest.mark.slow)],
    ids=["lora", "full"],
)
def test_a_random_model_learns_to_write_the_letter_that_is_paid_for(steps, keys, make):
    """The share of the letter x rises from under 0.1 to over 0.8 in fourteen updates."""
    job = make(max_steps=steps, holdout=0.2, **keys)
    found = trained(job)
    first, last = learned(job)
    assert first < 0.1
    assert last > 0.8
    start, *_, end = (line["kl"] for line in metrics(job.run))
    assert start == pytest.approx(0, abs=1e-6)
    assert end > 0.5
    reward, sample = found["evaluation"]["metrics"]["reward"], found["evaluation"]["samples"][0]
    assert (reward["word"], found["steps"]) == ("better", steps)
    assert reward["interval"][0] > 0.5
    assert "x" in sample["tuned"]
    assert sample["reward_after"] > sample["reward_before"]
    assert (found["resolved"]["one_base"] is True) is not bool(keys)


@pytest.mark.parametrize(
    ("update", "precision"),
    [("adapter", "pure"), ("prefix", "pure"), ("lora", "mixed"), ("full", "mixed")],
)
def test_every_update_scheme_trains_and_what_it_saves_is_what_it_trained(
    make, monkeypatch, update, precision
):
    """Values and scores have every digit, under autocast too."""
    kinds = set()
    real = roles.apply_head
    monkeypatch.setattr(
        roles, "apply_head", lambda *args: (found := real(*args), kinds.add(found.dtype))[0]
    )
    keys = {**UPDATES[update], "update": update, "precision": precision}
    result = trained(make(**keys, micro_batch_size=4, grad_accum=1, job_judge=False))
    assert kinds == {torch.float32}
    saved, changes = result["checks"][:2]
    assert (saved["ok"], changes["ok"]) == (True, True)
    assert "(limit 0.001)" in saved["text"]


def test_the_first_ratios_of_an_update_are_exactly_one(make, monkeypatch):
    """Before any step no token's probability differs by a bit, with recomputed activations too."""
    moved, first = [], []  # of each minibatch; where those of an update begin
    real, learn = Learner.gradients, Learner.learn

    def gradients(self, *given):
        found = real(self, *given)
        moved.append(found["step_kl"])
        return found

    monkeypatch.setattr(Learner, "learn", lambda *given: first.append(len(moved)) or learn(*given))
    monkeypatch.setattr(Learner, "gradients", gradients)
    for keys in ({}, {"gradient_checkpointing": True, "minibatches": 3}):  # of three micro-batches
        train(make(max_steps=2, micro_batch_size=4, job_judge=False, **keys))
    assert [moved[place] for place in first] == [0.0] * 4


RESUMED = {
    "max_steps": 6, "save_steps": 2, "kl_coef": 0.05, "kl_target": 1.0, "scheduler": "linear",
    "holdout": 0.1, "micro_batch_size": 4, "grad_accum": 2,
}  # fmt: skip


def test_a_run_stopped_half_way_goes_on_and_ends_the_same(make, tmp_path, monkeypatch):
    """Every number, and every answer in rollouts.jsonl, is that of an unbroken run."""
    keys = {**RESUMED, "max_steps": 4, "reward": "scores.py:early"}
    whole = make(**keys, job_run=tmp_path / "whole")
    train(whole)
    broken = make(**keys, job_run=tmp_path / "broken")
    complete = CheckpointStore.complete

    def stop(*args, **keys):
        complete(*args, **keys)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "complete", stop)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert not (broken.output / "result.json").exists()
    assert len(metrics(broken.run)) < keys["max_steps"]
    train(broken)
    rollouts = [(job.output / "rollouts.jsonl").read_bytes() for job in (broken, whole)]
    assert rollouts[0] == rollouts[1]
    ends = [(metrics(job.run), result_of(job)["evaluation"]["metrics"]) for job in (broken, whole)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
def test_a_run_that_is_asked_to_stop_saves_its_update(make, tmp_path, monkeypatch, optimizer):
    """An update is finished and saved though no checkpoint was due, under any optimizer."""
    keys = {
        **RESUMED, "max_steps": 3, "save_steps": 9, "job_judge": False, "holdout": 0,
        "optimizer": optimizer,
    }  # fmt: skip
    whole, broken = (make(**keys, job_run=tmp_path / name) for name in ("whole", "broken"))
    train(whole)
    real = PPOTrainer.update

    def update(*prompts, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*prompts, **options)

    with monkeypatch.context() as patch, receiving(signal.SIG_DFL):  # as the program does
        patch.setattr(PPOTrainer, "update", update)
        with pytest.raises(Stopped, match="stopped after step 1 of 3, with a checkpoint"):
            train(broken)
    assert [path.name for path in broken.checkpoints.iterdir()] == ["checkpoint-1"]
    train(make(**keys, job_run=broken.run))
    assert metrics(broken.run) == metrics(whole.run)


def test_a_long_run_writes_some_of_its_lines(make, monkeypatch):
    """The first ones, which guards compare with, every n-th, and the last."""
    monkeypatch.setattr("trainers.step.settings.MOST_LINES", 1)
    few = {"micro_batch_size": 2, "grad_accum": 1, "job_judge": False, "holdout": 0}
    job = make(max_steps=7, save_steps=7, **few)
    loss = trained(job)["loss_last"]
    assert [line["step"] for line in metrics(job.run)] == [1, 2, 3, 6, 7]
    assert loss == metrics(job.run)[-1]["loss"]


def test_a_trial_is_told_what_would_stop_a_run_and_what_to_change(make, monkeypatch, approved):
    """One score for every answer, and hardly one that ends: after five updates it warns of both."""
    monkeypatch.setattr(  # the model draws all of its tokens about equally often
        "trainers.ppo.objective.stop_ids", lambda model: [model.config.vocab_size - 1]
    )
    keys = {"max_steps": 6, "job_max_steps": 6, "grad_accum": 1, "job_judge": False}
    told = trained(make(reward="scores.py:same", **keys))["checks"]
    found = [check for check in told if check["name"].startswith("rollouts-")]
    approved(re.sub(r"\d+% of the answers", "N% of the answers", json.dumps(found)))


def test_numbers_that_are_none_stop_the_run(make, monkeypatch):
    """A loss that is not finite ends training with nothing saved from it, in a trial too."""
    monkeypatch.setattr(formulas, "value_losses", lambda value, *_: value * float("nan"))
    job = make(job_judge=False, job_max_steps=2)
    with pytest.raises(TrainingFailed, match="the loss became nan at step 1"):
        train(job)
    assert not job.checkpoints.is_dir()


def test_a_step_whose_scaled_gradient_is_infinite_is_left_out(make, monkeypatch):
    """In float16 the scaler tries smaller scales: the run goes on; its line has the gradient."""
    monkeypatch.setattr("trainers.step.settings.autocast_dtype", lambda *_: "float16")
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**127, backoff_factor=2.0**-119)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    job = make(precision="mixed", max_steps=2, grad_accum=1, job_judge=False)
    train(job)
    norms = [line["grad_norm"] for line in metrics(job.run)]
    assert norms[0] in (None, float("inf"))
    assert 0 < norms[1] < 100


def test_as_many_answers_fit_whichever_role_was_used_last(make):
    """The engine counts both optimizers from the start, so a resumed run draws the same numbers."""
    with Parts("ppo", shown=False) as parts:
        ppo = build_stage(load_stage(make(job_judge=False), PPO(), parts), processes=1).trainer
    trained = [one for role in (POLICY, VALUE) for one in ppo.roles.trained(role).values()]
    assert ppo.local.trained == sum(one.numel() for one in trained)


def test_a_policy_far_from_its_start_stops_the_run(make, approved):
    """KL above the bound: the run stops and says which keys to change."""
    with pytest.raises(TrainingFailed) as caught:
        train(make(kl_limit=0.01, max_steps=4, job_judge=False))
    approved(re.sub(r"\d\S* nats", "N nats", caught.value.text()))


def test_a_dry_run_measures_full_answers_and_keeps_nothing(make):
    """Memory, time and tokens are those of the longest batch with answers of full length."""
    found = []
    for answer in (6, 12):
        job = make(job_dry_run=True, max_steps=20, response_tokens=answer, micro_batch_size=4)
        train(job)
        found.append(read_json(job.output / "dry_run.json"))
    assert min(found[1]["measured"][name] for name in ("peak_bytes", "step_s")) > 0
    assert found[1]["steps"] == 20
    # A micro-batch of 4 prompts.
    assert found[1]["batch_tokens"] - found[0]["batch_tokens"] == 4 * (12 - 6)
    assert not list(job.output.glob("*.safetensors"))


def test_the_reward_model_of_the_stage_before_scores_beside_another(make, tmp_path):
    """sft > rm > ppo share one base, a function scores too, and the policy alone is saved."""
    base, lora, stages = Path(make().base_model), UPDATES["lora"], tmp_path / "run" / "stages"
    save_module(base, stages / "sft", "lora", seed=1, scores=False)
    save_module(base, stages / "rm", "lora", seed=2, scores=True)
    before = [stage_of(name, **lora) for name in ("sft", "rm")]
    rewards = [{"reward": "scores.py:share", "weight": 2}, {"reward_model": "rm"}]
    keys = {"start_from": "sft", "reward": None, "rewards": rewards, "job_judge": False}
    job = make(before=before, **keys, **lora)
    resolved = trained(job)["resolved"]
    words = "weighted sum: 2 x the user's own code: scores.py:share; 1 x the model rm"
    assert resolved["reward"].endswith(words)
    for line in lines_of(job.output / "rollouts.jsonl"):
        own, model = line["rewards"]["share"], line["rewards"]["rm"]
        assert model not in (0.0, own)
        assert line["reward"] == pytest.approx(2 * own + model, abs=1e-4)
    assert resolved["start_from"].endswith("stages/sft")
    assert [path.name for path in job.output.glob("*.safetensors")] == ["adapter_model.safetensors"]


@pytest.mark.parametrize(
    "keys",
    [
        {"reward": None},
        {"reward": "nowhere.py:score"},
        {"reward": "scores.py:nothing"},
        {"reward": None, "reward_model": "nowhere"},
        {"reward_model": "rm"},
        {"dropout": 0.1},
        {"kl_horizon": 100},
        {"minibatches": 4},
        {"response_tokens": 95},
        {"trl": {"loss_type": "dapo"}},
        {"trl": {"weight_decay": 0.1}},
        {"trl": {"max_grad_norm": 0}},
        {"trl": {"adam_beta2": 1.0}},
        {"trl": {"adam_beta2": True}},
        {"trl": {"adam_beta1": 0.8}, "optimizer": "sgd"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(make, keys, approved):
    """One error that names the key and what is allowed."""
    with pytest.raises(InputError) as caught:
        train(make(**keys))
    approved(caught.value.text())


@pytest.mark.slow
def test_two_processes_learn_like_one(make, tmp_path):
    """Both end with the same weights, share held-out prompts, and another process judges them."""
    alone = make(max_steps=11, grad_accum=2, job_judge=False)
    train(alone)
    job = make(max_steps=11, grad_accum=1, holdout=0.1, job_run=tmp_path / "two")
    launch = structs.replace(job.plan.launch, processes=2)
    (tmp_path / "plan.yaml").write_text(plan_text(structs.replace(job.plan, launch=launch)))
    torchrun("trainers", "ppo", tmp_path / "plan.yaml", "--stage", "ppo", "--run", job.run)
    (first, last), (_, one) = learned(job), learned(alone)
    assert first < 0.1
    assert last > 0.8
    assert last == pytest.approx(one, abs=0.15)
    wins = [line["holdout_wins"] for line in metrics(job.run) if "holdout_wins" in line]
    assert (len(wins), wins[-1]) == (3, 6)
    found = trained(replace(job, part=JUDGE))
    assert found["resolved"]["prompts_an_update"] == 32
    assert found["evaluation"]["metrics"]["reward"]["word"] == "better"


def test_an_update_that_starts_again_in_parts_learns_the_same(make, tmp_path, monkeypatch):
    """Parts of the same minibatches of the same answers give the same weights but for rounding."""
    # Fewer at once would draw other random numbers.
    monkeypatch.setattr(TransformersEngine, "rows_at_once", lambda self, rows, limit: len(rows))
    keys = {"max_steps": 1, "warmup": 0.0, "job_judge": False, "grad_accum": 2, "minibatches": 2}
    whole, parts = (make(**keys, job_run=tmp_path / name) for name in ("whole", "parts"))
    train(whole)
    size = parts.stage.micro_batch_size
    kept = Adjusted(adjusted=(Adjustment(micro_batch_size=size // 4, grad_accum=4),))
    parts.output.mkdir(parents=True)
    write_json(parts.output / "adjusted.json", kept.to_dict())
    train(parts)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-5)


def test_ppo_learns_from_two_rewards(make, tmp_path):
    """Each reward is logged, sampled and recorded; a score that is missing is left out."""
    (tmp_path / "own.py").write_text(OWN)
    keys = {"reward": None, "verifier": None, "max_steps": 3, "response_tokens": 6}
    job = make(rewards=TWO, **keys, job_judge=False)
    assert sum(line["advantage"] for line in check_two_rewards(job, trained(job))) != 0


BASE = {
    "max_steps": 3, "kl_coef": 0.5, "kl_target": 5.0, "missing_end_penalty": 1.0,
    "step_kl_limit": 1.0, "value_clip_range": 0.05, "clip_range": 0.1, "micro_batch_size": 4,
    "grad_accum": 2, "learning_rate": 5e-3, "job_judge": False,
}  # fmt: skip
OTHER = {
    "kl_coef": 0.1, "kl_target": 0.5, "kl_horizon": 100, "response_tokens": 6, "temperature": 0.5,
    "missing_end_penalty": 0.0, "whiten_rewards": True, "gamma": 0.5, "lam": 0.2, "ppo_epochs": 2,
    "minibatches": 2, "clip_range": 0.02, "value_clip_range": 5.0, "value_learning_rate": 1e-4,
    "step_kl_limit": 1e-3, "verifier": "exact", "reward": "scores.py:length",
}  # fmt: skip
ELSEWHERE = {
    "kl_limit",
    "reward_model",
    "pattern",
    "schema",
    "overlong_tokens",
    "ngram",
    "rewards",
    "rollouts",
}  # tested where they act: the guard, the roles, the verifiers, the engines


def test_every_declared_key_is_tried():
    """A new key has to be tried here, or where it acts."""
    assert set(key_specs().objectives["ppo"].keys) == set(OTHER) | ELSEWHERE


@pytest.mark.slow
def test_every_key_changes_the_run(make, tmp_path):
    """Three updates with one key changed differ from three without, for every key."""

    def numbers(name, **keys):
        job = make(**{**BASE, **keys}, job_run=tmp_path / name)
        train(job)
        return metrics(job.run)

    plain = numbers("plain")
    assert numbers("again") == plain
    changed = {key: {key: value} for key, value in OTHER.items()}
    changed["verifier"]["reward"] = None
    assert [key for key, keys in changed.items() if numbers(key, **keys) == plain] == []


KEYS = "update: lora, rank: 4, max_steps: 6, micro_batch_size: 4, seq_len: 96, holdout: 0.2"
PLAN = f"""\
name: shop
model: MODEL
data: {{path: pairs.jsonl}}
stages:
  - {{name: sft, objective: sft, learning_rate: 1e-2, {KEYS}}}
  - {{name: rm, objective: rm, learning_rate: 1e-2, {KEYS}}}
  - {{name: ppo, objective: ppo, learning_rate: 1e-3, {KEYS}, grad_accum: 2, response_tokens: 8,
     kl_limit: 100}}
"""


@pytest.mark.smoke
def test_one_stage_at_a_time(tmp_path, monkeypatch, toy_model):
    """--only runs one stage; PPO asks for those it needs by name; a last call does what is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"prompt": f"where is {name}", "chosen": f"{name} is here", "rejected": f"no {name}"}
        for name in (a + b for a in "abcdefgh" for b in "klmno")
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "plan.yaml").write_text(PLAN.replace("MODEL", str(toy_model)))

    def ran(**options):
        return run_plan("plan.yaml", Options(output="run", **options)).record

    with pytest.raises(InputError, match="starts from sft"):
        ran(only="ppo", judge=False)
    statuses = {stage.name: stage.status for stage in ran(only="sft", judge=False).stages}
    assert statuses == {"sft": "done", "rm": "pending", "ppo": "pending"}
    with pytest.raises(InputError, match="is scored by rm"):
        ran(only="ppo", judge=False)
    assert ran(only="ppo", dry_run=True).stages[0].why == "needs rm, which is not trained yet"
    ran(only="rm")
    assert ran(only="ppo", dry_run=True).stages[0].measured.peak_bytes > 0
    done = ran()
    assert [stage.status for stage in done.stages] == ["done"] * 3
    resolved = done.resolved["ppo"]
    assert resolved.start_from.endswith("stages/sft")
    found = (resolved.extra["reward"], resolved.extra["one_base"])
    assert found == ("the reward is the model rm", True)
    assert done.stages[2].evaluation.metrics["reward"].rows == 8
    assert "pair_accuracy" in done.stages[1].evaluation.metrics
    report = report_page(done, folder=Path("run"), plan_text="", metrics=())
    assert "the reward is the model rm" in report


def test_two_parts_come_to_the_result_of_one_process(make, tmp_path, monkeypatch):
    """The training evaluates only on its way, and the judging comes to the same numbers."""
    keys = {"max_steps": 3, "holdout": 0.2, "micro_batch_size": 4}
    one = make(job_run=tmp_path / "one", **keys)
    train(one)
    measured = []
    original = RewardEvaluator._measure

    def measure(self, **keys):
        measured.append(self.job.part)
        return original(self, **keys)

    monkeypatch.setattr(RewardEvaluator, "_measure", measure)
    two = make(job_run=tmp_path / "two", **keys)
    train(replace(two, part=TRAIN))
    assert not measured
    assert trained_record(two.output).is_file()
    train(replace(two, part=JUDGE))
    assert (measured, without_clock(two)) == ([JUDGE, JUDGE], without_clock(one))
    assert not trained_record(two.output).exists()

    def wins(job):
        return [(line["holdout_wins"], line["holdout_losses"]) for line in metrics(job.run)[:-1]]

    assert (len(wins(one)), wins(two)) == (2, wins(one))


def test_processes_share_the_prompts_that_are_answered_on_the_way(make, monkeypatch):
    """Each counts with the others, and an unchanged policy neither wins nor loses."""
    job = replace(make(holdout=0.2), part=TRAIN)
    with Parts("ppo", shown=False) as parts:
        loaded = load_stage(job, PPO(), parts)
    monkeypatch.setattr(objective, "process_count", lambda: 5)
    shares = []
    for rank in range(5):
        monkeypatch.setattr(objective, "process_rank", lambda rank=rank: rank)
        ppo = build_stage(loaded, processes=1).trainer
        shares.append([row.number for row in ppo.held_out])
        ppo.scores_before = ppo.held_out_scores()
        assert ppo.look() == {"holdout_wins": 0, "holdout_losses": 0}
    assert sorted(chain(*shares)) == [row.number for row in loaded.data.holdout]
    assert len(shares[0]) == 3
    monkeypatch.setattr(loop, "over_processes", lambda *_: [7.0, 2.0])
    assert ppo.look() == {"holdout_wins": 7, "holdout_losses": 2}
