"""How two machines of a run talk: JSON lines over TCP, each with a proof that it comes from one who
can read the run folder.

The leader writes a random key into the shared folder, with rights for its owner alone. Who has read
it there proves so, and both derive the key of their connection from it and from a number that each
of them has drawn. A line is read only if it is short, if it is the next one, and if its HMAC is
right: what is replayed, or comes from anybody else, ends the connection and is not looked at.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
MAX_LINE = 2**20  # bytes
PING_EVERY_S = 5.0
LOST_AFTER_S = 60.0  # of silence; a process that ends is noticed at once
LEADER, FOLLOWER = "leader", "follower"


class Lost(Exception):
    """The other machine is gone, or does not speak as one of this run does."""


def proof(key: bytes, *parts: str) -> str:
    """HMAC-SHA-256 in hexadecimal, over parts that cannot run into each other."""
    text = json.dumps(parts).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def same(one: object, other: str) -> bool:
    """Whether a proof that came is the right one, in a time that tells nothing."""
    return isinstance(one, str) and hmac.compare_digest(one.encode(), other.encode())


def connection_key(key: bytes, *numbers: str) -> bytes:
    """The key of one connection."""
    return bytes.fromhex(proof(key, "connection", *numbers))


def parsed(line: bytes) -> Any:
    """The JSON value of a line. Raises Lost."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Lost("it sent something else than JSON") from None


class Lines:
    """The lines of a socket, none of them longer than allowed."""

    def __init__(self, sock: socket.socket, *, longest: int = MAX_LINE) -> None:
        self.sock = sock
        self.longest = longest
        self._held = b""

    def next(self, timeout_s: float) -> bytes | None:
        """The next line without its end; None if there is none in time. Raises Lost."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._held:
            if len(self._held) > self.longest:
                raise Lost("it sent a line that is too long")
            left = deadline - time.monotonic()
            try:
                poll = select.poll()  # not select.select, which knows 1,024 files
                poll.register(self.sock, select.POLLIN)
                if left <= 0 or not poll.poll(left * 1000):
                    return None
                data = self.sock.recv(2**16)
            except (OSError, ValueError) as error:
                raise Lost(f"its connection broke ({error})") from None
            if not data:
                raise Lost("its connection was closed")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        if len(line) > self.longest:
            raise Lost("it sent a line that is too long")
        return line

    def send(self, value: Any) -> None:
        """Send a value as a line. Raises Lost."""
        try:
            self.sock.sendall(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise Lost(f"its connection broke ({error})") from None


class Channel:
    """A connection whose two ends know each other. Messages that arrive wait in `inbox`, the last
    of them None once the other machine is lost; `why` says how.

    Args:
        lines: The socket's, behind the handshake.
        key: Of this connection.
        own: LEADER or FOLLOWER: which end this is.
        at_once: Called for a message in the thread that reads; true if it needs no more.
    """

    def __init__(
        self,
        lines: Lines,
        key: bytes,
        *,
        own: str,
        at_once: Callable[[Message], bool] = lambda message: False,
    ) -> None:
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.why = ""
        self._lines, self._key = lines, key
        self._own, self._other = (own, FOLLOWER if own == LEADER else LEADER)
        self._at_once = at_once
        self._sent = self._heard = 0
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self.own_address = str(lines.sock.getsockname()[0])
        lines.sock.settimeout(LOST_AFTER_S)  # a machine that hangs takes nothing any more
        for work in (self._read, self._ping):
            threading.Thread(target=work, daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether nothing comes any more."""
        return bool(self.why)

    def send(self, message: Message) -> None:
        """Send a message; one that cannot be sent is lost with the other machine."""
        with self._sending, suppress(Lost):
            text = json.dumps(message)
            self._lines.send([proof(self._key, self._own, str(self._sent), text), text])
            self._sent += 1

    def close(self) -> None:
        """End the connection."""
        self._closed.set()
        with suppress(OSError):
            self._lines.sock.shutdown(socket.SHUT_RDWR)
        self._lines.sock.close()

    def _read(self) -> None:
        last = time.monotonic()
        try:
            while True:
                line = self._lines.next(1.0)
                if line is not None:
                    last = time.monotonic()
                    message = self._opened(line)
                    if message.get("do") != "ping" and not self._at_once(message):
                        self.inbox.put(message)
                elif time.monotonic() - last > LOST_AFTER_S:
                    raise Lost(f"nothing was heard from it for {LOST_AFTER_S:.0f} s")
        except Lost as lost:
            self.why = str(lost)
            self.inbox.put(None)
            self.close()

    def _opened(self, line: bytes) -> Message:
        """The message of a line that is the next one and proves where it comes from."""
        pair = parsed(line)
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str)):
            raise Lost("it sent something else than a message")
        if not same(pair[0], proof(self._key, self._other, str(self._heard), pair[1])):
            raise Lost("it sent a message that is not of this run")
        self._heard += 1
        message = parsed(pair[1].encode())
        if not isinstance(message, dict):
            raise Lost("it sent something else than a message")
        return message

    def _ping(self) -> None:
        while not self._closed.wait(PING_EVERY_S):
            self.send({"do": "ping"})
