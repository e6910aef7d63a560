"""Which machine this one is, and how machines find each other: without trainers."""

import json
import os
import re
import socket
import threading
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, MachineNotReady, NodeLost
from advisor.ground.types import Gpu
from advisor.launch import folder, nodes_joining, nodes_meeting
from advisor.launch.child import Ended
from advisor.launch.folder import RunFolder
from advisor.launch.nodes import Place, find_place, first_host, interface_of
from advisor.launch.nodes_channel import (
    FOLLOWER,
    LEADER,
    MAX_LINE,
    Channel,
    Lines,
    Lost,
    connection_key,
    proof,
)
from advisor.launch.nodes_follower import note_silent_end
from advisor.launch.nodes_joining import join
from advisor.launch.nodes_leader import Crew, Stops
from advisor.launch.nodes_meeting import Peer, gather
from advisor.launch.nodes_order import Order, order_of
from advisor.launch.nodes_report import input_faults, machine_faults, report_of
from advisor.plan.record import ErrorRecord, error_of_rank
from advisor.plan.record_files import write_record
from tests.launch.conftest import MACHINE, wait_for

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
    ("environ", "at"),
    [
        (BY_HAND, "gpu-a:29600"),
        (BY_HAND | {"MASTER_PORT": "4000"}, "gpu-a:4000"),
        (SLURM, "gpu03:23456"),  # 20,000 + the job's number modulo 10,000
        (SLURM | {"MASTER_ADDR": "gpu03-ib", "MASTER_PORT": "4000"}, "gpu03-ib:4000"),
        (SKY, "10.0.0.5:29600"),
        (KUBEFLOW, "job-0:23456"),
        (BY_HAND | SLURM | SKY, "gpu-a:29600"),  # what is set by hand comes first
    ],
)
def test_each_scheduler_says_where_this_machine_stands(environ, at):
    """Number, address and port of the leader come from the variables that each of them sets."""
    place = place_of(2, environ)
    assert (place.node, place.nodes, place.meets_at) == (1, 2, at)
    assert not place.leads


def test_one_machine_alone_asks_nobody():
    """A plan for one machine needs no variables, and those of a job on one do not matter."""
    assert place_of(1, {}) is None
    assert place_of(1, SLURM | {"SLURM_STEP_NUM_NODES": "1"}) is None
    # A batch script of a job with several machines, which starts one command on one of them.
    assert place_of(1, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "8"}) is None


@pytest.mark.parametrize(
    ("nodes", "environ", "words"),
    [
        (3, SLURM, "launch.nodes is 3 in the plan, and Slurm (SLURM_STEP_NUM_NODES) says that"
         " the command is started on 2 machines"),
        (1, SKY, "launch.nodes is 1 in the plan, and SkyPilot (SKYPILOT_NUM_NODES)"),
        (2, SLURM | {"SLURM_LOCALID": "1"}, "srun --ntasks-per-node=1"),
        (2, {}, "MASTER_ADDR={host} NNODES=2 NODE_RANK=1 advise run /shared/plan.yaml --output"
         " /shared/run"),
        (2, {"SLURM_JOB_ID": "7"}, "srun --nodes=2 --ntasks-per-node=1"),
        (2, BY_HAND | {"NODE_RANK": "2"}, "a whole number from 0 to 1"),
        (2, BY_HAND | {"NODE_RANK": "١"}, "NODE_RANK is"),
        (2, BY_HAND | {"NNODES": "1:2"}, "NNODES is '1:2'"),
        (2, BY_HAND | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        (2, BY_HAND | {"MASTER_PORT": "99999"}, "a whole number from 1 to 65535"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_scheduler_is_refused(nodes, environ, words):
    """The error has both numbers, or the command that is right, exit code 2."""
    with pytest.raises(InputError, match=re.escape(words.format(host=socket.gethostname()))):
        place_of(nodes, environ)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[03-05,7],cpu1", "gpu03"), ("a,b", "a"), ("a", "a"), ("r[2,4]n[10-12]", "r2n10"),
        ("node[007]-ib", "node007-ib"), ("", ""),
    ],
)  # fmt: skip
def test_the_first_name_of_a_list_of_slurm(hosts, first):
    """Ranges are read as Slurm writes them, with their zeros."""
    assert first_host(hosts) == first


def test_the_interface_of_an_address():
    """gloo is told the interface by which the machines have met."""
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


# ------------------------------------------------------------------------------------- the channel


@pytest.fixture
def ends():
    """Both ends of a connection: sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pair = [socket.create_connection(server.getsockname()), server.accept()[0]]
    yield pair
    for end in pair:
        end.close()


KEY = connection_key(b"key", "1", "2")


def sealed(number, text, *, key=KEY, own=FOLLOWER):
    return json.dumps([proof(key, own, str(number), text), text]).encode() + b"\n"


def test_messages_arrive_in_order_and_an_end_is_noticed(ends):
    """What one end sends the other one reads, and it hears at once when the first is gone."""
    leader = Channel(Lines(ends[0]), KEY, own=LEADER)
    follower = Channel(Lines(ends[1]), KEY, own=FOLLOWER)
    for number in range(3):
        leader.send({"do": "train", "number": number})
    assert [follower.inbox.get(timeout=5)["number"] for _ in range(3)] == [0, 1, 2]
    follower.close()
    assert leader.inbox.get(timeout=5) is None
    assert "closed" in leader.why


@pytest.mark.parametrize(
    "sent",
    [
        sealed(0, '{"do": "stop"}', key=connection_key(b"other", "1", "2")),
        sealed(1, '{"do": "stop"}'),  # not the next one
        sealed(0, '{"do": "stop"}', own=LEADER),  # sent back to who sent it
        sealed(0, '{"do": "ping"}') * 2,  # replayed
        b'{"do": "stop"}\n',
        sealed(0, "[1]"),
        sealed(0, "[" * 100_000),
        b"\x80\x04\x95\n",
        b"a" * (MAX_LINE + 10),
    ],
)
def test_what_is_not_of_the_run_ends_the_connection_and_is_not_read(ends, sent):
    """Wrong keys, replays, and lines that are too long or no message."""
    heard = []
    leader = Channel(
        Lines(ends[0]), KEY, own=LEADER, at_once=lambda message: bool(heard.append(message))
    )
    threading.Thread(target=ends[1].sendall, args=[sent], daemon=True).start()
    assert leader.inbox.get(timeout=5) is None
    assert leader.why
    assert not heard


def test_a_machine_that_is_silent_is_lost(ends, monkeypatch):
    """A machine whose network is gone does not say so: it is given up after a time."""
    monkeypatch.setattr("advisor.launch.nodes_channel.LOST_AFTER_S", 1.0)
    leader = Channel(Lines(ends[0]), KEY, own=LEADER)
    assert leader.inbox.get(timeout=10) is None
    assert "nothing was heard" in leader.why


# ------------------------------------------------------------------------------------- the meeting


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def at():
    """A place of two machines on the loopback."""
    return Place(node=0, nodes=2, address="127.0.0.1", port=free_port(), told_by="NNODES")


def meeting(place, folder, wait_s=20.0):
    """`gather` in a thread: what came of it, once it has ended."""
    found = []

    def run():
        try:
            found.append(
                gather(
                    place, folder, wait_s=wait_s, say=lambda line: None, at_once=lambda one: False
                )
            )
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def joined(place, folder, node=1):
    return join(
        replace(place, node=node), folder, wait_s=10, say=lambda line: None,
        at_once=lambda one: False,
    )  # fmt: skip


def connected(place):
    """A socket at the leader, as soon as it listens, and its first line."""
    for _ in range(200):
        try:
            guest = socket.create_connection((place.address, place.port), timeout=5)
        except OSError:
            time.sleep(0.02)
        else:
            return guest, json.loads(Lines(guest).next(5))
    raise AssertionError("nobody listens")


def test_strangers_disturb_no_meeting(at, tmp_path):
    """Connections that say nothing, nonsense, or a wrong proof are dropped; the machine of the run
    joins all the same, and the leader's key is gone afterwards.
    """
    folder = tmp_path / "run"
    thread, found = meeting(at, folder)
    silent, _ = connected(at)
    for answer in (
        b"GET / HTTP/1.1\r\n\r\n", b"null\n", b"\xff\xfe\n", b"a" * 10_000, b'{"node": true}\n',
        b'{"node": 1, "number": "1", "proof": "0"}\n', b'{"node": 7, "proof": null}\n',
        b'{"node": 1, "number": [], "proof": {"a": 1}, "host": 3}\n',
    ):  # fmt: skip
        guest, _ = connected(at)
        guest.sendall(answer)
        guest.close()
    leader = joined(at, folder)
    thread.join(20)
    (peer,) = found[0]
    assert (peer.node, peer.host) == (1, socket.gethostname())
    peer.channel.send({"do": "check"})
    assert leader.channel.inbox.get(timeout=5) == {"do": "check"}
    assert not folder.exists()  # a run that is refused leaves nothing
    silent.close()
    peer.channel.close()


def test_a_folder_that_is_not_shared_is_named_by_both(at, tmp_path, monkeypatch):
    """The leader names both folders and machines; the other one says it for itself. Exit code 4."""
    monkeypatch.setattr(nodes_joining, "LOOK_S", 0.1)
    monkeypatch.setattr(nodes_meeting, "UNSEEN_S", 0.1)
    thread, found = meeting(at, tmp_path / "a")
    with pytest.raises(MachineNotReady, match=r"does not see in .*/b what node 0"):
        joined(at, tmp_path / "b")
    thread.join(10)
    assert isinstance(found[0], MachineNotReady)
    assert re.search(
        r"not shared: node 1 \(.*\) does not see in .*/b what .* written into .*/a", str(found[0])
    )


def test_a_lie_about_the_folder_does_not_end_a_meeting(at, tmp_path):
    """Who has not read the key may say what it likes: the machine that has counts."""
    thread, found = meeting(at, tmp_path / "run")
    guest, _ = connected(at)
    guest.sendall(b'{"node": 1, "number": "1", "host": "x", "folder": "y", "proof": null}\n')
    joined(at, tmp_path / "run")
    thread.join(10)
    assert [peer.node for peer in found[0]] == [1]
    guest.close()


def test_a_node_that_does_not_come_and_one_that_comes_twice_are_named(at, tmp_path):
    """The error has the numbers of those that are missing; the others are told."""
    three = replace(at, nodes=3)
    thread, found = meeting(three, tmp_path / "run", wait_s=1.5)
    there = joined(three, tmp_path / "run")
    thread.join(10)
    assert re.search(r"node 2 of 3 did not come within 2 s", str(found[0])), found
    assert there.channel.inbox.get(timeout=5)["code"] == 4
    thread, found = meeting(three, tmp_path / "run")
    first, second = joined(three, tmp_path / "run"), joined(three, tmp_path / "run")
    thread.join(10)
    assert "two machines say that they are node 1" in str(found[0])
    assert [one.channel.inbox.get(timeout=5)["code"] for one in (first, second)] == [2, 2]


def test_a_leader_that_is_none_is_not_believed(at, tmp_path):
    """Who names another file than a leader's, or cannot prove to know the key, is left."""
    (tmp_path / "secret").write_text("0" * 64)
    with socket.create_server((at.address, at.port)) as server:

        def pretend():
            for name in cycle(("secret", "../secret", "/etc/passwd")):
                try:
                    guest, _ = server.accept()
                except OSError:  # the test is over
                    return
                guest.sendall(
                    json.dumps({"advise-run": 1, "number": "1", "file": name}).encode() + b"\n"
                )
                guest.recv(1000)
                guest.close()

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(MachineNotReady, match="names a file that is no leader's"):
            join(
                replace(at, node=1), tmp_path, wait_s=1, say=lambda line: None,
                at_once=lambda one: False,
            )  # fmt: skip


def test_a_port_that_is_taken_is_named(at, tmp_path):
    """The next step is another port."""
    with socket.create_server((at.address, at.port)):
        thread, found = meeting(at, tmp_path / "run")
        thread.join(10)
    assert re.search(rf"cannot listen on port {at.port}.*\n.*MASTER_PORT", str(found[0]))


# ------------------------------------------------------------------------- what the machines say


H100 = Gpu(name="NVIDIA H100", memory_total_bytes=80 * 2**30)


def report(*, digest="a", command=None, software=None, gpus=(H100,)):
    machine = replace(MACHINE, software=MACHINE.software | (software or {}))
    return report_of(
        digest=digest, command=command or {"--only": None}, hardware=machine, gpus=gpus
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (report(software={"torch": "2"}), "other versions than on node 0: torch 2 (1 here)"),
        (report(software={"trl": None}), "trl not installed (1 here)"),
        (report(gpus=[replace(H100, name="NVIDIA A100")]), "NVIDIA A100, and NVIDIA H100 here"),
        (
            report(gpus=[replace(H100, memory_total_bytes=40 * 2**30)]),
            "other memory than on node 0: 40.0 GiB, and 80.0 GiB here",
        ),
        (report(digest="b"), "another plan"),
        (report(command={"--only": "sft"}), "other flags than node 0: --only"),
        ({"versions": None, "gpus": [7], "command": 3, "plan": []}, "another plan"),
    ],
)
def test_machines_that_do_not_fit_together_are_named(other, words):
    """Other versions, GPUs, plans and flags are one error before anything is loaded."""
    found = [
        *input_faults(report(), other, "node 1 (b)"),
        *machine_faults(report(), other, "node 1 (b)"),
    ]
    assert any(words in fault.what for fault in found), found
    assert not [*input_faults(report(), report(), ""), *machine_faults(report(), report(), "")]


def test_an_order_starts_names_of_the_plan_alone():
    """What an order may say is checked: no path out of the folder, no other words."""
    order = Order(
        entries=("sft",), folder=".", flags=("--no-judge",), server=None, port=4000, id="0" * 16
    )
    sent = json.loads(json.dumps(order.to_message()))
    assert order_of(sent) == order
    for change in (
        {"folder": "../other"}, {"folder": "/etc"}, {"flags": ["--run=/etc"]}, {"flags": ["x"]},
        {"port": True}, {"port": 0}, {"id": "x"}, {"entries": 3}, {"server": 3}, {"flags": None},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="another version"):
            order_of(sent | change)


@pytest.mark.parametrize(
    ("code", "known", "for_memory", "kind"),
    [
        (137, [], True, "OutOfMemory"),
        (137, [], False, "TrainingFailed"),
        (1, [], False, "TrainingFailed"),
        (137, [{"rank": 3, "lost_others": True, "exit_code": 5}], True, "OutOfMemory"),
        (5, [{"rank": 3, "lost_others": True, "exit_code": 5}], False, None),  # lost elsewhere
        (5, [{"rank": 3, "exit_code": 5}], False, None),  # it said itself what was wrong
        (130, [], False, None),
    ],
)
def test_a_process_that_ended_without_a_word_is_written_down(
    tmp_path, code, known, for_memory, kind
):
    """What only its own machine can know stands beside the errors of the others, with its name."""
    (tmp_path / "sft").mkdir()
    for one in known:
        write_record(
            tmp_path / "sft" / error_of_rank(one["rank"]), ErrorRecord(kind="E", what="w", **one)
        )
    note_silent_end(tmp_path, ["sft"], Ended(code, False), ranks=range(2, 4), for_memory=for_memory)
    file = tmp_path / "sft" / error_of_rank(2)
    assert file.exists() == (kind is not None)
    if kind is not None:
        found = json.loads(file.read_text())
        assert (found["kind"], found["host"]) == (kind, socket.gethostname())


def test_lines_that_never_end_are_given_up(ends):
    """A line of the handshake has a limit far below that of a message."""
    ends[1].sendall(b"a" * 5000)
    with pytest.raises(Lost, match="too long"):
        Lines(ends[0], longest=4096).next(1)


def test_a_wait_for_the_key_ends_as_soon_as_it_is_there(tmp_path):
    """A file that appears late is seen."""
    name = f"{nodes_meeting.TEMPORARY}meeting-{'0' * 16}"
    threading.Timer(0.3, (tmp_path / name).write_text, ["0" * 64]).start()
    assert nodes_joining._key_of(tmp_path, name) == b"0" * 64
    wait_for(lambda: (tmp_path / name).exists())


def crew_of(ends):
    """A leader's crew of one machine, whose channel is the second value."""
    peer = Peer(node=1, host="b", channel=Channel(Lines(ends[0]), KEY, own=LEADER))
    place = Place(node=0, nodes=2, address="127.0.0.1", port=4000, told_by="NNODES")
    return Crew(place, [peer], Stops()), Channel(Lines(ends[1]), KEY, own=FOLLOWER)


def trained(crew, start):
    def order(rendezvous):
        return Order(
            entries=("sft",), folder=".", flags=(), server=None, port=rendezvous.port,
            id=rendezvous.id,
        )  # fmt: skip

    return crew.train(order, start, "stage sft was trained")


def test_the_code_of_a_training_is_that_of_the_machine_that_failed_first(ends):
    """What another machine says of an earlier training does not count."""
    crew, other = crew_of(ends)

    def start(rendezvous, guard):
        order = other.inbox.get(timeout=5)
        other.send({"do": "ended", "id": "0" * 16, "code": 2, "was_stopped": False})
        other.send({"do": "ended", "id": order["id"], "code": 137, "was_stopped": False})
        return Ended(0, False)

    assert trained(crew, start) == Ended(137, False)
    assert trained(crew, lambda *_: answered(other, Ended(0, True))) == Ended(130, True)


def answered(other, own):
    """The other machine was stopped as well."""
    order = other.inbox.get(timeout=5)
    other.send({"do": "ended", "id": order["id"], "code": 130, "was_stopped": True})
    return own


def test_a_training_with_a_lost_machine_is_not_started_again(ends):
    """The error has a code of its own; the machine's own failure counts more."""
    crew, other = crew_of(ends)
    other.close()
    wait_for(lambda: crew.peers[0].channel.is_lost)
    with pytest.raises(
        NodeLost, match=r"node 1 \(b\): this machine was lost while stage sft"
    ) as it:
        trained(crew, lambda *_: pytest.fail("it was started"))
    assert it.value.exit_code == 75


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
