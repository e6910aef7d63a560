"""Which machine this one is, and what machines say to each other in the run folder."""

import json
import os
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, MachineNotReady, NodeLost, OutOfMemory, TrainingFailed
from advisor.launch import failure_report, folder, machines
from advisor.launch.child import Ended
from advisor.launch.failure_report import note_silent_end, read_error
from advisor.launch.folder import RunFolder
from advisor.launch.machines import (
    Machines,
    NodeRank,
    find_place,
    first_host,
    refuse_differences,
    versions,
)
from advisor.record.files import write_record
from advisor.record.stage import ErrorRecord, error_of_rank
from tests.launch.conftest import MACHINE

BY_HAND = {"MASTER_ADDR": "gpu-a", "NNODES": "2", "NODE_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "8",
}  # fmt: skip
SKY = {
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
}  # fmt: skip
KUBEFLOW = {
    "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-0", "PET_MASTER_PORT": "23456",
}  # fmt: skip


def place_of(nodes, environ):
    return find_place(nodes, environ, plan=Path("/shared/plan.yaml"), folder=Path("/shared/run"))


@pytest.mark.parametrize(
    ("environ", "address", "port"),
    [
        (BY_HAND, "gpu-a", None),
        (BY_HAND | {"MASTER_PORT": "4000"}, "gpu-a", 4000),
        (SLURM, "gpu03", None),
        (SLURM | {"MASTER_ADDR": "gpu03-ib", "MASTER_PORT": "4000"}, "gpu03-ib", 4000),
        (SKY, "10.0.0.5", None),
        (KUBEFLOW, "job-0", 23456),
        (BY_HAND | SLURM | SKY, "gpu-a", None),  # what is set by hand comes first
    ],
)
def test_each_scheduler_says_where_this_machine_stands(environ, address, port):
    """Number, address and port of the first come from the variables that each of them sets."""
    place = place_of(2, environ)
    assert (place.node, place.nodes, place.address, place.port) == (1, 2, address, port)


def test_one_machine_alone_asks_nobody():
    """A plan for one machine needs no variables, and those of a job on one do not matter."""
    assert place_of(1, {}) is None
    assert place_of(1, SLURM | {"SLURM_STEP_NUM_NODES": "1"}) is None
    # A batch script of a job with several machines, which starts one command on one of them.
    assert place_of(1, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "8"}) is None


@pytest.mark.parametrize(
    ("nodes", "environ", "words"),
    [
        (3, SLURM, "launch.nodes is 3 in the plan, and SLURM_STEP_NUM_NODES says that the command"
         " is started on 2"),
        (1, SKY, "launch.nodes is 1 in the plan, and SKYPILOT_NUM_NODES"),
        (2, {}, "MASTER_ADDR={host} NNODES=2 NODE_RANK=0 advise run /shared/plan.yaml --output"
         " /shared/run"),
        (2, {"SLURM_JOB_ID": "7"}, "srun --nodes=2 --ntasks-per-node=1"),
        (2, BY_HAND | {"NODE_RANK": "2"}, "a whole number from 0 to 1"),
        (2, BY_HAND | {"NODE_RANK": "١"}, "NODE_RANK is"),
        (2, BY_HAND | {"NNODES": "1:2"}, "NNODES is '1:2'"),
        (2, BY_HAND | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        (2, BY_HAND | {"MASTER_PORT": "99999"}, "a whole number from 1 to 65535"),
        (2, BY_HAND | {"ADVISE_JOIN_S": "soon"}, "ADVISE_JOIN_S is 'soon'"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_scheduler_is_refused(nodes, environ, words):
    """The error has both numbers, or the command that is right, exit code 2."""
    with pytest.raises(InputError, match=re.escape(words.format(host=socket.gethostname()))):
        place_of(nodes, environ)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-05,7],cpu1", "gpu03"),
        ("gpu7,cpu1", "gpu7"),
        ("rack[1-2]n[05-06]", "rack1n05"),
        ("10.0.0.5\n10.0.0.6\n", "10.0.0.5"),
        ("", ""),
    ],
)
def test_the_first_name_of_a_list(hosts, first):
    """As Slurm writes names, and SkyPilot addresses."""
    assert first_host(hosts) == first


def report(*, software=None, **given):
    return {"given": given, "versions": versions(MACHINE.software | (software or {}), ())}


@pytest.mark.parametrize(
    ("other", "kind", "words"),
    [
        (report(data="b"), InputError, "machine 1: not as on machine 0: data"),
        (report(data="a", more="c"), InputError, "not as on machine 0: more"),
        (
            report(data="a", software={"trl": "2"}),
            MachineNotReady,
            "not as on machine 0: trl 2 (1)",
        ),
        (report(data="b", software={"trl": "2"}), InputError, "trl 2 (1)"),
    ],
)
def test_machines_that_do_not_fit_together_are_refused(other, kind, words):
    """Everything that differs comes together: what was given with code 2, the rest with 4."""
    refuse_differences(report(data="a"), report(data="a"), "machine 1")
    with pytest.raises(kind, match=re.escape(words)):
        refuse_differences(report(data="a"), other, "machine 1")


def machine(node, at, *, wait_s=20):
    made = Machines(NodeRank(node=node, nodes=2, address="gpu-a", port=None, wait_s=wait_s), at)
    made.meet()
    return made


def test_a_machine_that_does_not_come_is_named(tmp_path):
    """Also one whose run folder is another one; what an earlier run has left does not count."""
    old = {"run": "0" * 16, "words": "machine 0 (gpu-a)", "report": report()}
    (tmp_path / ".machines").mkdir()
    for node in (0, 1):
        (tmp_path / ".machines" / f"{node}.json").write_text(json.dumps(old))
    with pytest.raises(MachineNotReady, match="machine 0 has not come within 1 s"):
        machine(1, tmp_path, wait_s=1)
    with pytest.raises(
        MachineNotReady, match=r"(?s)machine 1 has not come.*a disk that\s+they share"
    ):
        machine(0, tmp_path, wait_s=1).agree(report())


def test_a_machine_that_is_started_twice_is_refused(tmp_path, monkeypatch):
    """By the lock on its file, which ends with its process."""
    monkeypatch.setattr(machines, "LOCK_WAIT_S", 0.0)
    first = machine(0, tmp_path)
    with pytest.raises(MachineNotReady, match="machine 0 of this run is at work already"):
        machine(0, tmp_path)
    first.close(0, "")
    machine(0, tmp_path)


def test_what_one_machine_finds_ends_all_with_its_code(tmp_path):
    """The other one shows whose words they are."""
    leader, found = machine(0, tmp_path), []

    def follow():
        follower = machine(1, tmp_path)
        try:
            follower.agree(report(data="b"))
        except InputError as error:
            found.append(error)
            follower.close(error.exit_code, error.text())

    thread = threading.Thread(target=follow)
    thread.start()
    host = re.escape(socket.gethostname())
    with pytest.raises(InputError, match=rf"machine 1 \({host}\): not as on machine 0: data"):
        leader.agree(report(data="a"))
    thread.join()
    assert len(found) == 1


def test_a_training_with_a_lost_machine_is_not_started(tmp_path):
    """A file without its lock and without an end is of a machine that is gone."""
    leader = machine(0, tmp_path)
    lost = {"run": leader.run, "words": "machine 1 (gpu-b)", "agrees": True}
    (tmp_path / ".machines" / "1.json").write_text(json.dumps(lost))
    with pytest.raises(NodeLost, match=r"machine 1 \(gpu-b\) was lost") as error:
        leader.train({}, lambda *_: pytest.fail("it was started"))
    assert error.value.exit_code == 75


@pytest.mark.parametrize(
    ("code", "kills", "told", "kind", "words"),
    [
        (137, 0, (), TrainingFailed, "process 3 on {host}: it was ended by signal 9"),
        (
            137,
            1,
            (),
            OutOfMemory,
            "process 3 on {host}: it was ended by the kernel's out-of-memory",
        ),
        (1, 0, (), TrainingFailed, "process 3 on {host}: it ended with exit code 1"),
        (5, 0, (TrainingFailed("the loss is not a number"),), TrainingFailed, "the loss is not"),
        (-9, 0, (), None, ""),  # by the guard
        (0, 0, (), None, ""),
    ],
)
def test_a_process_that_ended_without_a_word_is_written_down(
    tmp_path, monkeypatch, code, kills, told, kind, words
):
    """Machine 0 sees the stage's folder, and not how processes of another machine ended."""
    monkeypatch.setattr(failure_report, "oom_kills", lambda: kills)
    for error in told:
        write_record(tmp_path / error_of_rank(3), replace(ErrorRecord.of(error), rank=3, at_s=1.0))
    note_silent_end(tmp_path, Ended(code, False), ranks=[3], kills=0)
    found = read_error(tmp_path)
    assert (found.kind if found else None) == (kind.__name__ if kind else None)
    if found:
        assert words.format(host=socket.gethostname()) in found.what


def test_a_folder_that_another_machine_works_in_names_it(tmp_path, monkeypatch):
    """Its process number says nothing here, even if there is a process with that number."""
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0.0)
    with RunFolder(tmp_path / "run"):
        lock = tmp_path / "run" / folder.LOCK
        assert folder.process_of(tmp_path / "run") == os.getpid()
        lock.write_text(f"{os.getpid()} gpu-z\n")
        assert folder.process_of(tmp_path / "run") is None
        with (
            pytest.raises(MachineNotReady, match=rf"process {os.getpid()} on gpu-z"),
            RunFolder(tmp_path / "run"),
        ):
            pass
