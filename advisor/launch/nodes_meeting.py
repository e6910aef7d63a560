"""How the machines of a run find each other, and find out whether their folder is really shared.

The leader listens, and leaves a key in the run folder. Each of the others (nodes_joining.py)
connects and proves that it has read it. Whoever does not is no part of the run, and disturbs
nothing.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.disk import TEMPORARY
from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.ground.files import ELSEWHERE, cannot_write
from advisor.launch.input_digests import Say
from advisor.launch.nodes import Place, is_own_address, names
from advisor.launch.nodes_channel import (
    FOLLOWER,
    LEADER,
    MAX_LINE,
    Channel,
    Lines,
    Lost,
    Message,
    connection_key,
    parsed,
    proof,
    same,
)

JOIN_S = 600.0  # in which every machine has to come
JOIN = "ADVISE_JOIN_S"  # another number of seconds
ANSWER_S = 20.0  # for a line of the handshake
LOOK_S = 10.0  # in which a machine looks for the leader's file
UNSEEN_S = 3.0  # after one says that it does not see it, for another one that does
MOST_GUESTS = 64  # connections that have not proved anything yet
HELLO = "advise-run"
VERSION = 1
FILE = re.compile(rf"{re.escape(TEMPORARY)}meeting-[0-9a-f]{{16}}")
SHORT = 4096  # bytes of a line before the other end is known
TEXT = 300  # characters of what it says


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Another machine of the run, which has proved that it is one."""

    node: int
    host: str
    channel: Channel

    @property
    def words(self) -> str:
        """'node 1 (gpu-b)'."""
        return f"node {self.node} ({self.host})"


def join_s(environ: dict[str, str] | os._Environ[str]) -> float:
    """Seconds in which every machine has to come. Raises InputError."""
    text = environ.get(JOIN)
    if not text:
        return JOIN_S
    if re.fullmatch(r"[0-9]{1,6}", text) and int(text):
        return float(text)
    raise InputError(f"{JOIN} is '{text}'", where=JOIN, allowed="a whole number of seconds")


# ------------------------------------------------------------------------------------- the leader


@contextmanager
def key_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, key): of a new file of the run folder that holds a key, until the context ends.

    Raises MachineNotReady.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    name, key = f"{TEMPORARY}meeting-{secrets.token_hex(8)}", secrets.token_hex(32)
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as writing:
            writing.write(key)
            writing.flush()
            os.fsync(writing.fileno())
    except OSError as error:
        raise cannot_write(folder, error, way_out=ELSEWHERE) from error
    try:
        yield name, key.encode()
    finally:
        file.unlink(missing_ok=True)
        for one in made:  # a run that is refused leaves nothing
            with suppress(OSError):
                one.rmdir()


def listen(place: Place) -> socket.socket:
    """A socket at the leader's address. On all of this machine's if that one says nothing, as a
    name for itself that means 127.0.0.1, or one that stands before a gateway.

    Raises MachineNotReady.
    """
    try:
        found = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        if is_own_address(str(where[0])) and not is_own_address(place.address):
            raise OSError(errno.EADDRNOTAVAIL, "a name for this machine itself")
    except OSError:
        family, where = socket.AF_INET, ("", place.port)
    for address in (where, ("", place.port)):
        try:
            return socket.create_server(address[:2], family=family, backlog=MOST_GUESTS)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and address is where:
                family = socket.AF_INET
                continue
            raise MachineNotReady(
                f"the leader cannot listen on port {place.port} ({error.strerror})",
                where=place.meets_at,
                hint="choose another one, the same on every machine: MASTER_PORT=29700",
            ) from None
    raise AssertionError("unreachable")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unseen:
    """Somebody says to be a machine of the run, and does not see the leader's file."""

    node: int
    host: str
    folder: str
    at_s: float


def gather(
    place: Place,
    folder: Path,
    *,
    wait_s: float,
    say: Say,
    at_once: Callable[[Message], bool],
) -> list[Peer]:
    """The other machines of the run, in order, once all have come.

    Raises MachineNotReady that names those that did not come in time, or do not see the folder, and
    InputError if two say that they are the same one.

    Args:
        at_once: Called for each message in the thread that reads; true if it needs no more.
    """
    peers: dict[int, Peer] = {}
    unseen: dict[int, _Unseen] = {}
    heard: queue.SimpleQueue[Peer | _Unseen] = queue.SimpleQueue()
    guests = threading.Semaphore(MOST_GUESTS)
    deadline = time.monotonic() + wait_s
    try:
        with key_in(folder) as (name, key), listen(place) as server:
            server.settimeout(0.1)
            coming = range(1, place.nodes)
            say(f"node 0 of {place.nodes}: waiting for {names(coming)} at {place.meets_at}")

            def greet(sock: socket.socket) -> None:
                try:
                    heard.put(_greeted(sock, place, name, key, at_once))
                except (Lost, OSError, TypeError, ValueError):  # no machine of this run
                    sock.close()
                finally:
                    guests.release()

            while len(peers) < len(coming):
                with suppress(TimeoutError):
                    sock, _ = server.accept()
                    if guests.acquire(blocking=False):
                        threading.Thread(target=greet, args=[sock], daemon=True).start()
                    else:
                        sock.close()
                while not heard.empty():
                    _take(heard.get(), peers, unseen)
                missing = [node for node in coming if node not in peers]
                now_s = time.monotonic()
                blind = [one for one in unseen.values() if one.node in missing]
                if blind and now_s - min(one.at_s for one in blind) > UNSEEN_S:
                    raise MachineNotReady(faults=[_not_shared(one, folder) for one in blind])
                if missing and now_s > deadline:
                    raise _never_came(missing, place, wait_s)
    except BaseException as error:
        for peer in peers.values():
            tell_end(peer.channel, error)
        raise
    return [peers[node] for node in coming]


def _greeted(
    sock: socket.socket,
    place: Place,
    file: str,
    key: bytes,
    at_once: Callable[[Message], bool],
) -> Peer | _Unseen:
    """Who has connected. Raises Lost for anybody who is no machine of this run."""
    sock.settimeout(ANSWER_S)
    lines = Lines(sock, longest=SHORT)
    own = secrets.token_hex(16)
    lines.send({HELLO: VERSION, "number": own, "file": file})
    line = lines.next(ANSWER_S + LOOK_S)
    said = parsed(line) if line is not None else None
    if not isinstance(said, dict):
        raise Lost("it did not answer")
    node, number = said.get("node"), str(said.get("number"))
    host, there = (str(said.get(name))[:TEXT] for name in ("host", "folder"))
    if type(node) is not int or not 0 < node < place.nodes:
        raise Lost("it is no machine of this run")
    if said.get("proof") is None:
        sock.close()
        return _Unseen(node=node, host=host, folder=there, at_s=time.monotonic())
    parts = (own, number, str(node))
    if not same(said["proof"], proof(key, FOLLOWER, *parts)):
        raise Lost("it does not know the key")
    lines.send({"proof": proof(key, LEADER, *parts)})
    lines.longest = MAX_LINE
    channel = Channel(lines, connection_key(key, *parts), own=LEADER, at_once=at_once)
    return Peer(node=node, host=host, channel=channel)


def _take(one: Peer | _Unseen, peers: dict[int, Peer], unseen: dict[int, _Unseen]) -> None:
    if isinstance(one, _Unseen):
        unseen.setdefault(one.node, one)
        return
    known = peers.get(one.node)
    if known is not None and not known.channel.is_lost:
        error = InputError(
            f"two machines say that they are node {one.node}: {known.host} and {one.host}",
            where="NODE_RANK",
            allowed="another number on every machine, from 0",
        )
        tell_end(one.channel, error)
        raise error
    peers[one.node] = one


def _not_shared(one: _Unseen, folder: Path) -> Fault:
    return Fault(
        what=(
            f"the run folder is not shared: node {one.node} ({one.host}) does not see in"
            f" {one.folder} what node 0 ({socket.gethostname()}) has written into {folder}"
        ),
        allowed="one folder that every machine sees under the path that it names",
        hint="--output with the same folder of a shared disk, on every machine",
    )


def _never_came(missing: list[int], place: Place, wait_s: float) -> MachineNotReady:
    return MachineNotReady(
        f"{names(missing)} of {place.nodes} did not come within {wait_s:.0f} s",
        where=place.meets_at,
        allowed="the same command on every machine, which reach this one by that name and port",
        hint=f"look at the output there; {JOIN} is another time in seconds",
    )


def tell_end(channel: Channel, error: BaseException | None) -> None:
    """Tell another machine that the run has ended, and how."""
    code = 0 if error is None else getattr(error, "exit_code", 130)
    text = "" if error is None else _headline(error)
    channel.send({"do": "end", "code": code if isinstance(code, int) else 70, "text": text})


def _headline(error: BaseException) -> str:
    faults = getattr(error, "faults", None)
    text = "; ".join(fault.headline for fault in faults[:3]) if faults else ""
    return text[:2000] or ("stopped" if isinstance(error, KeyboardInterrupt) else "a bug")
