"""How a machine of a run finds the leader, and finds out whether their folder is really shared."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from advisor.ground.errors import MachineNotReady
from advisor.launch.input_digests import Say
from advisor.launch.nodes import Place
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
from advisor.launch.nodes_meeting import ANSWER_S, FILE, HELLO, JOIN, LOOK_S, SHORT, VERSION, Peer


def join(
    place: Place,
    folder: Path,
    *,
    wait_s: float,
    say: Say,
    at_once: Callable[[Message], bool],
) -> Peer:
    """The leader, as soon as it is there and has proved to be it.

    Raises MachineNotReady if it does not come in time, or if its folder is not this one.
    """
    say(f"node {place.node} of {place.nodes}: looking for node 0 at {place.meets_at}")
    deadline, pause_s, last = time.monotonic() + wait_s, 0.1, "no answer"
    while time.monotonic() < deadline:
        try:
            sock = socket.create_connection((place.address, place.port), timeout=ANSWER_S)
        except OSError as error:  # it has not started, or its name is not known yet
            last = error.strerror or str(error)
        else:
            try:
                answer_s = min(ANSWER_S, max(1.0, deadline - time.monotonic()))
                return _introduced(sock, place, folder, at_once, answer_s)
            except Lost as lost:
                sock.close()
                last = str(lost)
            except BaseException:
                sock.close()
                raise
        time.sleep(pause_s)
        pause_s = min(2.0, 1.5 * pause_s)
    raise MachineNotReady(
        f"node 0 could not be reached within {wait_s:.0f} s: {last}",
        where=place.meets_at,
        allowed=f"the same command there, with a folder that is shared ({place.told_by})",
        hint=f"look at its output; {JOIN} is another time in seconds",
    )


def _introduced(
    sock: socket.socket,
    place: Place,
    folder: Path,
    at_once: Callable[[Message], bool],
    answer_s: float,
) -> Peer:
    """The leader at the other end. Raises Lost if it is none, or has no more to say."""
    sock.settimeout(answer_s)
    lines = Lines(sock, longest=SHORT)
    line = lines.next(answer_s)
    hello = parsed(line) if line is not None else None
    if not isinstance(hello, dict) or hello.get(HELLO) != VERSION:
        raise Lost("who answers there is no leader of a run of this version")
    file, number = str(hello.get("file")), str(hello.get("number"))
    if not FILE.fullmatch(file):
        raise Lost("who answers there names a file that is no leader's")
    key, own = _key_of(folder, file), secrets.token_hex(16)
    said: dict[str, Any] = {
        "node": place.node,
        "number": own,
        "host": socket.gethostname(),
        "folder": str(folder),
    }
    parts = (number, own, str(place.node))
    lines.send(said | {"proof": None if key is None else proof(key, FOLLOWER, *parts)})
    if key is None:
        raise MachineNotReady(
            f"the run folder is not shared: node {place.node} ({socket.gethostname()}) does not"
            f" see in {folder} what node 0 has written into its own",
            where=place.meets_at,
            allowed="one folder that every machine sees under the path that it names",
            hint="--output with the same folder of a shared disk, on every machine",
        )
    line = lines.next(ANSWER_S)
    welcome = parsed(line) if line is not None else None
    if not isinstance(welcome, dict) or not same(welcome.get("proof"), proof(key, LEADER, *parts)):
        raise Lost("who answers there does not know the key of this run")
    lines.longest = MAX_LINE
    channel = Channel(lines, connection_key(key, *parts), own=FOLLOWER, at_once=at_once)
    return Peer(node=0, host=place.address, channel=channel)


def _key_of(folder: Path, name: str) -> bytes | None:
    """What the leader has written into a file of the run folder; None if it is not seen."""
    deadline = time.monotonic() + LOOK_S
    while True:
        for one in (folder.parent, folder):
            with suppress(OSError):
                os.listdir(one)  # so that NFS asks its server again
        try:
            with os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                key = file.read(200)
        except OSError:
            key = b""
        if re.fullmatch(rb"[0-9a-f]{64}", key):
            return key
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)
