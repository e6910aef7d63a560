"""Which machine this one is, and what machines say to each other in the run folder."""

import json
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, NodeLost
from advisor.launch import folder
from advisor.launch.folder import RunFolder
from advisor.launch.machines import NodeRank, find_place, machines_of, refuse_differences, versions
from tests.launch.conftest import MACHINE

BY_HAND = {"MASTER_ADDR": "gpu-a", "NNODES": "2", "NODE_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "8",
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
        (SLURM, "", None),  # machine 0 says its name
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
        (2, {}, "NNODES=2 NODE_RANK=0 advise run /shared/plan.yaml --output"
         " /shared/run"),
        (2, {"SLURM_JOB_ID": "7"}, "srun --nodes=2 --ntasks-per-node=1"),
        (2, BY_HAND | {"NODE_RANK": "2"}, "a whole number from 0 to 1"),
        (2, BY_HAND | {"NODE_RANK": "١"}, "NODE_RANK is"),
        (2, BY_HAND | {"NNODES": "1:2"}, "NNODES is '1:2'"),
        (2, BY_HAND | {"MASTER_PORT": "99999"}, "a whole number from 1 to 65535"),
        (2, BY_HAND | {"ADVISE_JOIN_S": "soon"}, "ADVISE_JOIN_S is 'soon'"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_scheduler_is_refused(nodes, environ, words):
    """The error has both numbers, or the command that is right, exit code 2."""
    with pytest.raises(InputError, match=re.escape(words)):
        place_of(nodes, environ)


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
    place = NodeRank(node=node, nodes=2, address="", port=None, wait_s=wait_s)
    return machines_of(place, at, print)


def note(at, node):
    return at / ".machines" / str(node) / "note.json"


def test_a_machine_that_does_not_come_is_named(tmp_path):
    """Also one whose run folder is another one; what an earlier run has left does not count."""
    old = {"run": "0" * 16, "words": "machine 0 (gpu-a)", "address": "gpu-a", "report": report()}
    for node in (0, 1):
        note(tmp_path, node).parent.mkdir(parents=True)
        note(tmp_path, node).write_text(json.dumps(old))
    with (
        pytest.raises(MachineNotReady, match="machine 0 has not come within 1 s"),
        machine(1, tmp_path, wait_s=1),
    ):
        pass
    with (
        pytest.raises(
            MachineNotReady, match=r"(?s)machine 1 has not come.*a disk that\s+they share"
        ),
        machine(0, tmp_path, wait_s=1) as leader,
    ):
        leader.agree(report())


def test_what_one_machine_finds_ends_all_with_its_code(tmp_path):
    """The other one shows whose words they are, and reaches the first one by its name."""
    found = []

    def follow():
        try:
            with machine(1, tmp_path) as follower:
                found.append(follower.address)
                follower.agree(report(data="b"))
        except AdviseError as error:
            found.append(type(error))

    thread = threading.Thread(target=follow)
    host = socket.gethostname()
    words = rf"machine 1 \({re.escape(host)}\): not as on machine 0: data"
    with machine(0, tmp_path) as leader:
        thread.start()
        with pytest.raises(InputError, match=words):
            leader.agree(report(data="a"))
    thread.join()
    assert found == [host, InputError]


def test_a_training_with_a_lost_machine_is_not_started(tmp_path):
    """A folder without its lock and without an end is of a machine that is gone."""
    with machine(0, tmp_path) as leader:
        lost = {"run": leader.run, "words": "machine 1 (gpu-b)", "agrees": True}
        note(tmp_path, 1).parent.mkdir()
        note(tmp_path, 1).write_text(json.dumps(lost))
        with pytest.raises(NodeLost, match=r"machine 1 \(gpu-b\) was lost") as error:
            leader.train({}, lambda *_: pytest.fail("it was started"))
    assert error.value.exit_code == 75


def test_a_folder_that_another_machine_works_in_names_it(tmp_path, monkeypatch):
    """Its process number says nothing here; nor may a machine be started twice."""
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
    taken = pytest.raises(MachineNotReady, match="another `advise run` is working in this folder")
    with machine(0, tmp_path), taken, machine(0, tmp_path):
        pass
    with machine(0, tmp_path):
        pass
