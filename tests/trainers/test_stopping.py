"""A stage that stops and resumes, starts again with less memory, or runs in two parts."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from advisor.ground.errors import InputError, Stopped, TrainingFailed
from advisor.ground.signals import receiving
from advisor.record.files import trained_record
from advisor.record.stage import Adjusted, Adjustment, Times
from tests.trainers.alignment import REWARD, SHORT, keys_of
from tests.trainers.conftest import plan_file
from tests.trainers.runs import (
    break_at,
    chat,
    losses,
    result_of,
    same,
    trained,
    weights,
    write_rows,
)
from trainers import grpo, sft
from trainers.__main__ import main, parse_arguments, part_of
from trainers.evaluation.generation import TextEvaluator
from trainers.job.files import read_json, write_json
from trainers.job.job import JUDGE, TRAIN, StopRequest
from trainers.job.libraries import check_versions, lack_of_memory
from trainers.keep import progress
from trainers.keep.progress import LARGEST_SHARE, RunCallback, SaveClock, Watched
from trainers.keep.results import read_trained, together

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
    """The adapter of a run that nobody stopped, its plan, and the tokens that it counted."""
    folder = tmp_path_factory.mktemp("whole")
    rows = (chat(f"Where is {n}?", f"Order {n} is on its way.") for n in range(24))
    plan = plan_file(folder, tiny_model, write_rows(folder / "rows.jsonl", rows), **KEYS)
    assert train(plan, folder / "run") == 0
    stage = folder / "run" / "stages" / "sft"
    counted = read_json(stage / "result.json")["measured"]
    return plan, (stage / "adapter_model.safetensors").read_bytes(), counted


@pytest.mark.parametrize(
    ("step", "signals", "said"),
    [
        # Further signals change nothing.
        (2, [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM],
         "stopped after step 2 of 4, with a checkpoint"),
        # The next call checks the result and trains nothing.
        (4, [signal.SIGTERM], "the result is not checked yet"),
    ],
    ids=["in a step", "in the last step"],
)  # fmt: skip
def test_a_stopped_run_saves_and_goes_on_to_the_same_weights(
    step, signals, said, tmp_path, whole, monkeypatch, capsys
):
    """The step is finished, the exit code is 130, and the next call ends equal to the bit. Time and
    tokens are those of both."""
    plan, weights, counted = whole
    stage = tmp_path / "stages" / "sft"
    with monkeypatch.context() as patch:
        signal_in_step(step, patch, *signals)
        assert train(plan, tmp_path) == 130
    assert checkpoints(stage) == [f"checkpoint-{step}"]
    error = read_json(stage / "error.json")
    assert error["exit_code"] == 130
    assert said in error["what"]
    assert not (stage / "result.json").exists()
    capsys.readouterr()
    assert train(plan, tmp_path) == 0
    assert f"resuming after step {step}" in capsys.readouterr().err
    assert (stage / "adapter_model.safetensors").read_bytes() == weights
    found = read_json(stage / "result.json")
    for key in ("tokens", "computed_tokens", "learned_tokens", "largest_batch_tokens"):
        assert found["measured"][key] == counted[key]
    (before,) = (stage / "checkpoints").glob(f"checkpoint-{step}/complete.json")
    took_s = read_json(before)["earlier"]["took_s"]
    assert all(found["times"][part] > took_s[part] > 0 for part in ("load_s", "before_s"))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert found["times"]["train_s"] > next(x["elapsed_s"] for x in lines if x["step"] == step)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
    """The step that is finished needs its rows; a second signal ends the reader."""
    read, write = os.pipe()
    with StopRequest().in_steps():
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
    """The task at work is saved, and the rest waits for the next call."""
    data, plan = whole[0].parent / "rows.jsonl", tmp_path / "plan.yaml"
    tasks = [f"  - {{name: {name}, data: {{path: {data}}}}}\n" for name in ("hr", "it", "law")]
    text = re.sub(r"^data:.*\n(  .*\n)*", "", whole[0].read_text(), flags=re.M)
    plan.write_text("".join([text, "tasks:\n", *tasks]))
    begun = []
    original = RunCallback.on_train_begin

    def on_train_begin(self, *args, **kwargs):
        original(self, *args, **kwargs)
        begun.append(self.job.task)
        assert len(self.job.process.bases) == 1  # read once for all tasks
        if self.job.task == "it":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunCallback, "on_train_begin", on_train_begin)
    assert train(plan, tmp_path / "run", "--task=hr", "--task=it", "--task=law") == 130
    stages = tmp_path / "run" / "stages"
    assert begun == ["hr", "it"]
    assert (stages / "sft-hr" / "result.json").is_file()
    assert checkpoints(stages / "sft-it") == ["checkpoint-1"]
    assert not (stages / "sft-law").exists()


def test_a_stop_waits_until_the_answers_of_several_steps_are_used(align, tmp_path, monkeypatch):
    """A run that resumes between two of them would write others, and end with other weights."""
    keys = {**SHORT, "max_steps": 4, "save_steps": 1, "trl": {"num_iterations": 2}}

    def job(name):
        return align("grpo", **keys, job_judge=False, job_run=tmp_path / name)

    whole, stopped = job("whole"), job("stopped")
    grpo.train(whole)
    with monkeypatch.context() as patch, receiving(signal.SIG_DFL):
        signal_in_step(1, patch, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped after step 2 of 4"):
            grpo.train(stopped)
    assert checkpoints(stopped.output) == ["checkpoint-2"]
    grpo.train(job("stopped"))
    assert same(weights(stopped), weights(whole))


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
    """Steps of 6 s reach `save_steps: 50` first, steps of 60 s reach `save_minutes: 10`."""
    for step_s, steps, minutes, saved in (
        (6, 200, 10.0, [50, 100, 150, 200]),
        (60, 49, 10.0, [10, 20, 30, 40]),
        (60, 49, None, []),
    ):
        keys = {"steps": steps, "every": 50, "is_asked": True, "minutes": minutes}
        assert Clock(step_s=step_s, save_s=1, **keys).saved == saved


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


NO_ROOM = "CUDA out of memory. Tried to allocate 20.00 GiB"


def adjust(job, rows):
    """Leave what the launcher leaves before it starts the stage again."""
    job.output.mkdir(parents=True, exist_ok=True)
    size = job.entry.stage.effective_batch_size
    change = Adjustment(micro_batch_size=rows, grad_accum=size // rows)
    write_json(job.output / "adjusted.json", Adjusted(adjusted=(change,)).to_dict())


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        ("sft", {"dropout": 0.1}),
        ("sft", {"packing": True, "seq_len": 96}),
        ("dpo", {}),
        ("kto", {}),
        ("rm", {}),
        ("grpo", {**SHORT, "beta": 0.1}),
        pytest.param("orpo", {}, marks=pytest.mark.slow),
        pytest.param("rloo", SHORT, marks=pytest.mark.slow),
    ],
    ids=["sft", "packed", "dpo", "kto", "rm", "grpo", "orpo", "rloo"],
)
def test_a_stage_that_starts_again_trains_as_if_it_was_planned_so(
    align, make, tmp_path, capsys, objective, keys
):
    """Half the micro-batch with twice the accumulation trains the same, but for drawn answers."""
    (tmp_path / "own.py").write_text(REWARD)
    keys = {**keys, "max_steps": 2, "warmup": 0.0, "job_judge": False}
    keys.pop("micro_batch_size", None)

    build = make if objective == "sft" else partial(align, objective)
    planned, again = (
        build(**keys, micro_batch_size=size, grad_accum=16 // size, job_run=tmp_path / name)
        for size, name in ((4, "planned"), (8, "again"))
    )
    trained(planned)
    adjust(again, 4)
    capsys.readouterr()
    result = trained(again)
    assert weights(again).keys() == weights(planned).keys()
    assert len(losses(again)) == len(losses(planned)) == 2
    if objective not in ("grpo", "rloo"):
        assert same(weights(again), weights(planned))
        assert losses(again) == losses(planned)
    said = "micro_batch_size is 4 instead of 8, with the same effective batch size"
    assert said in capsys.readouterr().err
    assert result["resolved"]["trl"]["per_device_train_batch_size"] == 4


@pytest.mark.parametrize("grouped", [False, True])
def test_it_resumes_from_the_checkpoint_of_the_larger_micro_batch(
    make, tmp_path, monkeypatch, capsys, grouped
):
    """The steps to come keep their rows, grouped or not: weights are equal but for rounding."""
    keys = {"micro_batch_size": 8, "grad_accum": 1, "max_steps": 6, "save_steps": 2}
    whole, broken = (
        make(**keys, group_by_length=grouped, job_judge=False, job_run=tmp_path / name)
        for name in ("whole", "broken")
    )
    sft.train(whole)
    break_at(3, broken, monkeypatch)
    adjust(broken, 2)
    capsys.readouterr()
    sft.train(broken)
    assert "resuming after step 2" in capsys.readouterr().err
    torch.testing.assert_close(weights(broken), weights(whole), rtol=0, atol=1e-5)


def test_another_plan_begins_with_its_own_micro_batch(make, tmp_path, capsys):
    """What was left beside another effective batch size is of another plan."""
    adjust(make(micro_batch_size=8, grad_accum=4), 4)
    sft.train(make(micro_batch_size=8, grad_accum=1, max_steps=2, job_judge=False))
    assert "micro_batch_size is" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(NO_ROOM),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        RuntimeError("NCCL error: Cuda failure 2 'out of memory'"),
        RuntimeError("unable to mmap 538 bytes from file <model>: Cannot allocate memory (12)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
    ids=lambda error: str(error)[:24],
)
def test_memory_runs_out_in_many_words(error):
    """Of torch, its libraries and the system; other errors are none."""
    assert lack_of_memory(error)
    outer = RuntimeError("in a worker")
    outer.__cause__ = error
    assert "in a worker" not in lack_of_memory(outer)
    assert not lack_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not lack_of_memory(OSError(28, "No space left on device"))


CLOCK = ("times", "duration_s", "measured", "launch")  # and memory
BOTH = ["before", "after"]
JUDGED = {"dropout": 0.1, "holdout": 0.25, "keep": "best", "max_steps": 4}


@pytest.fixture
def measured(monkeypatch):
    """What evaluators measured, in order: (part of the stage, before or after)."""
    seen, original = [], TextEvaluator._measure

    def measure(self, *, bounded=True):
        seen.append((self.job.part, "before" if bounded else "after"))
        return original(self, bounded=bounded)

    monkeypatch.setattr(TextEvaluator, "_measure", measure)
    return seen


def in_part(job, part):
    return replace(job, part=part)


def without_clock(job):
    """The result without what differs between two runs of the same: the clock and the folder."""
    text = json.dumps({key: one for key, one in result_of(job).items() if key not in CLOCK})
    found = json.loads(text.replace(str(job.run), "RUN"))
    found["evaluation"].pop("seconds")
    found.get("held_out", {}).pop("seconds", None)
    # Evaluating leaves its padding in the tokenizer of the process that also saves.
    found["files"].pop("tokenizer.json")
    return found


def test_two_parts_come_to_the_result_of_one_process(make, tmp_path, measured):
    """The training measures nothing beside its steps, and the base is measured once in all."""
    one = make(job_run=tmp_path / "one", **JUDGED)
    trained(one)
    measured.clear()
    two = make(job_run=tmp_path / "two", **JUDGED)
    sft.train(in_part(two, TRAIN))
    assert not measured
    assert not (two.output / "result.json").exists()
    record = read_json(trained_record(two.output))
    assert (record["status"], record["processes"], record["evaluation"]) == ("running", 1, None)

    with pytest.MonkeyPatch.context() as patch:
        gone = Mock(side_effect=TrainingFailed("the server of a reward is gone"))
        patch.setattr(TextEvaluator, "evaluate_tuned", gone)
        with pytest.raises(TrainingFailed, match="is gone"):
            sft.train(in_part(two, JUDGE))
    assert trained_record(two.output).is_file()  # judging goes on, training does not
    sft.train(in_part(two, JUDGE))
    assert measured == [(JUDGE, "before"), (JUDGE, "after")]
    assert without_clock(two) == without_clock(one)
    assert not trained_record(two.output).parent.exists()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where measurements of a base are kept, as outside of tests."""
    monkeypatch.delenv("ADVISE_RUNS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "finetune-advisor" / "base"


def test_a_base_is_measured_once_for_the_same_rows_and_settings(
    make, tmp_path, measured, kept, monkeypatch, capsys
):
    """The next run says when it was measured and with what, on the screen and in its record; other
    rows, dtypes or versions, a damaged file and ADVISE_RUNS=off have it measured.
    """

    def run(name, **keys):
        measured.clear()
        given = {**JUDGED, "max_steps": 2, **keys}
        found = trained(make(job_run=tmp_path / name, **given))["evaluation"]
        return found, [when for _, when in measured]

    first, when = run("first")
    assert (when, first.get("kept_base")) == (["before", "after"], None)
    (path,) = kept.iterdir()
    capsys.readouterr()
    again, when = run("again", learning_rate=3e-3, rank=4)
    assert when == ["after"]
    of_base = ("holdout_loss_before", "rows")
    assert [again[key] for key in of_base] == [first[key] for key in of_base]
    assert [one["base"] for one in again["samples"]] == [one["base"] for one in first["samples"]]
    about = again["kept_base"]
    assert (about["device"], about["versions"]["torch"]) == ("cpu", metadata.version("torch"))
    said = capsys.readouterr().err
    assert f"measured on {about['at']} (cpu, torch" in said
    assert "not measured again (ADVISE_RUNS=off measures it)" in said
    assert run("rows", holdout=0.4)[1] == run("dtype", weights_dtype="bfloat16")[1] == BOTH
    with monkeypatch.context() as patch:
        older = {**check_versions(quantized=False), "torch": "2.9.1"}
        patch.setattr("trainers.stage.load.check_versions", lambda **_: older)
        assert run("versions")[1] == BOTH
    path.write_text(path.read_text().replace("0.", "1.", 1))
    assert run("damaged")[1] == BOTH
    monkeypatch.setenv("ADVISE_RUNS", "off")
    assert run("off")[1] == BOTH


def test_a_question_on_the_way_changes_nothing(make, tmp_path, kept, monkeypatch, capsys):
    """A held-out question is answered while it trains, and beside the base's answer in the end; the
    weights are those of a run without it.
    """
    keys = {"dropout": 0.1, "holdout": 0.25, "max_steps": 6, "early_stopping": 9}
    monkeypatch.setattr(progress, "LARGEST_SHARE", math.inf)
    asked = make(job_run=tmp_path / "asked", **keys)
    trained(asked)
    said = capsys.readouterr().err
    assert re.findall(r"^  step (\d) +\S", said, re.M) == ["1", "2", "3", "4", "5"]
    assert re.search(r"^  asked +\S.*\n  before +\S.*\n  now +\S", said, re.M)
    monkeypatch.setattr("trainers.stage.run.watched_of", lambda *_: None)
    alone = make(job_run=tmp_path / "alone", **keys)
    trained(alone)
    assert "  asked " not in capsys.readouterr().err
    assert same(weights(asked), weights(alone))


def test_a_question_takes_a_twentieth_of_the_time_at_most():
    """About ten times, less often where an answer takes long, and once more in the end."""
    watched = Watched("How long?", "No idea.", lambda: "Two days.")
    asked = []
    for step in range(1, 101):
        if watched.is_due(step, 100, elapsed_s=float(step)):
            watched.ask(step)
            asked.append(step)
            watched.last_s, watched.took_s = 1.0, float(len(asked))
    assert asked == [10, 40, 60, 80, 100]
    assert watched.lines(now="Two\ndays.") == "  asked    How long?\n  now      Two days."


def test_what_the_disk_changed_is_noticed_and_saved_again(make, measured, capsys):
    """The next attempt saves the checkpoint's weights; `--no-judge` only loads and compares."""
    job = make(job_judge=False)
    sft.train(in_part(job, TRAIN))
    path = job.output / "adapter_model.safetensors"
    good = path.read_bytes()
    save_file(
        {name: tensor * 1.5 for name, tensor in load_file(path).items()}, path, {"format": "pt"}
    )
    with pytest.raises(TrainingFailed, match="is not the trained model"):
        sft.train(in_part(job, JUDGE))
    assert not trained_record(job.output).exists()
    capsys.readouterr()
    sft.train(in_part(job, TRAIN))
    said = capsys.readouterr().err
    assert "resuming after step 3 of 3" in said
    assert "training: " not in said
    assert path.read_bytes() == good
    result = trained(in_part(job, JUDGE))
    assert not measured
    assert (result["status"], result["evaluation"]) == ("done", None)
    checks = {check["name"]: check["ok"] for check in result["checks"]}
    assert list(checks)[:2] == ["saved-model-is-the-trained-one", "changes-the-base-model"]
    assert all(checks.values())


@pytest.mark.parametrize("what", ["settings", "answer", "record"])
def test_a_training_that_does_not_belong_to_the_plan_is_forgotten(make, capsys, what):
    """A record of other settings, or a damaged one, is not judged: the stage is trained again."""
    job = make(job_judge=False, max_steps=1)
    sft.train(in_part(job, TRAIN))
    record = trained_record(job.output)
    if what == "settings":
        job = make(job_judge=False, max_steps=1, learning_rate=5e-3)
    elif what == "answer":
        record.with_name("answer.safetensors").write_bytes(b"")
    else:
        record.write_text("{")
    assert (read_trained(job.output) is None) == (what != "settings")
    sft.train(in_part(job, JUDGE))
    assert "again" in capsys.readouterr().err
    assert not record.parent.exists()
    assert not (job.output / "result.json").exists()


def test_several_processes_train_and_one_judges(make, monkeypatch):
    """torchrun's processes train without being told; judging is refused to several."""

    def part(*flags):
        command = ("sft", "plan.yaml", "--stage", "sft", "--run", "out")
        return part_of(parse_arguments([*command, *flags]))

    assert (part(), part("--part", "judge"), part("--part", "train")) == (None, JUDGE, TRAIN)
    assert make().part is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (part(), make().part) == (None, TRAIN)
    with pytest.raises(InputError, match="for one process, and there are 2"):
        part("--part", "judge")


def test_the_times_of_both_parts_are_added():
    """Both load a model; only one trains, and only one measures the base."""
    one = Times(total_s=9.0, load_s=4.0, train_s=5.0)
    other = Times(total_s=4.5, load_s=3.0, before_s=1.0, after_s=0.5)
    both = Times(total_s=13.5, load_s=7.0, before_s=1.0, train_s=5.0, after_s=0.5)
    assert (together(one, other), together(None, other)) == (both, other)


@pytest.mark.long
@pytest.mark.parametrize("update", ["lora", "adapter", "prefix", "full"])
@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "simpo", "rm", "grpo", "rloo", "ppo"])
def test_every_objective_comes_to_the_same_in_two_parts(objective, update, align, trained_once):
    """Whatever is trained, the judging builds it again and finds what one process finds."""
    two = align(objective, **keys_of(objective, update))
    train = import_module(f"trainers.{objective}").train
    train(in_part(two, TRAIN))
    train(in_part(two, JUDGE))
    assert without_clock(two) == without_clock(trained_once(objective, update))
