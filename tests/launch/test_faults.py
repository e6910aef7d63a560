"""Runs killed, interrupted or started twice leave nothing stale; a trainer that fails is explained."""

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.commands.training import follow
from advisor.ground.errors import InputError, MachineNotReady, OutOfMemory, Stopped, TrainingFailed
from advisor.ground.files import Disk
from advisor.ground.progress import View, Wait, write_view
from advisor.ground.types import ModelShape
from advisor.launch import Options, failure_report, run_plan
from advisor.launch.checks.packages import package_faults
from advisor.launch.child import Ended
from advisor.launch.expected import disk_need
from advisor.launch.failure_report import explain_failure, forget_errors, read_error, smaller_hint
from advisor.launch.folder import RunFolder, RunIsLive, read_live, refuse_live
from advisor.launch.record_keeper import RecordKeeper
from advisor.plan.entries import entries
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.record.smaller import changes, next_change, smaller_micro_batch
from advisor.record.stage import ErrorRecord, error_of_rank
from advisor.render.report import report_page
from advisor.render.run import summary_lines
from tests.launch.conftest import (
    FULL,
    MACHINE,
    PLAN,
    alive,
    child_of,
    command,
    fails,
    record_of,
    refused,
    run,
    start,
    wait_for,
)


def test_a_second_run_is_refused_and_a_killed_one_takes_its_trainer_along(at_work):
    """Exit code 4 names the run at work; a killed one leaves no trainer and no stale lock."""
    parent, child = at_work()
    told = (
        f"this run is at work already (process {parent.pid})\n  `advise run '{Path('out').resolve()}'`"
        f" shows how far it is; to stop it, with its last step saved: kill {parent.pid}"
    )
    assert told in refused(MachineNotReady, output="out")
    assert alive(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child), seconds=5)
    assert record_of()["status"] == "running"
    began = time.monotonic()
    done = run(output="out")
    assert time.monotonic() - began < 60
    assert (done.status, done.record.attempts) == ("done", 2)
    assert done.record.resolved["sft"].extra["resumed_from"] is True


@pytest.mark.train
def test_a_launcher_that_is_killed_takes_its_workers_along(shop):
    """A plan with two processes starts a trainer each; they end when `advise run` is killed."""
    pytest.importorskip("accelerate")
    (shop / "plan.yaml").write_text(PLAN + "launch: {processes: 2}\n")
    parent = start(shop, "wait", output="out")
    stage = shop / "out" / "stages" / "sft"
    wait_for(lambda: all((stage / f"seen{rank}.json").exists() for rank in (0, 1)))
    workers = [json.loads((stage / f"seen{rank}.json").read_text())["pid"] for rank in (0, 1)]
    about = Path(f"/proc/{workers[0]}/stat").read_text().rpartition(")")[2].split()
    workers.append(int(about[1]))  # the launcher that started them
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=40)


def signals(shop):
    """Which signals the trainer has heard."""
    return (shop / "out" / "stages" / "sft" / "signals").read_text().split()


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "advise"), (signal.SIGTERM, "advise"), (signal.SIGHUP, "advise"),
        (signal.SIGTERM, "trainer"),
    ],
)  # fmt: skip
def test_a_stop_reaches_the_trainer_once_and_is_recorded(shop, at_work, number, whom):
    """Each way to stop is heard once, with status stopped and exit code 130."""
    parent, child = at_work()
    os.kill(parent.pid if whom == "advise" else child, number)
    _, err = parent.communicate(timeout=20)
    assert parent.returncode == 130, err
    assert "\n  resume with: advise run out\n" in err
    assert signals(shop) == ["15"]
    assert not alive(child)
    assert [record_of()["status"], record_of()["stages"][0]["status"]] == ["stopped"] * 2
    done = run(output="out")
    assert done.status == "done"
    assert done.record.resolved["sft"].extra["resumed_from"] is True


IN_STEPS = "stopped after step 3 of 9, with a checkpoint"


@pytest.mark.parametrize(
    ("part", "whom", "numbers", "said"),
    [
        ("dropping", "trainer", "HUP", "stopped while loading: no step is lost"),
        ("blaming", "trainer", "HUP", "stopped while loading: no step is lost"),
        ("judging", "trainer", "TERM TERM", "stopped while evaluating: no step is lost"),
        ("judging", "advise", "HUP HUP", "stopped while evaluating: no step is lost"),
        ("steps", "advise", "HUP HUP TERM", IN_STEPS),
        ("steps", "both", "TERM", IN_STEPS),
    ],
)
def test_a_stop_is_never_lost_nor_another_error(at_work, part, whom, numbers, said):
    """Whatever the code does that a signal interrupts, and however many signals come."""
    parent, child = at_work(f"recipe-{part}")
    for name in numbers.split():
        for pid in {"advise": [parent.pid], "trainer": [child]}.get(whom, [parent.pid, child]):
            os.kill(pid, signal.Signals[f"SIG{name}"])
        time.sleep(0.01)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 130, err
    assert said in err
    assert "resume with: advise run out" in err
    assert "Traceback" not in err
    assert not alive(child)
    stage = record_of()["stages"][0]
    assert (record_of()["status"], stage["status"]) == ("stopped", "stopped")
    assert said in stage["error"]["what"]


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_terminal_stops_the_trainer_once_and_the_record_says_so(shop, is_closed):
    """A closed terminal takes no more text, and the trainer, in its own session, still saves."""
    pexpect = pytest.importorskip("pexpect")
    prelude = "from advisor.ground.terminal import show_streams\nshow_streams()"
    (python, *words), env = command("wait", prelude=prelude, output="out")
    terminal = pexpect.spawn(python, words, cwd=str(shop), env=env, timeout=20)
    child = child_of(shop)
    _ = os.close(terminal.child_fd) if is_closed else terminal.sendintr()
    # Behind it there is room for the trainer's bar, which is drawn from the cursor up.
    assert is_closed or terminal.expect(r"\r\nstopping: [^\n]*\n[^\n]*end at once\)(\r\n){4}") == 0
    wait_for(lambda: not alive(child) and record_of()["status"] == "stopped")
    assert signals(shop) == ["15"]
    assert is_closed or terminal.wait() == 130


def test_a_second_ctrl_c_ends_a_stubborn_trainer(shop, at_work):
    """A trainer that ignores the first stop is ended by the second."""
    parent, child = at_work(extra_env={"STAND_IN_STUBBORN": "1"})
    parent.send_signal(signal.SIGINT)
    wait_for((shop / "out" / "stages" / "sft" / "signals").exists)
    time.sleep(0.2)
    assert alive(child)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=20) == 130
    assert not alive(child)
    assert record_of()["status"] == "stopped"


def test_nohup_stays_nohup(at_work):
    """A run that was told to ignore the closing of the terminal ignores it."""
    parent, child = at_work(prelude="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    parent.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert parent.poll() is None
    assert alive(child)


def test_a_trainer_killed_from_outside_fails_and_can_go_on(at_work):
    """kill -9 of the trainer alone is told with the next smaller setting; the next call resumes."""
    parent, child = at_work()
    os.kill(child, signal.SIGKILL)
    _, err = parent.communicate(timeout=20)
    assert parent.returncode == 5
    assert "--set stages.sft.micro_batch_size=2" in err
    assert "another --output DIR" in err
    assert (record_of()["status"], run(output="out").status) == ("failed", "done")


def test_a_stop_while_the_first_record_is_written_is_recorded(shop, monkeypatch):
    """run.json does not go on to say that the run is running."""
    save = RecordKeeper.save

    def stopped(keeper):
        monkeypatch.setattr(RecordKeeper, "save", save)
        save(keeper)
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordKeeper, "save", stopped)
    with pytest.raises((Stopped, KeyboardInterrupt)):
        run(output="out")
    assert (record_of()["status"], run(output="out").status) == ("stopped", "done")


def test_leftovers_of_a_kill_in_the_middle_of_a_write_do_not_matter(shop, monkeypatch):
    """A killed write's file, or dry run's folder, is cleared away and is no foreign file."""
    (shop / "out" / ".advise-tmp-dry-run" / "stages").mkdir(parents=True)
    (shop / "out" / ".advise-tmp-1-run.json").write_text('{"half')
    assert run(output="out").status == "done"
    for folder in ("prepared", "stages/sft"):
        (shop / "out" / folder).mkdir(parents=True, exist_ok=True)
        (shop / "out" / folder / ".advise-tmp-1-before.json").write_text('{"half')
    with RunFolder(shop / "out"):
        assert not list((shop / "out").rglob(".advise-tmp-*"))


def test_a_run_json_that_cannot_be_written_is_an_error_not_half_a_file(shop):
    """Where files cannot grow: exit code 4, no child, and no half-written JSON."""
    prelude = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))"
    )
    extra = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = start(shop, "ok", prelude=prelude, extra_env=extra, output="out")
    _, err = done.communicate(timeout=60)
    assert done.returncode == 4, err
    assert "no space left to write it" in err
    assert "Traceback" not in err
    assert not (shop / "out" / "run.json").exists()
    assert run(output="out").status == "done"


@pytest.mark.parametrize("mode", ["full", "ok"])
def test_a_run_whose_disk_is_full_ends_with_the_command_that_resumes(shop, monkeypatch, mode):
    """Exit code 4, and run.json says `failed` in the room that was kept for it."""
    room = []  # bytes of the files that were removed since the disk is full
    write, remove = Disk.write, Disk.remove

    def write_if_there_is_room(self, path, content):
        if (shop / "out/stages/sft/pid").exists() and sum(room) < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path, content)

    def note_room(self, path):
        room.append(path.stat().st_size if path.is_file() else 0)
        remove(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "write", write_if_there_is_room)
        patch.setattr(Disk, "remove", note_room)
        said = fails(mode, MachineNotReady, output="out")
    assert said.endswith("\n  resume with: advise run out")
    assert (record_of()["status"], run("out").status) == ("failed", "done")
    assert not list((shop / "out").glob(".advise-tmp-*"))


def test_a_place_without_room_or_permission_is_refused(shop, monkeypatch):
    """The needed space is estimated from the checkpoints and stated; nothing is written."""
    assert "a file, and no folder" in refused(MachineNotReady, output="train.jsonl/out")
    with monkeypatch.context() as patch:
        patch.setattr("advisor.launch.checks.disk.free_bytes", lambda path: 100 * 2**20)
        told = "0.10 GiB free on the disk, the run needs about 0.25 GiB"
        assert told in refused(MachineNotReady, output="out")
    monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path) != shop)
    assert "no permission to write here" in refused(MachineNotReady, output="out")
    assert not (shop / "out").exists()


def test_full_fine_tuning_needs_room_for_its_optimizer_states(shop):
    """The result is one copy of the weights, and each checkpoint three of them."""
    (shop / "plan.yaml").write_text(FULL)
    plan = read_plan("plan.yaml")
    shape = ModelShape(id="m", origin="size", params=1_000_000)
    sizes = {"hidden_size": 64, "layers": 2, "vocab_size": 320, "intermediate_size": 96}
    for keys, more, copies in (
        ({}, {}, 1 + 3 * 3),
        ({"keep": "best"}, {}, 1 + 4 * 3),  # one checkpoint more
        # No moments in place of two of 4 bytes, where the shape says what they are kept for.
        ({"optimizer": "sgd"}, sizes, 1 + 3),
        # 2 layers of 8 * (4 * (64 + 64) + 3 * (64 + 96)) in a LoRA, in float32 whatever the base.
        ({"update": "lora", "options": {"rank": 8}}, sizes, (1 + 3 * 3) * 15_872 / 1_000_000),
    ):
        stage = replace(plan.stages[0], **keys)
        found = disk_need(replace(plan, stages=(stage,)), stage, replace(shape, **more), None)
        assert found == pytest.approx(4_000_000 * copies, rel=1e-2)


def test_the_packages_of_a_plan_are_asked_for(shop):
    """Packages of training and of an optimizer are asked for in one line that installs both."""
    bare = replace(MACHINE, software=dict.fromkeys(MACHINE.software))
    assert re.search(r"pip install .*\[train\]", refused(MachineNotReady, hardware=bare))
    assert not (shop / "runs").exists()
    there = dict.fromkeys(("torch", "transformers", "peft", "trl", "accelerate", "datasets"), "9")
    machine = replace(MACHINE, software=there)
    stages = [
        Stage(name="sft", objective="sft", update="full", learning_rate=1e-5, optimizer=name)
        for name in ("adamw_fused", "adamw_8bit")
    ]
    assert package_faults(machine, stages[:1]) == []
    (fault,) = package_faults(machine, stages)
    assert "not installed: bitsandbytes" in fault.what
    assert "pip install" in fault.hint


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("model: model", "model: ./nowhere", InputError),
        ("model: model", "model: empty", InputError),
        ("model: model", "model: train.jsonl", InputError),
        ("model: model", "model: model\nrevision: main", InputError),
        ("model: model", "model: Qwen/Qwen9-1B", MachineNotReady),
        ("path: train.jsonl", "path: trian.jsonl", InputError),
        ("path: train.jsonl", "path: empty.jsonl", InputError),
        ("path: train.jsonl", "path: table.xlsx", InputError),
        ("objective: sft", "objective: rm", InputError),
        ("stages:", "launch: {device: cuda}\nstages:", MachineNotReady),
        ("stages:", "launch: {processes: 2, strategy: zero3}\nstages:", InputError),
        # Missing things come together.
        ("model: model\ndata: {path: train", "model: ./nowhere\ndata: {path: gone", InputError),
    ],
)
def test_what_is_not_there_is_found_before_anything_is_written(
    shop, monkeypatch, old, new, kind, approved
):
    """Model, data, trainer and device are checked first; no folder is made."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    (shop / "empty").mkdir()
    (shop / "empty.jsonl").write_text("")
    (shop / "table.xlsx").write_bytes(b"PK\x03\x04xl/workbook.xml")
    said = refused(kind, text=PLAN.replace(old, new, 1), output="out")
    approved(re.sub(r"(?s)(table\.xlsx: ).*(CSV).*", r"\1\2", said))  # with or without openpyxl
    assert not (shop / "out").exists()


VIEW = View(
    label="sft",
    waits=[
        Wait("training", 108, "steps", -20.0, 12, 0, "loss 1.234", 120.0),
        Wait("generating answers", 64, "answers", -4.0, 16, 0),
    ],
    memory=(int(11.8 * 2**30), 24 * 2**30),
    now_s=0.0,
)
SENTENCE = (
    "stage sft (1 of 1): training: 12 of 108 steps, loss 1.234, 2 min left; generating answers: 16"
    " of 64 answers, 4.0 answers/s, 12 s left; memory 11.8 of 24.0 GiB"
)


def test_a_run_that_is_at_work_is_shown_and_not_disturbed(shop, at_work, monkeypatch, capsys):
    """Another call says how far the run is, or how it ended if it did meanwhile."""
    parent, _ = at_work()
    monkeypatch.setattr(time, "time", lambda: 1e9)  # no time passes for those who look
    write_view(shop / "out", VIEW)
    with pytest.raises(RunIsLive) as raised:
        run(output="out")
    assert follow(raised.value) is None
    line, stop = capsys.readouterr().err.splitlines()
    assert line == f"out is running (process {parent.pid}): {SENTENCE}"
    assert stop.endswith(f"kill {parent.pid}")
    assert follow(raised.value, as_json=True) is None
    out = json.loads(capsys.readouterr().out)
    assert out["status"] == "running"
    assert out["progress"] == {
        "process": parent.pid, "stage": "sft", "doing": ["training", "generating answers"],
        "step": 12, "total": 108, "eta_s": 120.0, "memory_bytes": VIEW.memory[0],
        "memory_limit_bytes": VIEW.memory[1], "text": SENTENCE,
    }  # fmt: skip
    seen = read_live(shop / "out")
    assert (seen.process, seen.stage.name, seen.sentence) == (parent.pid, "sft", SENTENCE)
    between = replace(seen, record=replace(seen.record, stages=()))
    assert replace(between, view=None).sentence == "between two stages"
    assert between.sentence.startswith("training: 12 of 108 steps")
    for file in (shop / "out").glob(".advise-tmp-progress*"):
        file.unlink()
    seen = read_live(shop / "out")
    assert seen.sentence == "stage sft (1 of 1): it has just begun"
    assert seen.to_dict()["step"] is None
    assert alive(parent.pid)
    parent.terminate()
    parent.communicate(timeout=20)
    assert follow(raised.value).status == "stopped"


def test_a_folder_nobody_works_in_is_no_live_run(shop):
    """Neither a finished run, nor a killed one whose lock file names a process that is gone."""
    assert (run(output="out").status, read_live(shop / "out")) == ("done", None)
    refuse_live(shop / "out")
    (shop / "out" / ".lock").write_text(f"{os.getpid()}\n")
    refuse_live(shop / "out")
    assert read_live(shop / "missing") is None


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
    real_shop, monkeypatch, capfd, processes
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
