"""A machine of a run that follows its leader: it checks what it needs, starts what it is told to,
and ends as the leader does.
"""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from advisor.ground.errors import AdviseError, Fault, NodeLost, OutOfMemory, Stopped, TrainingFailed
from advisor.launch.child import Child, Ended
from advisor.launch.failure_report import (
    KINDS,
    STOP_CODES,
    killed_for_memory,
    oom_kills,
    records_of,
)
from advisor.launch.input_digests import Say
from advisor.launch.nodes import Place
from advisor.launch.nodes_channel import Message
from advisor.launch.nodes_joining import join
from advisor.launch.nodes_leader import TOGETHER_S, Guard, Stops, gloo_interface
from advisor.launch.nodes_meeting import Peer, join_s
from advisor.launch.nodes_order import Order, Rendezvous, order_of
from advisor.launch.nodes_report import Report, faults_to_message
from advisor.plan.record import ErrorRecord, error_of_rank
from advisor.plan.record_files import write_record

Start = Callable[[Order, Rendezvous, Guard], Ended]


class Follower:
    """This machine, with its connection to the leader."""

    def __init__(self, place: Place, leader: Peer, stops: Stops) -> None:
        self.place = place
        self.leader = leader
        self.stops = stops
        self._is_to_end = self._is_over = False
        self._asked_s: float | None = None  # when it was asked to stop here
        self._told: Message | None = None  # how the run ended, if that was heard during a training

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the trainers here."""
        return gloo_interface(self.leader.channel.own_address)

    def compare(self, own: Report) -> None:
        """Tell what this machine is, and wait until the leader has found that all fit together.

        Raises how the leader ended, if it did.
        """
        self._send({"do": "report", **own})
        if self._next()["do"] != "check":
            raise _bug()

    def checked(self, inputs: Mapping[str, str], warnings: Iterable[str]) -> None:
        """Tell that this machine has what it needs.

        Args:
            inputs: Name of an input -> digest of what it holds here.
        """
        told = [Fault(what=warning) for warning in warnings]
        self._send({"do": "checked", "inputs": dict(inputs), "warnings": faults_to_message(told)})

    def refuse(self, error: AdviseError) -> None:
        """Tell what this machine lacks; wait for the leader's word, since it shows everything."""
        self._send(
            {"do": "checked", "faults": faults_to_message(error.faults), "code": error.exit_code}
        )
        self._next()

    def follow(self, start: Start, *, folder: Path, processes: int) -> None:
        """Start what the leader says, until the run is done.

        Raises how it ended otherwise; NodeLost if the leader is gone.

        Args:
            start: Starts a training here and waits; calls the guard about once a second.
            folder: The run folder.
            processes: Of each machine.
        """
        while (message := self._next())["do"] != "end":
            if message["do"] != "train":
                continue
            order = order_of(message)
            rendezvous = Rendezvous(
                nodes=self.place.nodes, node=self.place.node, address=self.place.address,
                port=order.port, id=order.id,
            )  # fmt: skip
            self._is_to_end = False
            kills = oom_kills()
            ended = start(order, rendezvous, self._guard)
            if self.leader.channel.is_lost:
                raise self._leader_lost()
            if ended.was_stopped and not self.stops.is_known:
                self._ask_to_stop()
            if not self._is_to_end:
                note_silent_end(
                    folder / order.folder / "stages",
                    order.entries,
                    ended,
                    ranks=range(self.place.node * processes, (self.place.node + 1) * processes),
                    for_memory=killed_for_memory(kills) is True,
                )
            self._send(
                {
                    "do": "ended",
                    "id": order.id,
                    "code": ended.code,
                    "was_stopped": ended.was_stopped,
                }
            )

    def _guard(self, child: Child) -> None:
        """Called about once a second while the child runs here."""
        while True:
            try:
                message = self.leader.channel.inbox.get(timeout=0.001)
            except queue.Empty:
                break
            if message is None:
                break
            if message.get("do") in ("kill", "end"):
                self._is_to_end = True
            if message.get("do") == "end":
                self._told = message
        if self._is_to_end or self.leader.channel.is_lost:
            child.end()
        elif child.stops and not self.stops.is_known:
            self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        self.stops.is_known = True
        self._asked_s = time.monotonic()
        self._send({"do": "stop"})

    def _next(self) -> Message:
        """The leader's next word. Raises how the run ended, if not well."""
        message, self._told = self._told, None
        while message is None:
            try:
                # With a limit, so that a signal is looked at.
                message = self.leader.channel.inbox.get(timeout=1.0)
                if message is None:
                    raise self._leader_lost()
            except queue.Empty:
                continue
            except KeyboardInterrupt:
                if not self.stops.is_known:
                    self._ask_to_stop()
                elif self._asked_s and time.monotonic() - self._asked_s > TOGETHER_S:
                    raise Stopped("stopped on this machine at once") from None
        if message.get("do") == "end" and message.get("code") != 0:
            raise self._end_of(message)
        return {"do": None, **message}

    def _end_of(self, message: Message) -> AdviseError:
        code, text = message.get("code"), str(message.get("text", ""))
        kind = KINDS.get(code, AdviseError) if isinstance(code, int) else AdviseError
        self._is_over = True
        return kind(f"the run ended on node 0 ({self.leader.host}): {text}")

    def _leader_lost(self) -> NodeLost:
        return NodeLost(
            f"node 0 ({self.leader.host}) was lost: {self.leader.channel.why}",
            allowed="it leads the run; what was trained since the last checkpoint is lost",
            hint="the same command on every machine resumes",
        )

    def _send(self, message: Message) -> None:
        self.leader.channel.send(message)

    def close(self, error: BaseException | None) -> None:
        """Leave; tell the leader if this machine has failed by itself."""
        if error is not None and not self.leader.channel.is_lost and not self._is_over:
            code, faults = 70, [Fault(what=f"unexpected {error!r}")]
            if isinstance(error, AdviseError):
                code, faults = error.exit_code, list(error.faults)
            self._send({"do": "failed", "code": code, "faults": faults_to_message(faults)})
            time.sleep(0.2)  # so that it arrives before the connection ends
        self.leader.channel.close()


def _bug() -> AdviseError:
    return AdviseError("node 0 says something that no leader says", hint="this is a bug")


@contextmanager
def following(place: Place, folder: Path, *, say: Say) -> Iterator[Follower]:
    """The connection to the leader, until the run ends.

    Raises MachineNotReady if the leader is not found, or its folder is another one.
    """
    stops = Stops()
    leader = join(place, folder, wait_s=join_s(os.environ), say=say, at_once=stops.receive)
    follower = Follower(place, leader, stops)
    say(f"node {place.node} ({socket.gethostname()}): follows node 0 at {place.meets_at}")
    try:
        yield follower
    except BaseException as error:
        follower.close(error)
        raise
    follower.close(None)


def note_silent_end(
    stages: Path,
    entries: Sequence[str],
    ended: Ended,
    *,
    ranks: Sequence[int],
    for_memory: bool,
) -> None:
    """Write down what the leader cannot see: that a process on this machine was ended without a
    word of its own.

    Args:
        stages: The folder that holds those of the stages.
        entries: The stages of the training.
        ended: How the launcher ended here.
        ranks: The numbers of the processes on this machine.
        for_memory: The kernel's out-of-memory killer has ended a process here.
    """
    if ended.code == 0 or ended.was_stopped or ended.code in STOP_CODES:
        return
    folder = stages / entries[-1]
    known = [record for record in records_of(folder) if record.rank in ranks]
    if any(not one.lost_others and one.exit_code != Stopped.exit_code for one in known):
        return
    silent = [rank for rank in ranks if rank not in {record.rank for record in known}]
    by_signal = -ended.code if ended.code < 0 else ended.code - 128 if ended.code > 128 else None
    if not silent or (known and by_signal is None):
        return  # what they have lost was on another machine
    if for_memory:
        error: AdviseError = OutOfMemory(
            "it was ended by the kernel's out-of-memory killer: the machine ran out of memory"
        )
    elif by_signal is not None:
        error = TrainingFailed(f"it was ended by signal {by_signal}", hint="its output says more")
    else:
        error = TrainingFailed(
            f"it ended with exit code {ended.code}", hint="its output on that machine says more"
        )
    record = ErrorRecord.of(error, rank=silent[0], at_s=time.time(), host=socket.gethostname())
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / error_of_rank(silent[0]), record)
