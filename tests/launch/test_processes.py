"""Several processes of one run: which of their errors is the cause, and what the person reads."""

import json

import pytest
from msgspec.structs import replace

from advisor.ground.errors import Stopped, TrainingFailed
from advisor.launch import Options, run_plan
from advisor.launch.failure_report import (
    explain_failure,
    first_cause,
    forget_errors,
    read_error,
    smaller_hint,
)
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.record.stage import ErrorRecord, error_of_rank
from tests.launch.conftest import PLAN

MEMORY = ErrorRecord(
    kind="TrainingFailed", what="out of memory: CUDA out of memory", exit_code=5, rank=3, at_s=12.0
)
LOST = ErrorRecord(
    kind="ConnectionLost",
    what="the connection to another process was lost: Connection closed by peer",
    exit_code=5,
    rank=0,
    at_s=11.9,  # clocks and file systems are not exact: the cause may be written later
    lost_others=True,
)
STOP = ErrorRecord(kind="Stopped", what="stopped", exit_code=130, rank=1, at_s=10.0)


def leave(folder, *records):
    for record in records:
        (folder / error_of_rank(record.rank)).write_text(json.dumps(record.to_dict()))


def explained(shop, *, code=1, kills=None):
    entry = entries(read_plan("plan.yaml"))[0]
    return explain_failure(
        entry,
        code=code,
        folder=shop / "stage",
        oom_kills_before=kills,
        smaller=lambda doing: smaller_hint(entry, False),
    )


@pytest.fixture
def stage(shop):
    (shop / "plan.yaml").write_text(PLAN + "launch: {processes: 4, strategy: ddp}\n")
    (shop / "stage").mkdir()
    return shop


def test_the_cause_is_told_and_not_what_followed_from_it():
    """Lost connections and stops follow from another error; of several the earliest counts."""
    assert first_cause([LOST, STOP, MEMORY]).what == "process 3: out of memory: CUDA out of memory"
    later = replace(MEMORY, rank=2, what="later", at_s=13.0)
    assert first_cause([later, LOST, MEMORY]).rank == 3
    assert first_cause([STOP, LOST]) == LOST
    assert first_cause([STOP, replace(STOP, rank=2)]) == STOP


def test_an_error_of_all_processes_names_none():
    """What every process says alike, such as a fault of the plan, needs no number."""
    same = [replace(MEMORY, rank=rank, what="the plan is wrong") for rank in range(4)]
    assert first_cause(same).what == "the plan is wrong"


def test_a_stage_that_names_itself_is_named_once(stage):
    """Most faults of a plan begin with their stage; those of a library do not."""
    for said in ("stage sft: trl: 'adam_beta1' is 9", "stage sft continues from x", "trl is 9"):
        leave(stage / "stage", replace(STOP, what=said, exit_code=2))
        error = explained(stage, code=2)
        assert error.faults[0].headline == f"stage sft: {said}".replace("sft: stage sft", "sft")


KERNEL = ("ended by the kernel's out-of-memory killer", "micro_batch_size=2")
CONNECTION = ("the connection to another process was lost",)


@pytest.mark.parametrize(
    ("left", "code", "kills", "kind", "words"),
    [
        ((LOST, MEMORY, STOP), 1, None, TrainingFailed,
         ("stage sft: process 3: out of memory", "--set stages.sft.micro_batch_size=2")),
        # SIGTERM to all processes is a stop, not an error.
        ((STOP, replace(STOP, rank=0)), 1, None, Stopped, ()),
        # One that is killed while all load leaves no word, and the launcher stops the rest: the run
        # has failed, and nobody asked it to stop.
        ((STOP,), 137, None, TrainingFailed, ("ended by signal 9",)),
        # All that remains are lost connections: did the kernel end a process, of which 8 were ended
        # by now?
        ((LOST, STOP), 1, None, TrainingFailed, CONNECTION),
        ((LOST, STOP), 1, 8, TrainingFailed, CONNECTION),
        ((LOST, STOP), 1, 7, TrainingFailed, KERNEL),
    ],
)  # fmt: skip
def test_what_processes_left_is_explained(stage, monkeypatch, left, code, kills, kind, words):
    """The cause, with the next smaller setting where memory ran out."""
    monkeypatch.setattr("advisor.launch.failure_report.oom_kills", lambda: 8)
    leave(stage / "stage", *left)
    error = explained(stage, code=code, kills=kills)
    assert isinstance(error, kind)
    assert [word for word in words if word not in error.text()] == []


def test_errors_of_an_earlier_attempt_are_forgotten(stage):
    """Files of an earlier attempt with more processes do not pass for this one's."""
    leave(stage / "stage", MEMORY)
    forget_errors(stage / "stage")
    assert read_error(stage / "stage") is None


BREAK_ONE = """\
import os
if os.environ.get("RANK") == "1":
    from trainers.keep import checkpoints

    class OutOfMemoryError(RuntimeError):
        pass

    def fail():
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    checkpoints.random_states = fail
"""


@pytest.fixture
def two(shop, tiny_model, monkeypatch):
    """`two(code, steps, ...)`: a plan for two real processes, which run this code as they start."""
    (shop / "own").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(shop / "own"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def build(code, *, max_steps, save_steps=100, holdout=0):
        plan = PLAN.replace("model: model", f"model: {tiny_model}")
        plan += f"    max_steps: {max_steps}\n    save_steps: {save_steps}\n    seq_len: 128\n"
        plan += f"    holdout: {holdout}\nlaunch: {{processes: 2, strategy: ddp}}\n"
        (shop / "plan.yaml").write_text(plan)
        (shop / "own" / "sitecustomize.py").write_text(code)
        return shop / "out" / "stages" / "sft" / "checkpoints"

    return build


@pytest.mark.slow
@pytest.mark.train
def test_two_real_processes_tell_the_cause_of_the_second(shop, two):
    """It runs out of memory in a checkpoint, which is not complete, until there is one row."""
    checkpoints = two(BREAK_ONE, max_steps=4, save_steps=2)
    with pytest.raises(TrainingFailed) as caught:
        run_plan("plan.yaml", Options(output="out", judge=False))
    said = caught.value.text()
    assert "process 1: out of memory while training: CUDA out of memory" in said
    assert "run again with --set stages.sft." in " ".join(said.split())  # what needs less here
    adjusted = json.loads((shop / "out" / "run.json").read_text())["adjusted"]
    assert [one["micro_batch_size"] for one in adjusted] == [2, 1]
    assert list(checkpoints.rglob("random_state_0.safetensors"))
    assert not list(checkpoints.rglob("complete.json"))


TOGETHER = """\
import os
if os.environ.get("RANK"):
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    forward, groups = torch.nn.Embedding.forward, []

    def together(self, ids):
        if not groups:
            groups.append(dist.new_group(backend="gloo", timeout=timedelta(seconds=60)))
        dist.all_reduce(torch.ones(1), group=groups[0])
        return forward(self, ids)

    torch.nn.Embedding.forward = together
"""
STOP_ONE = """\
import os, signal
if os.environ.get("RANK") == "1":
    from trainers.keep.progress import RunCallback

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    RunCallback.on_step_begin = stop
"""


@pytest.mark.slow
@pytest.mark.train
def test_two_real_processes_stop_after_the_same_step(shop, two, capfd):
    """A signal reaches one of them: both save that step, and no process runs the model alone."""
    checkpoints = two(TOGETHER + STOP_ONE, max_steps=4, holdout=0.4)
    with pytest.raises(Stopped) as caught:
        run_plan("plan.yaml", Options(output="out"))
    assert "stopped after step 2 of 4, with a checkpoint" in caught.value.text()
    assert caught.value.text().endswith("resume with: advise run out")
    (kept,) = checkpoints.glob("*/complete.json")
    assert kept.parent.name == "checkpoint-2"
    (shop / "own" / "sitecustomize.py").write_text(TOGETHER)
    done = run_plan("out")
    assert done.status == "done"
    (trained,) = done.record.stages
    assert trained.evaluation.rows == 2
    assert {check.name for check in trained.checks} >= {"saved-model-is-the-trained-one"}
    said = capfd.readouterr().err
    parts = ["saving the result", "measuring the model before", "checking and measuring"]
    assert sorted(parts, key=said.index) == parts
    lines = (shop / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


HANGS = """\
import os
if os.environ.get("RANK"):
    import time

    from trainers.step import settings
    from trainers.stage import load
    from trainers.say import processes as joining

    joining.JOIN_S = settings.JOIN_S = 6
    if os.environ["RANK"] == "1" and os.environ["HANGS"] == "joining":
        load.connect = lambda device: time.sleep(600)
    elif os.environ["RANK"] == "1":
        from trainers.keep.progress import RunCallback

        RunCallback.on_step_begin = lambda *args, **kwargs: time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.train
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("joining", "not all of the 2 processes joined the run within 0.1 minutes"),
        ("training", "the connection to another process was lost"),
    ],
)
def test_a_process_that_hangs_ends_the_others_in_time(shop, two, monkeypatch, where, words):
    """For good, but the limit is six seconds here: the other one gives up."""
    two(HANGS, max_steps=2)
    monkeypatch.setenv("HANGS", where)
    with pytest.raises(TrainingFailed, match=words):
        run_plan("plan.yaml", Options(output="out"))
    assert json.loads((shop / "out" / "run.json").read_text())["status"] == "failed"
