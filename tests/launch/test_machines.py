"""`advise run` on several machines: here processes that meet on the loopback, with stand-ins for
trainers and launcher; test_real.py trains.
"""

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import PLAN, alive, command, wait_for

TRAINERS = Path(__file__).parent / "machines_standin"
PRELUDE = "from advisor.launch import machines\nmachines.FAIL_S = 1.0"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Machines:
    """Processes that stand for the machines of one run."""

    def __init__(self, folder, trainers=TRAINERS):
        self.folder = folder
        self.trainers = trainers
        self.port = free_port()
        self.started = []

    def start(self, node, *, of=2, mode="ok", environ=None, **options):
        """`advise run` as this node, as a Popen; its messages go into node-N.txt."""
        extra = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "NNODES": str(of),
            "NODE_RANK": str(node), "ADVISE_JOIN_S": "20", **(environ or {}),
        }  # fmt: skip
        options = {"output": "out", "trainers": self.trainers, **options}
        words, env = command(mode, prelude=PRELUDE, extra_env=extra, **options)
        with (self.folder / f"node-{node}.txt").open("w") as said:
            process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=said, stderr=said)
        self.started.append(process)
        return process

    def both(self, **each):
        return [self.start(node, **each) for node in (0, 1)]

    def said(self, node):
        return (self.folder / f"node-{node}.txt").read_text()

    def process(self, rank):
        """The number of a trainer's process, as soon as it is at work."""
        stage = self.folder / "out" / "stages" / "sft"
        wait_for((stage / f"ready{rank}").exists)
        return json.loads((stage / f"seen{rank}.json").read_text())["pid"]

    def checkpoints(self):
        return set((self.folder / "out" / "stages" / "sft" / "checkpoints").glob("checkpoint-*"))

    def record(self):
        return json.loads((self.folder / "out" / "run.json").read_text())


@pytest.fixture
def machines(shop):
    """Two machines of one plan with a process on each."""
    (shop / "plan.yaml").write_text(PLAN + "launch: {nodes: 2, strategy: ddp}\n")
    made = Machines(shop)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def codes(*processes):
    return [process.wait(timeout=400) for process in processes]


def test_a_run_trains_on_two_machines_and_both_say_so(machines):
    """Processes are numbered through all of them; the first machine keeps the record."""
    plan = (machines.folder / "plan.yaml").read_text()
    (machines.folder / "plan.yaml").write_text(plan.replace("nodes: 2", "nodes: 2, processes: 2"))
    assert codes(*machines.both()) == [0, 0], machines.said(0) + machines.said(1)
    assert machines.record()["status"] == "done"
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
    ranks = [machines.process(rank) for rank in range(2)]
    follower.send_signal(signal.SIGTERM)
    assert codes(leader, follower) == [130, 130]
    assert "stopped after step 3 of 9" in machines.said(0)
    assert "machine 0" in machines.said(1)
    assert machines.record()["status"] == "stopped"
    assert not any(map(alive, ranks))


def test_a_machine_that_is_lost_ends_the_run_with_the_code_that_starts_it_again(machines):
    """The others notice at once, end their processes, and end with 75."""
    leader, follower = machines.both(mode="wait")
    ranks = [machines.process(rank) for rank in range(2)]
    follower.kill()
    assert codes(leader) == [75]
    assert re.search(r"machine 1 \(.*\) was lost: its `advise run` is gone", machines.said(0))
    assert "resume with: advise run" in machines.said(0)
    assert machines.record()["status"] == "stopped"
    wait_for(lambda: not any(map(alive, ranks)))


@pytest.mark.long
def test_a_leader_that_is_lost_ends_those_that_follow_it_and_the_same_command_resumes(machines):
    """Killed, it says nothing any more; its own processes end with it."""
    leader, follower = machines.both(mode="wait")
    ranks = [machines.process(rank) for rank in range(2)]
    leader.kill()
    assert codes(follower) == [75]
    assert f"machine 0 ({socket.gethostname()}) was lost" in machines.said(1)
    wait_for(lambda: not any(map(alive, ranks)))
    assert codes(*machines.both()) == [0, 0]
    assert machines.record()["status"] == "done"


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
    assert machines.record()["status"] == "failed"


def test_faults_of_all_machines_come_together_before_anything_is_written(machines):
    """Another plan, other data, other flags: one error on all machines, exit code 2."""
    leader = machines.start(0)
    follower = machines.start(1, max_steps=3)
    assert codes(leader, follower) == [2, 2]
    assert "machine 1" in machines.said(0)
    assert all("not as on machine 0: --max-steps" in machines.said(node) for node in (0, 1))
    assert [file.name for file in (machines.folder / "out").iterdir()] == [".machines"]
