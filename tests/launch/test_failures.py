"""A trainer that fails: which error is the cause, and the smaller micro-batch after no memory."""

import json

import pytest
from msgspec.structs import replace

from advisor.ground.errors import OutOfMemory, Stopped, TrainingFailed
from advisor.launch import Options, failure_report, run_plan
from advisor.launch.child import Ended
from advisor.launch.failure_report import explain_failure, forget_errors, read_error, smaller_hint
from advisor.plan.entries import entries
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.record.smaller import changes, next_change, smaller_micro_batch
from advisor.record.stage import ErrorRecord, error_of_rank
from advisor.render.report import report_page
from advisor.render.run import summary_lines
from tests.launch.conftest import PLAN, fails, record_of, run
from tests.launch.test_real import shop as real_shop  # noqa: F401  (a fixture)

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


def explained(folder, *, code=1, kills=None):
    """What is told of a stage that left its errors in the folder."""
    (entry,) = entries(read_plan("plan.yaml"))
    smaller = lambda doing: smaller_hint(entry, False)  # noqa: E731
    ended = Ended(code, False)
    return explain_failure(
        entry, ended=ended, folder=folder, oom_kills_before=kills, smaller=smaller
    )


@pytest.fixture
def stage(shop):
    (shop / "plan.yaml").write_text(PLAN + "launch: {processes: 4, strategy: ddp}\n")
    (shop / "stage").mkdir()
    return shop / "stage"


def test_a_stage_that_names_itself_is_named_once(stage):
    """Most faults of a plan begin with their stage; errors of an earlier attempt do not count."""
    for said in ("stage sft: trl: 'adam_beta1' is 9", "stage sft continues from x", "trl is 9"):
        leave(stage, replace(STOP, what=said, exit_code=2))
        error = explained(stage, code=2)
        assert error.faults[0].headline == f"stage sft: {said}".replace("sft: stage sft", "sft")
    forget_errors(stage)
    assert read_error(stage) is None


LATER = replace(MEMORY, rank=2, what="later", at_s=13.0)

LEFT = {  # by the processes, the code of the launcher, and how many the kernel had ended before
    # Lost connections and stops follow from another error, and of several the earliest counts.
    "memory": ((LOST, MEMORY, STOP), 1, None),
    "memory, the other was ended meanwhile": ((MEMORY,), 1, None),
    "the earliest": ((LATER, LOST, MEMORY), 1, None),
    "the same of all": ([replace(MEMORY, rank=n, what="the plan is wrong") for n in range(4)], 1, None),
    "SIGTERM to all processes is a stop, not an error": ((STOP, replace(STOP, rank=0)), 1, None),
    # One that is killed while all load leaves no word, and the launcher ends the rest: the run has
    # failed, and nobody asked it to stop.
    "killed": ((), 137, None),
    "one was ended by SIGTERM while all loaded, and the others missed it": ((LOST,), 143, None),
    # All that remains are lost connections: did the kernel end a process, of which 8 were ended by
    # now?
    "lost, kills not known": ((LOST, STOP), 1, None),
    "lost, none killed": ((LOST, STOP), 1, 8),
    "lost, one killed": ((LOST, STOP), 1, 7),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_processes_left_is_explained(stage, monkeypatch, case, approved):
    """The cause, with the next smaller setting where memory ran out."""
    monkeypatch.setattr("advisor.launch.failure_report.oom_kills", lambda: 8)
    left, code, kills = LEFT[case]
    leave(stage, *left)
    error = explained(stage, code=code, kills=kills)
    approved([type(error).__name__, *error.text().splitlines()])


BREAK_ONE = """\
import os, time
from pathlib import Path
if os.environ.get("RANK") == "1":
    from trainers.keep import checkpoints

    class OutOfMemoryError(RuntimeError):
        pass

    def fail():  # once the other has written its part: it is ended as soon as this one fails
        out = Path(__file__).parent.parent / "out"
        while not list(out.rglob("random_state_0.safetensors")):
            time.sleep(0.05)
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
        (shop / "plan.yaml").write_text(
            PLAN.replace("model: model", f"model: {tiny_model}")
            + f"    max_steps: {max_steps}\n    save_steps: {save_steps}\n    seq_len: 128\n"
            f"    holdout: {holdout}\nlaunch: {{processes: 2, strategy: ddp}}\n"
        )
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
    assert [one["micro_batch_size"] for one in record_of()["adjusted"]] == [2, 1]
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


HUP_WHILE_LOADING = """\
import builtins, os, signal, sys

real = builtins.__import__

class Drops:  # Python drops what is raised in a destructor
    def __del__(self):
        os.kill(os.getpid(), signal.SIGHUP)
        sum(range(10**6))

def importing(name, *rest, **keys):
    if name == "transformers" and "--stage" in sys.argv and os.environ.get("RANK", "1") == "1":
        builtins.__import__ = real
        Drops()
    return real(name, *rest, **keys)

builtins.__import__ = importing
"""


@pytest.mark.train
@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.smoke), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_real_trainer_that_is_asked_to_stop_while_it_loads_stops(shop, two, processes, capfd):
    """A signal in the middle of an import is neither lost nor an error of the library."""
    two(HUP_WHILE_LOADING, max_steps=1)
    plan = (shop / "plan.yaml").read_text()
    (shop / "plan.yaml").write_text(
        plan.replace("processes: 2, strategy: ddp", f"processes: {processes}")
    )
    with pytest.raises(Stopped, match="stopped while loading: no step is lost"):
        run_plan("plan.yaml", Options(output="out"))
    assert (record_of()["status"], Stopped.exit_code) == ("stopped", 130)
    assert "Traceback" not in capfd.readouterr().err


HANGS = """\
import os
if os.environ.get("RANK"):
    import time

    from trainers.step import settings
    from trainers.stage import load
    from trainers.job import machine as joining

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
    assert record_of()["status"] == "failed"


def stage_of(**keys):
    common = {"name": "sft", "objective": "sft", "update": "lora", "learning_rate": 1e-4}
    return Stage(**{**common, **keys})


@pytest.mark.parametrize("mode", ["room-1", "room-killed-1"])
def test_it_is_started_again_until_it_fits(shop, monkeypatch, capfd, mode):
    """By its own word, or killed by the kernel: said with the line for the plan, and recorded."""
    counts = iter(range(100))
    monkeypatch.setattr(failure_report, "oom_kills", lambda: next(counts))
    monkeypatch.setattr("advisor.launch.stages.oom_kills", lambda: next(counts))
    done = run(mode=mode, output="out")
    assert done.status == "done"
    record = record_of()
    assert [
        {key: one[key] for key in ("stage", "at_step", "micro_batch_size", "grad_accum")}
        for one in record["stages"][0]["adjusted"]
    ] == [
        {"stage": "sft", "at_step": 3, "micro_batch_size": size, "grad_accum": 4 // size}
        for size in (2, 1)
    ]
    assert record["adjusted"] == record["stages"][0]["adjusted"]
    line = "out of memory after step 3: going on with micro_batch_size 1 and grad_accum 4"
    assert line in " ".join(" ".join(summary_lines(done)).split())
    assert line in report_page(done.record, folder=done.folder, plan_text="", metrics=[])
    said = capfd.readouterr().err
    for size in (2, 1):
        told = f"for the plan: stages.sft.micro_batch_size={size} stages.sft.grad_accum={4 // size}"
        assert told in said


@pytest.mark.parametrize(
    ("doing", "tries", "hint"),
    [
        ("training", 3, "run again with --set stages.sft.seq_len=512"),
        ("loading", 1, "run again with --set stages.sft.quantization=nf4"),
    ],
)
def test_what_cannot_fit_ends_with_the_change_that_fits(shop, monkeypatch, doing, tries, hint):
    """Down to one row; memory that runs out while loading is no reason for a smaller one."""
    monkeypatch.setenv("STAND_IN_DOING", doing)
    said = []
    assert hint in fails("room-0", OutOfMemory, output="out", say=said.append)
    assert OutOfMemory.exit_code == 5
    assert sum(text.startswith("stage sft (1 of 1)") for text in said) == tries


def test_a_killed_trainer_that_the_kernel_did_not_kill_is_not_started_again(shop, monkeypatch):
    """A person's kill -9 ends the run."""
    monkeypatch.setattr(failure_report, "oom_kills", lambda: 7)
    monkeypatch.setattr("advisor.launch.stages.oom_kills", lambda: 7)
    assert "signal 9" in fails("room-killed-1", output="out")
    assert not (shop / "out" / "stages" / "sft" / "adjusted.json").exists()


def test_what_the_kernel_killed_is_seen_behind_a_launcher(shop, monkeypatch):
    """Only if the kernel has killed something, and the trainer left no other word."""
    monkeypatch.setattr(failure_report, "oom_kills", lambda: 8)

    def ran_out(kills, *codes):
        errors = (explained(shop, code=code, kills=kills) for code in codes)
        return [isinstance(error, OutOfMemory) for error in errors]

    assert ran_out(7, 1, 137, -9) == [True, True, True]
    assert ran_out(7, 0, 130, -15) == [False, False, False]
    assert ran_out(8, 1, 137, -9) == [False, False, False]
    assert ran_out(None, 1, 137, -9) == [False, True, True]
    (shop / "error.json").write_text('{"kind": "InputError", "what": "row 3 has no answer"}')
    assert ran_out(7, 2) == [False]


def test_what_gets_smaller_trains_the_same():
    """Next is the largest divisor of at most half a micro-batch, else a smaller optimizer."""
    assert [smaller_micro_batch(size) for size in (1, 2, 3, 6, 7, 12)] == [None, 1, 1, 3, 1, 6]
    kto = stage_of(objective="kto", micro_batch_size=16, grad_accum=2)
    found = [change.values for change in changes(kto) if "micro_batch_size" in change.values]
    assert [(one["micro_batch_size"], one["grad_accum"]) for one in found] == [(8, 4), (4, 8)]
    smaller = {"adamw_fused": "adamw_8bit", "adamw_split": "adamw_stochastic", "muon": None}
    for name, offered in smaller.items():
        full = stage_of(update="full", optimizer=name, weights_dtype="bfloat16")
        found = [change.values.get("optimizer") for change in changes(full)]
        assert [*filter(None, found)] == [*filter(None, [offered])], name
        assert not any("optimizer" in one.values for one in changes(replace(full, update="lora")))


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        (None, {"gradient_checkpointing": True}),  # nothing is estimated
        (20, {"gradient_checkpointing": True}),
        (7, {"quantization": "nf4"}),
        (2, {"quantization": "nf4"}),
    ],
)
def test_the_change_follows_the_estimate(limit, values):
    """The first that is enough; if none is alone, the one that lowers the peak most."""
    stage = stage_of(micro_batch_size=1, seq_len=1024)

    def peak_of(tried):
        return 10 - tried.gradient_checkpointing - 4 * (tried.quantization is not None)

    keys = {"peak_of": peak_of, "limit_bytes": limit} if limit else {}
    assert next_change(stage, **keys).values == values
    assert next_change(stage, peak_of=lambda _: 10) is None


# Read by every Python that starts: the last process has room to train on few tokens at once.
SHORT_OF_MEMORY = """
import os
if os.environ.get("RANK", "1") == "1":
    import torch
    plain = torch.nn.functional.embedding
    def embedding(tokens, *rest, **keys):
        if tokens.numel() > 220 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(tokens, *rest, **keys)
    torch.nn.functional.embedding = embedding
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_start_again_with_the_smaller_setting(
    real_shop,  # noqa: F811
    monkeypatch,
    capfd,
    processes,
):
    """They end with the weights of a run that was planned so."""
    (real_shop / "site").mkdir()
    (real_shop / "site" / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    plan = (real_shop / "plan.yaml").read_text().replace("steps: 12", "steps: 2")
    plan += f"launch: {{device: cpu, processes: {processes}}}\n"
    asked = plan.replace("micro_batch_size: 2", "micro_batch_size: 8")
    wanted = plan.replace("micro_batch_size: 2", "micro_batch_size: 4\n    grad_accum: 2")
    (real_shop / "wanted.yaml").write_text(wanted)
    planned = run_plan("wanted.yaml", Options(judge=False, output="planned"))
    monkeypatch.setenv("PYTHONPATH", str(real_shop / "site"))
    (real_shop / "plan.yaml").write_text(asked)
    done = run_plan("plan.yaml", Options(judge=False))
    assert done.status == "done"
    (adjusted,) = done.record.adjusted
    assert (adjusted.micro_batch_size, adjusted.grad_accum) == (4, 2)
    who = "process 1: " if processes == 2 else ""
    assert f"{who}out of memory while training" in adjusted.why
    assert "for the plan: stages.sft.micro_batch_size=4" in capfd.readouterr().err
    found, expected = (
        (one.folder / "stages" / "sft" / "adapter_model.safetensors").read_bytes()
        for one in (done, planned)
    )
    assert found == expected
