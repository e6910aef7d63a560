"""Runs that are killed, interrupted, started twice, or have no room: nothing stale, nothing
half-written.
"""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import Disk
from advisor.ground.types import ModelShape
from advisor.launch.checks.packages import package_faults
from advisor.launch.expected import disk_need
from advisor.launch.folder import RunFolder
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.probe.software import torch_build
from tests.launch.conftest import (
    FULL,
    MACHINE,
    PLAN,
    alive,
    child_of,
    command,
    gpu,
    machine,
    refused,
    run,
    start,
    wait_for,
)


def state(shop):
    return json.loads((shop / "out" / "run.json").read_text())


def test_a_killed_run_takes_its_trainer_along_and_the_next_goes_on(shop):
    """kill -9 of `advise run` leaves no trainer and no stale lock; the next call resumes."""
    parent = start(shop, "wait", output="out")
    child = child_of(shop)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child), seconds=5)
    assert state(shop)["status"] == "running"
    began = time.monotonic()
    done = run(output="out")
    assert time.monotonic() - began < 8
    assert done.status == "done"
    assert done.record.attempts == 2
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


def test_a_second_run_at_the_same_time_is_refused(shop):
    """With exit code 4 and the process number of the one at work, which goes on."""
    parent = start(shop, "wait", output="out")
    child = child_of(shop)
    try:
        with pytest.raises(
            MachineNotReady, match=rf"this run is at work already \(process {parent.pid}\)"
        ):
            run(output="out")
        assert alive(child)
        assert state(shop)["status"] == "running"
    finally:
        parent.terminate()
        parent.wait()


def signals(shop):
    """Which signals the trainer has heard."""
    return (shop / "out" / "stages" / "sft" / "signals").read_text().split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_reaches_the_trainer_once_and_is_recorded(shop, number):
    """Ctrl-C, SIGTERM and a closed terminal: heard once, status stopped, exit code 130."""
    parent = start(shop, "wait", output="out")
    child = child_of(shop)
    parent.send_signal(number)
    _, err = parent.communicate(timeout=20)
    assert parent.returncode == 130, err
    assert "\n  resume with: advise run out\n" in err
    assert signals(shop) == ["15"]
    assert not alive(child)
    assert state(shop)["status"] == "stopped"
    assert state(shop)["stages"][0]["status"] == "stopped"
    assert run(output="out").status == "done"


def on_terminal(shop):
    """A run on a terminal, with the process of its trainer; closed streams are no error."""
    pexpect = pytest.importorskip("pexpect")
    prelude = "from advisor.ground.terminal import show_streams\nshow_streams()"
    (python, *words), env = command("wait", prelude=prelude, output="out")
    terminal = pexpect.spawn(python, words, cwd=str(shop), env=env, timeout=20)
    return terminal, child_of(shop)


def test_ctrl_c_on_a_terminal_reaches_the_trainer_once(shop):
    """The whole foreground group gets it; the trainer is in a session of its own."""
    terminal, _ = on_terminal(shop)
    terminal.sendintr()
    terminal.wait()
    assert terminal.exitstatus == 130
    assert signals(shop) == ["15"]


def test_a_closed_terminal_stops_the_run_and_the_record_says_so(shop):
    """Nothing can be printed any more; the trainer still gets to save."""
    terminal, child = on_terminal(shop)
    os.close(terminal.child_fd)
    wait_for(lambda: not alive(child))
    wait_for(lambda: state(shop)["status"] == "stopped")
    assert signals(shop) == ["15"]


def test_a_second_ctrl_c_ends_a_stubborn_trainer(shop):
    """A trainer that ignores the first stop is ended by the second."""
    parent = start(shop, "wait", output="out", extra_env={"STAND_IN_STUBBORN": "1"})
    child = child_of(shop)
    parent.send_signal(signal.SIGINT)
    wait_for((shop / "out" / "stages" / "sft" / "signals").exists)
    time.sleep(0.2)
    assert alive(child)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=20) == 130
    assert not alive(child)
    assert state(shop)["status"] == "stopped"


def test_nohup_stays_nohup(shop):
    """A run that was told to ignore the closing of the terminal ignores it."""
    prelude = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    parent = start(shop, "wait", prelude=prelude, output="out")
    child = child_of(shop)
    try:
        parent.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert parent.poll() is None
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()
        wait_for(lambda: not alive(child))


def test_a_trainer_killed_from_outside_fails_and_can_go_on(shop, monkeypatch):
    """kill -9 of the trainer alone leaves status failed with the next smaller setting; the next
    call resumes.
    """
    parent = start(shop, "wait", output="out")
    os.kill(child_of(shop), signal.SIGKILL)
    _, err = parent.communicate(timeout=20)
    assert parent.returncode == 5
    assert "--set stages.sft.micro_batch_size=2" in err
    assert "another --output DIR" in err
    assert state(shop)["status"] == "failed"
    assert run(output="out").status == "done"


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
    monkeypatch.setenv("STAND_IN", mode)
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
        with pytest.raises(MachineNotReady) as caught:
            run(output="out")
    assert caught.value.text().endswith("\n  resume with: advise run out")
    assert state(shop)["status"] == "failed"
    monkeypatch.setenv("STAND_IN", "ok")
    assert run("out").status == "done"
    assert not list((shop / "out").glob(".advise-tmp-*"))


def test_too_little_room_is_found_before_anything_is_written(shop, monkeypatch):
    """The needed space is estimated from the checkpoints and stated; nothing is written."""
    monkeypatch.setattr("advisor.launch.checks.disk.free_bytes", lambda path: 100 * 2**20)
    told = "0.10 GiB free on the disk, the run needs about 0.25 GiB"
    assert told in refused(MachineNotReady, output="out")
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
    ):
        stage = replace(plan.stages[0], **keys)
        found = disk_need(replace(plan, stages=(stage,)), stage, replace(shape, **more), None)
        assert found == pytest.approx(4_000_000 * copies, rel=1e-2)


def test_the_package_of_an_optimizer_is_asked_for():
    """Together with those of training, and with the command that installs them."""
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


def test_a_place_that_is_read_only_is_refused(shop, monkeypatch):
    """Where the system says that the place cannot be written."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path) != shop)
    assert "no permission to write here" in refused(MachineNotReady, output="out")
    assert "a file, and no folder" in refused(MachineNotReady, output="train.jsonl/out")


@pytest.mark.parametrize(
    "case",
    [
        ("model: model", "model: ./nowhere", InputError, "no such folder"),
        ("model: model", "model: empty", InputError, "has no config.json"),
        ("model: model", "model: train.jsonl", InputError, "is a file"),
        ("model: model", "model: model\nrevision: main", InputError, "'revision' has no effect"),
        ("model: model", "model: Qwen/Qwen9-1B", MachineNotReady,
         "is not in the hub cache, and HF_HUB_OFFLINE is set"),
        ("path: train.jsonl", "path: trian.jsonl", InputError, "trian.jsonl"),
        ("path: train.jsonl", "path: empty.jsonl", InputError, "empty"),
        ("path: train.jsonl", "path: table.xlsx", InputError, "CSV"),
        ("objective: sft", "objective: rm", InputError, "no trainer for objective rm"),
        ("stages:", "launch: {device: cuda}\nstages:", MachineNotReady,
         "the plan is for an NVIDIA GPU"),
        ("stages:", "launch: {processes: 2, strategy: zero3}\nstages:", InputError,
         "launch.strategy is zero3, which is estimated and not started",
         "--set launch.strategy=fsdp", "launch.offload=true"),
        # Missing things come together.
        ("model: model\ndata: {path: train", "model: ./nowhere\ndata: {path: gone", InputError,
         "no such folder", "gone.jsonl"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_found_before_anything_is_written(shop, monkeypatch, case):
    """Model, data, trainer and device are checked first; no folder is made."""
    old, new, kind, *words = case
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    (shop / "empty").mkdir()
    (shop / "empty.jsonl").write_text("")
    (shop / "table.xlsx").write_bytes(b"PK\x03\x04xl/workbook.xml")
    (shop / "plan.yaml").write_text(PLAN.replace(old, new, 1))
    text = refused(kind, output="out")
    assert [word for word in words if word not in text] == []
    assert not (shop / "out").exists()


def test_an_unreachable_hub_is_told_quickly(shop, monkeypatch):
    """Where the hub cannot be reached the run ends within seconds with exit code 4."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: org/tiny"))
    began = time.monotonic()
    assert "the hub cannot be reached" in refused(MachineNotReady, output="out")
    assert time.monotonic() - began < 7
    assert not (shop / "out").exists()


def test_a_card_that_torch_cannot_use_is_not_replaced_by_the_cpu(shop):
    """A probed GPU and a CPU build of torch: exit code 4 with the line to install."""
    build = torch_build()
    if build is None or build.cuda is not None:
        pytest.skip("needs a torch that was built for the CPU")
    (shop / "plan.yaml").write_text(PLAN + "launch: {device: cuda}\n")
    with pytest.raises(MachineNotReady, match="cannot use it"):
        run(hardware=machine(gpu(), origin="probed", cuda_version="13.0"))
