"""The machines of one run, by what each has written in the shared run folder; which one this is
says the scheduler, or a person.

Every machine has a folder there, locked as long as its `advise run` lives, with a small JSON in it.
Machine 0 says what is trained; torchrun brings the processes together.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.ground.errors import AdviseError, Fault, InputError, MachineNotReady, NodeLost, Stopped
from advisor.ground.files import text_of, write_atomically
from advisor.ground.types import Gpu
from advisor.ground.version import __version__
from advisor.launch.child import Child, Ended, free_port
from advisor.launch.failure_report import KILLED, KINDS
from advisor.launch.folder import RunFolder, holder, is_locked
from advisor.record.files import MACHINES

LOOK_S = 0.5  # between two looks at the notes of the others
FAIL_S = 30.0  # in which processes say what they have lost, once those of one machine have failed
END_S = 330.0  # after the first have ended well: torchrun itself waits five minutes for others
NOTE = "note.json"
SIGNALLED = 128  # what a launcher adds to the signal that ended a process
LIBRARIES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "bitsandbytes",
)  # fmt: skip
GLOO = "GLOO_SOCKET_IFNAME"

Message = dict[str, Any]
Guard = Callable[[Child], object]


def versions(software: Mapping[str, str | None], gpus: Sequence[Gpu]) -> dict[str, str | None]:
    """What has to be alike on every machine, apart from what is given."""
    python = ".".join(map(str, sys.version_info[:2]))
    own = {"advise": __version__, "Python": python, "processor": os.uname().machine}
    kinds = {"GPUs": ", ".join(sorted(gpu.name for gpu in gpus)) or None}
    return own | kinds | {name: software.get(name) for name in LIBRARIES}


def refuse_differences(leader: Message, own: Message, words: str) -> None:
    """Raise InputError if another plan, flag or input was given than on machine 0, MachineNotReady
    for other versions or GPUs.

    Args:
        words: Of this machine: 'machine 1 (gpu-b)'.
    """
    given, found = (
        [
            name if part == "given" else f"{name} {own[part].get(name)} ({leader[part].get(name)})"
            for name in sorted({**leader[part], **own[part]})
            if leader[part].get(name) != own[part].get(name)
        ]
        for part in ("given", "versions")
    )
    faults = [
        Fault(where=words, what=f"not as on machine 0: {what}", allowed="the same on every machine")
        for what in filter(None, (", ".join(given), ", ".join(found)))
    ]
    if faults:
        raise (InputError if given else MachineNotReady)(faults=faults)


class Machines:
    """The machines of a run, as one of them sees them."""

    def __init__(self, place: NodeRank, folder: Path, say: Callable[[str], object]) -> None:
        self.place = place
        self.say = say
        self.folder = folder / MACHINES
        self.others = [0] if place.node else list(range(1, place.nodes))
        self.words = f"machine {place.node} ({socket.gethostname()})"
        self.number = 0  # of the training at work
        self.bad_s = 0.0  # when the processes of another machine failed in it
        self.address = place.address or socket.gethostname()  # of machine 0
        self.run = secrets.token_hex(8)
        self.note: Message = {}

    def meet(self) -> None:
        """Be there for the others; machine 0 has to be there first. Raises MachineNotReady."""
        if self.place.node:
            leader = self._wait_for_machine(0)
            self.run, self.address = leader["run"], self.place.address or leader["address"]
        by = holder(self.folder / str(self.place.node))
        self._write({"run": self.run, "words": self.words, "address": self.address, "by": by})

    def agree(self, report: Message) -> None:
        """Wait until all machines have checked themselves, and found that they fit together.

        Raises what they have found; NodeLost; MachineNotReady if one does not come.

        Args:
            report: What is `given`, and `versions`: name -> digest or value.
        """
        if self.place.node:
            refuse_differences(self._wait_for(0, "report")["report"], report, self.words)
            self._write({"agrees": True})
            return
        self._write({"report": report})
        for node in self.others:
            self._wait_for_machine(node)
            self._wait_for(node, "agrees")

    def train(self, what: Message, start: Callable[[list[str], Guard], Ended]) -> Ended:
        """On machine 0: train on all machines, and wait until all have ended.

        Raises NodeLost, and what another machine has ended with.

        Args:
            what: Is trained, for the others.
            start: Starts torchrun here with more arguments; calls the guard about once a second.
        """
        self._ends_elsewhere()
        self.number, self.bad_s = self.number + 1, 0.0
        port = self.place.port or free_port()
        self._write({"training": what | {"number": self.number, "port": port}})
        own = start(self._arguments(port), self._guard)
        deadline_s = time.monotonic() + (FAIL_S if own.code else END_S)
        while len(ended := self._ends_elsewhere()) < len(self.others):
            if own.code in KILLED or time.monotonic() > deadline_s:
                break
            time.sleep(LOOK_S)
        self._write({"training": None})  # whoever is still at it ends
        ends = list(ended.values())
        for node, end in ended.items():
            if end.code > SIGNALLED and not end.was_stopped:  # it left no word, and others miss it
                signal = f"a process of machine {node} was ended by signal {end.code - SIGNALLED}"
                self.say(f"{signal}; 9 is usually the out-of-memory killer")
        # Ended by the guard, it says nothing of the cause.
        codes = [0 if own.code in KILLED else own.code, *(one.code for one in ends), own.code]
        return Ended(next(filter(None, codes), 0), any(one.was_stopped for one in (own, *ends)))

    def follow(self, start: Callable[[Message, list[str], Guard], Ended]) -> None:
        """On the others: train what machine 0 says, until the run is done.

        Raises how it ended otherwise; NodeLost if machine 0 is gone.
        """
        while "end" not in (note := self._read(0)):
            training = note.get("training")
            if training and training["number"] > self.number:
                self.number = training["number"]
                ended = start(training, self._arguments(training["port"]), self._guard)
                self._write({"ended": [self.number, *ended]})
            time.sleep(LOOK_S)

    def _guard(self, child: Child) -> None:
        try:
            if self.place.node:
                is_over = (self._read(0).get("training") or {}).get("number") != self.number
            else:
                if any(one.code for one in self._ends_elsewhere().values()) and not self.bad_s:
                    self.bad_s = time.monotonic()
                is_over = 0 < self.bad_s < time.monotonic() - FAIL_S
        except AdviseError:
            is_over = True
        if is_over:
            child.end()

    def _ends_elsewhere(self) -> dict[int, Ended]:
        """How the training has ended on other machines. Raises NodeLost, and what they say."""
        ends = {node: self._read(node).get("ended", [0]) for node in self.others}
        return {node: Ended(*one[1:]) for node, one in ends.items() if one[0] == self.number != 0}

    def _arguments(self, port: int) -> list[str]:
        """For torchrun. With its static rendezvous, whose store is c10d's, the processes of machine
        0 come first; the dynamic one numbers machines by their names.
        """
        place = self.place
        return [
            *("--nnodes", str(place.nodes), "--node-rank", str(place.node)),
            *("--rdzv-backend", "static", "--rdzv-id", f"{self.run}-{self.number}"),
            *("--master-addr", self.address, "--master-port", str(port)),
        ]

    def _write(self, more: Message) -> None:
        self.note |= more
        write_atomically(self.folder / str(self.place.node) / NOTE, json.dumps(self.note))

    def _note_of(self, node: int) -> tuple[bool, Message]:
        """(whether the machine is alive, what it has written)."""
        folder = self.folder / str(node)
        is_alive = is_locked(folder)  # asked first: it writes its end before it goes
        with suppress(OSError, ValueError):
            return is_alive, dict(json.loads(text_of(folder / NOTE)))
        return is_alive, {}

    def _wait_for_machine(self, node: int) -> Message:
        """What a machine says, as soon as it is there. Raises MachineNotReady."""
        deadline_s = time.monotonic() + self.place.wait_s
        before: Message = {}
        while time.monotonic() < deadline_s:
            is_alive, note = self._note_of(node)
            # Twice the same, by who holds the lock: an earlier run has left another.
            is_own = note.get("by") == [*holder(self.folder / str(node))] and note == before
            is_leader = is_alive and is_own and "end" not in note
            if note.get("run") == self.run if node else is_leader:
                return note
            before = note
            time.sleep(LOOK_S)
        raise MachineNotReady(
            f"machine {node} has not come within {self.place.wait_s} s",
            where=self.words,
            allowed=f"the same command on every machine, and {self.folder.parent} on a disk that"
            " they share",
        )

    def _read(self, node: int) -> Message:
        """What a machine of this run says. Raises what it ended with; NodeLost if it is gone."""
        is_alive, note = self._note_of(node)
        is_ours = note.get("run") == self.run
        words = note["words"] if is_ours else f"machine {node}"
        code, text = note.get("end", (0, ""))
        if is_ours and code:
            raise KINDS.get(code, AdviseError)(text, where=words)
        if not is_ours or not (is_alive or "end" in note):
            raise NodeLost(
                f"{words} was lost: its `advise run` is gone",
                allowed="what was trained since the last checkpoint is lost",
                hint="the same command on every machine resumes",
            )
        return note

    def _wait_for(self, node: int, key: str) -> Message:
        while key not in (note := self._read(node)):
            time.sleep(LOOK_S)
        return note

    def close(self, code: int, text: str) -> None:
        """Say how the run ended here."""
        with suppress(AdviseError):
            self._write({"end": [code, text]})


def gloo_interface(address: str) -> dict[str, str]:
    """Lets gloo use the network interface that reaches an address. By itself it takes that of the
    machine's own name: often 127.0.1.1, where no other machine comes.
    """
    with suppress(ImportError, OSError), socket.socket(type=socket.SOCK_DGRAM) as asking:
        import psutil  # comes with accelerate

        asking.connect((address, 9))  # nothing is sent
        own = asking.getsockname()[0]
        for name, known in psutil.net_if_addrs().items():
            if any(one.address == own for one in known):
                return {GLOO: os.environ.get(GLOO) or name}
    return {}


@contextmanager
def machines_of(
    place: NodeRank | None, folder: Path, say: Callable[[str], object]
) -> Iterator[Machines | None]:
    """The machines of a run, which are told how it ends; None if it has one alone.

    Raises MachineNotReady if this very machine is at work already.
    """
    if place is None:
        yield None
        return
    alone = "start one `advise run` on each machine (srun --ntasks-per-node=1)"
    mine = RunFolder(folder / MACHINES / str(place.node), if_taken=alone)
    with mine:
        machines = Machines(place, folder, say)
        try:
            machines.meet()
            yield machines
        except AdviseError as error:
            machines.close(error.exit_code, error.text())
            raise
        except KeyboardInterrupt:
            machines.close(Stopped.exit_code, "it was stopped")
            raise
        machines.close(0, "")


# Variables with: how many machines, which one this is, the address of the first one. The first
# whose count is set tells: what a person sets by hand comes before what is always there.
SCHEDULERS = (
    ("NNODES", "NODE_RANK", "MASTER_ADDR"),
    ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"),  # Kubeflow
    # Of Slurm's step, which may have fewer machines than the job: srun sets them in each task.
    ("SLURM_STEP_NUM_NODES", "SLURM_NODEID", "MASTER_ADDR"),
    ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"),
)
JOIN, JOIN_S = "ADVISE_JOIN_S", 600


class NodeRank(Struct, frozen=True, kw_only=True):
    """This machine among those of a run. Machine 0 decides, and keeps the record."""

    node: int
    nodes: int
    address: str  # of machine 0, as the others reach it; empty: by the name that it says
    port: int | None  # there; None: machine 0 chooses a free one
    wait_s: int  # in which every machine has to come


def find_place(
    nodes: int, environ: Mapping[str, str], *, plan: Path, folder: Path
) -> NodeRank | None:
    """This machine among those of a run; None if the run has one alone.

    Raises InputError, with both numbers, if the plan and the scheduler disagree; if nothing says
    which of the machines this is, with the command to start.
    """
    scheduler = next((names for names in SCHEDULERS if environ.get(names[0])), None)
    if scheduler is None:
        if nodes == 1:
            return None
        here = f"NNODES={nodes} NODE_RANK=0"
        start = f"srun --nodes={nodes} --ntasks-per-node=1 --kill-on-bad-exit=0"
        raise InputError(
            f"the plan is for {nodes} machines (launch.nodes), and nothing says which one this is",
            allowed="the same command on every machine, with the same folder on a shared disk,"
            f" started by a scheduler, or by hand with NODE_RANK from 0 to {nodes - 1}",
            hint=f"{start if 'SLURM_JOB_ID' in environ else here}"
            f" {shlex.join(['advise', 'run', str(plan), '--output', str(folder)])}",
        )
    count_name, node_name, address_name = scheduler
    count = _number(environ, count_name, least=1, most=10_000)
    if count != nodes:
        raise InputError(
            f"launch.nodes is {nodes} in the plan, and {count_name} says that the command is"
            f" started on {count}",
            allowed="the same number in both",
            hint=f"--set launch.nodes={count}, start it on {nodes}, or unset {count_name} if it"
            " means something else",
        )
    if nodes == 1:
        return None
    addresses = (environ.get("MASTER_ADDR") or environ.get(address_name, "")).split()
    port = next((name for name in ("MASTER_PORT", "PET_MASTER_PORT") if environ.get(name)), None)
    return NodeRank(
        node=_number(environ, node_name, least=0, most=nodes - 1),
        nodes=nodes,
        address=addresses[0] if addresses else "",
        port=None if port is None else _number(environ, port, least=1, most=65_535),
        wait_s=_number(environ, JOIN, least=1, most=10**6) if environ.get(JOIN) else JOIN_S,
    )


def node_of(nodes: int, environ: Mapping[str, str]) -> int:
    """The number of this machine in a run on several, 0 if nothing says it."""
    name = next((names[1] for names in SCHEDULERS if environ.get(names[0])), "")
    text = environ.get(name, "") if nodes > 1 else ""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _number(environ: Mapping[str, str], name: str, *, least: int, most: int) -> int:
    text = environ.get(name, "")
    # Digits alone: int() takes '1_0' and digits of other scripts, too.
    if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    raise InputError(
        f"{name} is '{text}'" if text else f"{name} is not set",
        where=name,
        allowed=f"a whole number from {least} to {most}",
    )
