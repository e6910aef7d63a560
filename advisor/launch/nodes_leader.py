"""The leader of a run on several machines: it starts each training on all of them, and ends it on
all of them when one fails, is lost, or is asked to stop.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from advisor.ground.errors import AdviseError, Fault, InputError, MachineNotReady, NodeLost
from advisor.ground.types import Gpu
from advisor.launch.child import Child, Ended
from advisor.launch.failure_report import KINDS
from advisor.launch.input_digests import Say
from advisor.launch.nodes import Place, interface_of
from advisor.launch.nodes_channel import Message
from advisor.launch.nodes_meeting import Peer, gather, join_s, tell_end
from advisor.launch.nodes_order import Order, Rendezvous, new_rendezvous
from advisor.launch.nodes_report import (
    Report,
    changed_inputs,
    faults_of,
    gpus_of,
    input_faults,
    machine_faults,
)

TOGETHER_S = 5.0  # a scheduler's signals reach the machines one after the other: one request
# After one machine's processes failed, those of the others usually say what they have lost.
FAIL_S = 30.0
END_S = 330.0  # after the leader's have ended well: torchrun itself waits five minutes for others
GLOO = "GLOO_SOCKET_IFNAME"

Guard = Callable[[Child], object]
Start = Callable[[Rendezvous, Guard], Ended]


class Stops:
    """A request to stop on one machine is one on all, once."""

    def __init__(self) -> None:
        self.is_known = False

    def receive(self, message: Message) -> bool:
        """Take a message that asks to stop as a signal to this process."""
        if message.get("do") != "stop":
            return False
        if not self.is_known:
            self.is_known = True
            os.kill(os.getpid(), signal.SIGTERM)
        return True


@dataclass(kw_only=True, slots=True)
class _Training:
    """What the machines have said of one training."""

    id: str = ""  # of its rendezvous
    ended: dict[int, Ended] = field(default_factory=dict)  # by node
    first_bad: int | None = None  # exit code of the first that failed
    bad_s: float = 0.0  # since when


class Crew:
    """The other machines of a run, as the leader sees them."""

    def __init__(self, place: Place, peers: Sequence[Peer], stops: Stops) -> None:
        self.place = place
        self.peers = peers
        self.stops = stops
        self.reports: dict[int, Report] = {}
        self.is_stop_told = False
        self._training = _Training()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the trainers here."""
        return gloo_interface(self.peers[0].channel.own_address)

    def compare(self, own: Report) -> None:
        """Wait for each machine's report, and let all go on if they fit together.

        Raises InputError for other plans and flags, MachineNotReady for other machines, NodeLost.
        """
        for peer in self.peers:
            self.reports[peer.node] = self._answer(peer, "report")
        found = [(peer.words, self.reports[peer.node]) for peer in self.peers]
        wrong = [fault for words, one in found for fault in input_faults(own, one, words)]
        unlike = [fault for words, one in found for fault in machine_faults(own, one, words)]
        if wrong:
            raise InputError(faults=[*wrong, *unlike])
        if unlike:
            raise MachineNotReady(faults=unlike)
        self._send_all({"do": "check"})

    def gpus(self) -> Iterator[tuple[str, tuple[Gpu, ...]]]:
        """(which machine, its GPUs)."""
        for peer in self.peers:
            yield peer.words, gpus_of(self.reports[peer.node])

    def take_checks(self, inputs: Mapping[str, str], say: Say) -> None:
        """Wait until each machine has checked what it needs, and show what it warns of.

        Raises what they have found, NodeLost.

        Args:
            inputs: Name of an input -> digest of what it holds here.
        """
        faults: list[Fault] = []
        codes: list[int] = []
        for peer in self.peers:
            said = self._answer(peer, "checked")
            found = faults_of(said.get("faults"), peer.words)
            code = said.get("code")
            codes += [code] if found and isinstance(code, int) else []
            faults += found
            if not found:
                held = said.get("inputs")
                changed = changed_inputs(inputs, held if isinstance(held, dict) else {}, peer.words)
                faults += changed
            for warning in faults_of(said.get("warnings"), peer.words):
                say(f"warning: {warning.headline}")
        if faults:
            kind = KINDS.get(min(codes), MachineNotReady) if codes else InputError
            raise kind(faults=faults)

    def train(self, order: Callable[[Rendezvous], Order], start: Start, what: str) -> Ended:
        """Start the same training on all machines and wait until it has ended on all; the exit code
        of the first that failed.

        Raises NodeLost.

        Args:
            order: What is started, with the place where its processes meet.
            start: Starts it here, and waits; calls the guard about once a second.
            what: Of the training, for messages.
        """
        self._refuse_lost(what)
        rendezvous = new_rendezvous(self.place)
        self._training = _Training(id=rendezvous.id)
        self._send_all(order(rendezvous).to_message())
        own = start(rendezvous, self._guard)
        self._read(0.0)
        earlier = self._training.first_bad
        if own.was_stopped:
            self._ask_to_stop()
        began_s, is_ended = time.monotonic(), own.code == -signal.SIGKILL
        if is_ended:
            self._send_all({"do": "kill"})
        while len(self._training.ended) < len(self.peers) and not self._lost():
            self._read(0.1)
            passed_s = time.monotonic() - began_s
            if not is_ended and passed_s > (FAIL_S if own.code else END_S):
                self._send_all({"do": "kill"})
                is_ended = True
            if passed_s > END_S + FAIL_S:
                break
        self._refuse_lost(what)
        ends = [own, *self._training.ended.values()]
        # What the others end with after this machine's own failure follows from it.
        code = (own.code or self._training.first_bad or 0) if earlier is None else earlier
        return Ended(code, any(one.was_stopped for one in ends))

    def _guard(self, child: Child) -> None:
        """Called about once a second while the child runs here."""
        self._read(0.0)
        if self._lost():
            child.end()
        elif child.stops:
            self._ask_to_stop()
            if child.stops > 1:
                self._send_all({"do": "kill"})
        bad = self._training
        if bad.first_bad is not None and time.monotonic() - bad.bad_s > FAIL_S:
            child.end()

    def _ask_to_stop(self) -> None:
        if not self.is_stop_told:
            self.stops.is_known = self.is_stop_told = True
            self._send_all({"do": "stop"})

    def _read(self, timeout_s: float) -> None:
        """Take what the machines say of a training."""
        for peer in self.peers:
            while True:
                try:
                    message = peer.channel.inbox.get(timeout=timeout_s or 0.001)
                except queue.Empty:
                    break
                if message is None:
                    break
                self._take(peer, message)

    def _take(self, peer: Peer, message: Message) -> None:
        if message.get("do") == "failed":
            raise _error_of(message, peer)
        is_of_this = message.get("do") == "ended" and message.get("id") == self._training.id
        if not is_of_this or not isinstance(code := message.get("code"), int):
            return
        self._training.ended[peer.node] = Ended(code, message.get("was_stopped") is True)
        if code != 0 and self._training.first_bad is None:
            self._training.first_bad, self._training.bad_s = code, time.monotonic()

    def _answer(self, peer: Peer, do: str) -> Message:
        """The next message of this kind. Raises NodeLost, and what the machine failed with."""
        while True:
            message = peer.channel.inbox.get()
            if message is None:
                raise _lost([peer], "the machines were compared")
            if message.get("do") == "failed":
                raise _error_of(message, peer)
            if message.get("do") == do:
                return message

    def _lost(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.channel.is_lost]

    def _refuse_lost(self, what: str) -> None:
        if lost := self._lost():
            raise _lost(lost, what)

    def _send_all(self, message: Message) -> None:
        for peer in self.peers:
            peer.channel.send(message)

    def close(self, error: BaseException | None) -> None:
        """Tell all how the run has ended."""
        for peer in self.peers:
            tell_end(peer.channel, error)


def _lost(peers: Sequence[Peer], what: str) -> NodeLost:
    return NodeLost(
        faults=[
            Fault(
                where=peer.words,
                what=f"this machine was lost while {what}: {peer.channel.why}",
                allowed="what was trained since the last checkpoint is lost",
            )
            for peer in peers
        ]
    )


def _error_of(message: Message, peer: Peer) -> AdviseError:
    """What another machine has failed with by itself."""
    faults = faults_of(message.get("faults"), peer.words)
    code = message.get("code")
    kind = KINDS.get(code, AdviseError) if isinstance(code, int) else AdviseError
    return kind(faults=faults) if faults else kind("it has failed", where=peer.words)


def gloo_interface(address: str) -> dict[str, str]:
    """What makes gloo use the interface by which the machines have met. By itself it takes the one
    of the machine's own name, which on many systems is 127.0.1.1, where no other machine comes.
    """
    name = interface_of(address)
    return {} if name is None or os.environ.get(GLOO) else {GLOO: name}


@contextmanager
def leading(place: Place, folder: Path, *, say: Say) -> Iterator[Crew]:
    """The other machines, until the run ends; they are told how.

    Raises MachineNotReady if they do not come.
    """
    stops = Stops()
    peers = gather(place, folder, wait_s=join_s(os.environ), say=say, at_once=stops.receive)
    crew = Crew(place, peers, stops)
    say(f"node 0 ({socket.gethostname()}): {', '.join(peer.words for peer in peers)} joined")
    try:
        yield crew
    except BaseException as error:
        crew.close(error)
        raise
    crew.close(None)
