"""Runs killed, interrupted or started twice leave nothing stale; a trainer that fails is explained."""

import errno
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.commands.training import follow
from advisor.ground.errors import InputError, MachineNotReady, Stopped
from advisor.ground.files import Disk
from advisor.ground.progress import View, Wait, write_view
from advisor.ground.signals import STOPS
from advisor.ground.types import ModelShape
from advisor.launch.checks.packages import package_faults
from advisor.launch.child import Child
from advisor.launch.expected import disk_need
from advisor.launch.folder import RunFolder, RunIsLive, read_live, refuse_live
from advisor.launch.record_keeper import RecordKeeper
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from tests.launch.conftest import (
    FULL,
    MACHINE,
    PLAN,
    SECOND,
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


def test_a_run_hands_signals_back(shop):
    """Also after a stop: a notebook that trained reacts to Ctrl-C as before. A thread has none."""
    before = [signal.getsignal(number) for number in STOPS]
    stop = threading.Timer(0, lambda: (child_of(shop), os.kill(os.getpid(), signal.SIGTERM)))
    stop.start()
    fails("wait", Stopped, output="out")
    assert [signal.getsignal(number) for number in STOPS] == before
    assert record_of()["status"] == "stopped"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, output="out").result().status == "done"


def test_a_signal_while_a_child_is_left_is_not_lost(shop, monkeypatch):
    """The stage is done by then, and the one behind it does not begin."""
    leave = Child.__exit__

    def left(self, *raised):
        os.kill(os.getpid(), signal.SIGTERM)
        leave(self, *raised)

    monkeypatch.setattr(Child, "__exit__", left)
    assert "stopped after stage sft" in fails("ok", Stopped, text=PLAN + SECOND, output="out")
    assert [one["status"] for one in record_of()["stages"]] == ["done", "pending"]


IN_STEPS = "stopped after step 3 of 9, with a checkpoint"


@pytest.mark.train
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
            with suppress(ProcessLookupError):  # the first one has ended it
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
    for cache in ("HF_HOME", "XDG_CACHE_HOME"):  # the hub's, and what the demo made
        monkeypatch.setenv(cache, str(shop / "hub"))
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
