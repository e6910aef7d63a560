"""`advise run` on several machines: processes that meet on the loopback, with stand-ins."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, NodeLost
from advisor.launch import folder
from advisor.launch.folder import RunFolder
from advisor.launch.machines import NodeRank, find_place, machines_of, refuse_differences, versions
from tests.launch.conftest import MACHINE, PLAN, STAND_IN, alive, command, record_of, wait_for


class Machines:
    """Processes that stand for the machines of one run."""

    def __init__(self, folder, trainers=STAND_IN):
        self.folder = folder
        self.trainers = trainers
        self.started = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def close(self):
        for process in self.started:
            process.kill()
            process.wait()

    def start(self, node, *, of=2, mode="ok", environ=None, prelude="", **options):
        """`advise run` as this node, as a Popen; its messages go into node-N.txt."""
        extra = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "NNODES": str(of),
            "NODE_RANK": str(node), "ADVISE_JOIN_S": "20", "STAND_IN_MACHINES": "1",
            **(environ or {}),
        }  # fmt: skip
        options = {"output": "out", "trainers": self.trainers, **options}
        lost_soon = "from advisor.launch import machines\nmachines.FAIL_S = 1.0"
        prelude = f"{lost_soon}\n{prelude}"
        words, env = command(mode, prelude=prelude, extra_env=extra, **options)
        with (self.folder / f"node-{node}.txt").open("w") as said:
            process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=said, stderr=said)
        self.started.append(process)
        return process

    def both(self, mode="ok", **each):
        started = [self.start(node, mode=mode, **each) for node in (0, 1)]
        self.trainers_at_work = [self.process(rank) for rank in (0, 1) if mode == "wait"]
        return started

    def said(self, node):
        return (self.folder / f"node-{node}.txt").read_text()

    def process(self, rank):
        """The number of a trainer's process, as soon as it is at work."""
        stage = self.folder / "out" / "stages" / "sft"
        wait_for((stage / f"ready{rank}").exists)
        return json.loads((stage / f"seen{rank}.json").read_text())["pid"]

    def checkpoints(self):
        return set((self.folder / "out" / "stages" / "sft" / "checkpoints").glob("checkpoint-*"))


@pytest.fixture
def machines(shop):
    """Two machines of one plan with a process on each."""
    (shop / "plan.yaml").write_text(PLAN + "launch: {nodes: 2, strategy: ddp}\n")
    with closing(Machines(shop)) as made:
        yield made


def codes(*processes):
    return [process.wait(timeout=400) for process in processes]


@pytest.mark.train
def test_a_run_trains_on_two_machines_and_both_say_so(machines):
    """Processes are numbered through all of them; the first machine keeps the record."""
    plan = (machines.folder / "plan.yaml").read_text()
    (machines.folder / "plan.yaml").write_text(plan.replace("nodes: 2", "nodes: 2, processes: 2"))
    assert codes(*machines.both()) == [0, 0], machines.said(0) + machines.said(1)
    assert record_of()["status"] == "done"
    stage = machines.folder / "out" / "stages" / "sft"
    seen = [json.loads(file.read_text()) for file in sorted(stage.glob("seen*.json"))]
    assert [one["WORLD_SIZE"] for one in seen] == ["4"] * 4
    assert [one["LOCAL_RANK"] for one in seen] == ["0", "1", "0", "1"]
    assert {one["GLOO_SOCKET_IFNAME"] for one in seen} == {"lo"}
    assert "done as node 0" in machines.said(0)
    assert "done as node 1" in machines.said(1)


def test_a_stop_of_one_machine_stops_all_with_the_same_code(machines):
    """SIGTERM of a machine that follows reaches the processes of all, once."""
    leader, follower = machines.both(mode="wait")
    follower.send_signal(signal.SIGTERM)
    assert codes(leader, follower) == [130, 130]
    assert "stopped after step 3 of 9" in machines.said(0)
    assert "machine 0" in machines.said(1)
    assert record_of()["status"] == "stopped"
    assert not any(map(alive, machines.trainers_at_work))


def test_a_machine_that_is_lost_ends_the_run_with_the_code_that_starts_it_again(machines):
    """The others notice at once, end their processes, and end with 75."""
    leader, follower = machines.both(mode="wait")
    follower.kill()
    assert codes(leader) == [75]
    assert re.search(r"machine 1 \(.*\) was lost: its `advise run` is gone", machines.said(0))
    assert "resume with: advise run" in machines.said(0)
    assert record_of()["status"] == "stopped"
    wait_for(lambda: not any(map(alive, machines.trainers_at_work)))


@pytest.mark.long
def test_a_leader_that_is_lost_ends_those_that_follow_it_and_the_same_command_resumes(machines):
    """Killed, it says nothing any more; its own processes end with it."""
    leader, follower = machines.both(mode="wait")
    leader.kill()
    assert codes(follower) == [75]
    assert f"machine 0 ({socket.gethostname()}) was lost" in machines.said(1)
    wait_for(lambda: not any(map(alive, machines.trainers_at_work)))
    assert codes(*machines.both()) == [0, 0], machines.said(0) + machines.said(1)
    assert record_of()["status"] == "done"


LATE = """
import time
meet = machines.Machines.meet
machines.Machines.meet = lambda self: (self.place.node or time.sleep(2), meet(self))
"""


def test_nobody_follows_a_run_that_is_over(machines):
    """What a killed leader has said is not taken for what the next one has not said yet."""
    old = {"run": "old", "words": "machine 0", "address": "", "by": [1, "elsewhere"], "report": {}}
    note = machines.folder / "out" / ".machines" / "0" / "note.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(old))
    assert codes(*machines.both(prelude=LATE)) == [0, 0], machines.said(0) + machines.said(1)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        pytest.param(
            "fail@1", "process 1 on {host}: the loss is not a number", marks=pytest.mark.long
        ),
        ("sigkill@1", "a process of machine 1 was ended by signal 9"),
    ],
)
def test_a_process_that_fails_on_one_machine_ends_all_and_is_named(machines, mode, words):
    """The first cause is shown once, by the leader; nobody waits for what will not come."""
    assert codes(*machines.both(mode=mode)) == [5, 5]
    assert words.format(host=socket.gethostname()) in machines.said(0)
    assert record_of()["status"] == "failed"


def test_faults_of_all_machines_come_together_before_anything_is_written(machines):
    """Another plan, other data, other flags: one error on all machines, exit code 2."""
    assert codes(machines.start(0), machines.start(1, max_steps=3)) == [2, 2]
    assert "machine 1" in machines.said(0)
    assert all("not as on machine 0: --max-steps" in machines.said(node) for node in (0, 1))
    assert [file.name for file in (machines.folder / "out").iterdir()] == [".machines"]


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
    one_step = SLURM | {"SLURM_STEP_NUM_NODES": "1"}
    # A batch script of a job with several machines, which starts one command on one of them.
    script = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "8"}
    assert [place_of(1, environ) for environ in ({}, one_step, script)] == [None] * 3


@pytest.mark.parametrize(
    ("nodes", "environ"),
    [
        (3, SLURM),
        (1, SKY),
        *((2, environ) for environ in ({}, {"SLURM_JOB_ID": "7"})),
        *((2, BY_HAND | {"NODE_RANK": rank}) for rank in ("2", "١")),
        (2, BY_HAND | {"NNODES": "1:2"}),
        (2, BY_HAND | {"MASTER_PORT": "99999"}),
        (2, BY_HAND | {"ADVISE_JOIN_S": "soon"}),
    ],
)
def test_a_plan_that_does_not_fit_the_scheduler_is_refused(nodes, environ, approved):
    """The error has both numbers, or the command that is right, exit code 2."""
    with pytest.raises(InputError) as refused:
        place_of(nodes, environ)
    approved(refused.value.text())


def report(*, software=None, **given):
    return {"given": given, "versions": versions(MACHINE.software | (software or {}), ())}


@pytest.mark.parametrize(
    ("other", "kind", "words"),
    [
        (report(data="b"), InputError, "machine 1: not as on machine 0: data"),
        (report(data="a", more="c"), InputError, "not as on machine 0: more"),
        (report(data="a", software={"trl": "2"}), MachineNotReady,
         "not as on machine 0: trl 2 (1)"),
        (report(data="b", software={"trl": "2"}), InputError, "trl 2 (1)"),
    ],
)  # fmt: skip
def test_machines_that_do_not_fit_together_are_refused(other, kind, words):
    """Everything that differs comes together: what was given with code 2, the rest with 4."""
    refuse_differences(report(data="a"), report(data="a"), "machine 1")
    with pytest.raises(kind, match=re.escape(words)):
        refuse_differences(report(data="a"), other, "machine 1")


def node_at(node, at, *, wait_s=20):
    place = NodeRank(node=node, nodes=2, address="", port=None, wait_s=wait_s)
    return machines_of(place, at, print)


def leave_note(at, node, content):
    (at / ".machines" / str(node)).mkdir(parents=True)
    (at / ".machines" / str(node) / "note.json").write_text(json.dumps(content))


def test_a_machine_that_does_not_come_is_named(tmp_path):
    """Also one whose run folder is another one; what an earlier run has left does not count."""
    old = {"run": "0" * 16, "words": "machine 0 (gpu-a)", "address": "gpu-a", "report": report()}
    for node in (0, 1):
        leave_note(tmp_path, node, old)
    alone = pytest.raises(MachineNotReady, match="machine 0 has not come within 1 s")
    with alone, node_at(1, tmp_path, wait_s=1):
        pass
    with (
        pytest.raises(
            MachineNotReady, match=r"(?s)machine 1 has not come.*a disk that\s+they share"
        ),
        node_at(0, tmp_path, wait_s=1) as leader,
    ):
        leader.agree(report())


def test_what_one_machine_finds_ends_all_with_its_code(tmp_path):
    """The other one shows whose words they are, and reaches the first one by its name."""
    found = []

    def follow():
        try:
            with node_at(1, tmp_path) as follower:
                found.append(follower.address)
                follower.agree(report(data="b"))
        except AdviseError as error:
            found.append(type(error))

    thread = threading.Thread(target=follow)
    host = socket.gethostname()
    words = rf"machine 1 \({re.escape(host)}\): not as on machine 0: data"
    with node_at(0, tmp_path) as leader:
        thread.start()
        with pytest.raises(InputError, match=words):
            leader.agree(report(data="a"))
    thread.join()
    assert found == [host, InputError]


def test_a_training_with_a_lost_machine_is_not_started(tmp_path):
    """A folder without its lock and without an end is of a machine that is gone."""
    with node_at(0, tmp_path) as leader:
        leave_note(tmp_path, 1, {"run": leader.run, "words": "machine 1 (gpu-b)", "agrees": True})
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
    with node_at(0, tmp_path), taken, node_at(0, tmp_path):
        pass
    with node_at(0, tmp_path):
        pass
