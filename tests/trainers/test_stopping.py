"""A trainer that is asked to stop: the step is finished and saved, and the next call goes on."""

import os
import re
import signal
from pathlib import Path

import pytest

from advisor.ground.signals import receiving
from tests.trainers.runs import write_rows
from tests.trainers.test_sft import plan_file
from trainers.__main__ import main
from trainers.job import job as process
from trainers.job.files import read_json
from trainers.keep.progress import LARGEST_SHARE, RunCallback, SaveClock
from trainers.stage import load

KEYS = {"max_steps": 4, "save_steps": 100, "dropout": 0.1, "holdout": 0}


def train(plan: Path, run: Path, *flags: str) -> int:
    return main(["sft", str(plan), "--stage", "sft", "--run", str(run), "--no-judge", *flags])


def signal_in_step(step, patch, *numbers):
    """This process gets the signals while a step is computed."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    patch.setattr(RunCallback, "on_step_begin", on_step_begin, raising=False)


def checkpoints(stage: Path) -> list[str]:
    return sorted(path.parent.name for path in stage.glob("checkpoints/*/complete.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model):
    """The adapter of a run that nobody stopped, and its plan."""
    folder = tmp_path_factory.mktemp("whole")
    rows = [
        {"prompt": f"Where is {n}?", "completion": f"Order {n} is on its way."} for n in range(24)
    ]
    data = write_rows(folder / "rows.jsonl", rows)
    plan = plan_file(folder, tiny_model, data, **KEYS)
    assert train(plan, folder / "run") == 0
    return plan, (folder / "run" / "stages" / "sft" / "adapter_model.safetensors").read_bytes()


def said(stage: Path) -> str:
    """What error.json says of a stop."""
    error = read_json(stage / "error.json")
    assert error["exit_code"] == 130
    return error["what"]


def test_a_stopped_run_saves_and_goes_on_to_the_same_weights(tmp_path, whole, monkeypatch, capsys):
    """The step is finished and saved, exit code 130. The next call ends with the weights of an
    unbroken run, to the bit.
    """
    plan, weights = whole
    stage = tmp_path / "stages" / "sft"
    with monkeypatch.context() as patch:
        together = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # are one request
        signal_in_step(2, patch, *together)
        assert train(plan, tmp_path) == 130
    assert checkpoints(stage) == ["checkpoint-2"]
    assert said(stage) == "stopped after step 2 of 4, with a checkpoint"
    assert train(plan, tmp_path) == 0
    assert "resuming after step 2" in capsys.readouterr().err
    assert (stage / "adapter_model.safetensors").read_bytes() == weights
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_ends_at_once(tmp_path, whole, monkeypatch):
    """A signal that comes later than together with the first one does not wait for a checkpoint."""
    monkeypatch.setattr(process, "TOGETHER_S", 0.0)
    signal_in_step(2, monkeypatch, signal.SIGTERM, signal.SIGTERM)
    assert train(whole[0], tmp_path) == 130
    stage = tmp_path / "stages" / "sft"
    assert checkpoints(stage) == []
    assert "steps since the last checkpoint are lost" in said(stage)


def test_outside_of_the_steps_a_stop_is_at_once(tmp_path, whole, monkeypatch):
    """While the model is loaded there is nothing to save; the message says so."""
    monkeypatch.setattr(
        load, "load_tokenizer", lambda job, **_: os.kill(os.getpid(), signal.SIGHUP)
    )
    assert train(whole[0], tmp_path) == 130
    assert said(tmp_path / "stages" / "sft") == "stopped while it was loading: no step is lost"


def test_a_stop_in_the_last_step_leaves_the_checks_to_the_next_call(tmp_path, whole, monkeypatch):
    """The last step is saved as always; the next call checks the result and trains nothing."""
    plan, weights = whole
    with monkeypatch.context() as patch:
        signal_in_step(4, patch, signal.SIGTERM)
        assert train(plan, tmp_path) == 130
    stage = tmp_path / "stages" / "sft"
    assert not (stage / "result.json").exists()
    assert "the result is not checked yet" in said(stage)
    assert train(plan, tmp_path) == 0
    assert (stage / "adapter_model.safetensors").read_bytes() == weights


def test_a_signal_that_the_parent_ignores_stays_ignored(tmp_path, whole, monkeypatch):
    """Under nohup a closed terminal changes nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_in_step(2, monkeypatch, signal.SIGHUP)
        assert train(whole[0], tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.light
def test_a_forked_reader_of_data_survives_the_first_signal():
    """Who signals all processes must not take the rows away from the step that is finished; the
    second signal ends the reader, which torch may have to.
    """
    read, write = os.pipe()
    with receiving(process.StopRequest().receive):
        reader = os.fork()
        if reader == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(write, b"alive")
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    _, status = os.waitpid(reader, 0)
    assert os.read(read, 9) == b"alive"
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_stop_in_the_second_task_keeps_the_first(tmp_path, whole, monkeypatch):
    """Several tasks in one process: what is finished stays, the task at work is saved, and the rest
    waits for the next call.
    """
    names = ("hr", "it", "law")
    text, data = whole[0].read_text(), whole[0].parent / "rows.jsonl"
    each = "".join(f"  - {{name: {name}, data: {{path: {data}}}}}\n" for name in names)
    plan = tmp_path / "plan.yaml"
    plan.write_text(re.sub(r"^data:.*\n(  .*\n)*", "", text, flags=re.M) + f"tasks:\n{each}")
    begun = []
    original = RunCallback.on_train_begin

    def on_train_begin(self, *args, **kwargs):
        original(self, *args, **kwargs)
        begun.append(self.job.task)
        if self.job.task == "it":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunCallback, "on_train_begin", on_train_begin)
    tasks = [f"--task={name}" for name in names]
    assert train(plan, tmp_path / "run", *tasks) == 130
    stages = tmp_path / "run" / "stages"
    assert begun == ["hr", "it"]
    assert (stages / "sft-hr" / "result.json").is_file()
    assert checkpoints(stages / "sft-it") == ["checkpoint-1"]
    assert not (stages / "sft-law").exists()


# --------------------------------------------------------------------------- when to save


class Clock:
    """A run whose steps and saves take so long, on a clock of its own."""

    def __init__(self, *, step_s: float, save_s: float, steps: int, **clock):
        self.s = 0.0
        saves = SaveClock(**clock, now_s=lambda: self.s)
        self.saved = []
        for step in range(1, steps + 1):
            self.s += step_s
            if saves.is_due(step):
                self.s += save_s
                saves.begin(save_s)
                self.saved.append(step)
        self.share = len(self.saved) * save_s / self.s


@pytest.mark.light
def test_checkpoints_come_after_steps_or_minutes_whichever_is_first():
    """`save_steps: 50`, `save_minutes: 10`: steps of 6 s reach 50 first, steps of 60 s the 10
    minutes; without minutes, steps alone count.
    """
    fast = Clock(step_s=6, save_s=1, steps=200, every=50, is_asked=True, minutes=10.0)
    slow = Clock(step_s=60, save_s=1, steps=49, every=50, is_asked=True, minutes=10.0)
    assert fast.saved == [50, 100, 150, 200]
    assert slow.saved == [10, 20, 30, 40]
    assert Clock(step_s=60, save_s=1, steps=49, every=50, is_asked=True, minutes=None).saved == []


@pytest.mark.light
def test_saving_takes_at_most_its_share_unless_the_plan_names_the_steps():
    """A save of five minutes stretches ten minutes to a hundred; named steps are kept."""
    slow = {"step_s": 60, "save_s": 300, "steps": 2000, "every": 20, "minutes": 10.0}
    assert set(range(20, 2001, 20)) <= set(Clock(**slow, is_asked=True).saved)
    stretched = Clock(**slow, is_asked=False)
    assert stretched.saved[:3] == [10, 105, 200]
    assert stretched.share < LARGEST_SHARE * 1.05
    short = Clock(step_s=0.1, save_s=0.1, steps=20, every=2, is_asked=False, minutes=10.0)
    assert short.saved == list(range(2, 21, 2)), "ten in a run that nobody waits for"


def test_a_run_saves_by_the_clock(tmp_path, tiny_model, whole):
    """A run whose steps take longer than `save_minutes` writes checkpoints without `save_steps`."""
    rows = whole[0].parent / "rows.jsonl"
    plan = plan_file(tmp_path, tiny_model, rows, **{**KEYS, "max_steps": 2, "save_minutes": 1e-6})
    assert train(plan, tmp_path / "run") == 0
    assert checkpoints(tmp_path / "run" / "stages" / "sft") == ["checkpoint-1", "checkpoint-2"]
