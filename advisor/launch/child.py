"""Child processes that die with their parent, and signals that reach them exactly once.

The child leads a session of its own, so that Ctrl-C on the terminal reaches the parent alone, which
passes it on. Before it becomes the trainer, it asks the kernel to end it when its parent ends,
however that happens (Linux: PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from advisor.ground.progress import board, is_live
from advisor.ground.signals import receiving

# Runs in the child, in a bare interpreter (20 ms), and is replaced by the trainer. A preexec_fn
# would do the same inside a fork of this process, which Python's manual warns about. 1 is
# PR_SET_PDEATHSIG of <linux/prctl.h>, 9 is SIGKILL. If the parent died before the call took effect,
# getppid() shows it.
GUARD = """
import os, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])
"""
WATCH_EVERY_S = 1.0
PATIENCE = """a step that is being trained is finished and saved
  (Ctrl-C again: end at once)"""
BAR_LINES = 4  # the most that a child's bar takes: it draws over so many lines from the cursor up


def guard_command(command: Sequence[str], *, parent: int) -> list[str]:
    """The command, which the kernel kills when its parent ends.

    Args:
        parent: The parent's process number; 0: not known yet.
    """
    return [sys.executable, "-I", "-S", "-c", GUARD, str(parent), *command]


class Ended(NamedTuple):
    """How a child process ended."""

    code: int  # its exit code; negative: the signal that ended it
    was_stopped: bool  # it had been asked to stop


class Child:
    """One child process, as a context manager.

    While it runs, SIGINT, SIGTERM and SIGHUP reach it once, as SIGTERM. A further Ctrl-C ends it at
    once. A further SIGTERM or SIGHUP does not: a closing terminal and whatever stops a service send
    several, and SIGKILL when they do not want to wait any longer. After a stop it keeps the
    signals: `every_stop_as_interrupt`, around a whole run, hands them back.

    Args:
        keep_fds: Files that it inherits.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, keep_fds: Sequence[int] = ()
    ) -> None:
        self.command = list(command)
        self.env = dict(env)
        self.keep_fds = tuple(keep_fds)
        self.process: subprocess.Popen[bytes] | None = None
        self.is_asked = False  # to stop
        self.received = ExitStack()  # signals
        self.before: dict[int, Any] = {}  # their handlers, which come back behind the child

    def __enter__(self) -> Child:
        with ExitStack() as held:
            self.before = held.enter_context(receiving(self._stop))
            board.hand_over()
            # What the child prints are messages: our own stdout is for data.
            self.process = subprocess.Popen(
                guard_command(self.command, parent=os.getpid()),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
                pass_fds=self.keep_fds,
            )
            self.received = held.pop_all()
        if self.is_asked:  # the signal came while the child was being started
            self._send(signal.SIGTERM)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        is_first, self.is_asked = not self.is_asked, True
        if is_first and self.process is not None:
            before, after = ("\n", "\n" * BAR_LINES) if is_live(sys.stderr) else ("", "\n")
            print(f"{before}stopping: {PATIENCE}", end=after, file=sys.stderr, flush=True)
            self._send(signal.SIGTERM)
        elif number == signal.SIGINT:
            self.end()

    def _send(self, number: int, *, all_of_it: bool = False) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                (os.killpg if all_of_it else os.kill)(self.process.pid, number)

    def end(self) -> None:
        """End it at once, with everything in its session."""
        self._send(signal.SIGKILL, all_of_it=True)

    def wait(self, watch: Callable[[], object] | None = None) -> int:
        """The exit code, once the child has ended; negative: the signal that ended it.

        Args:
            watch: Called about once a second until then.
        """
        assert self.process is not None
        while True:
            try:
                return self.process.wait(timeout=None if watch is None else WATCH_EVERY_S)
            except subprocess.TimeoutExpired:
                assert watch is not None
                watch()

    def __exit__(self, *raised: object) -> None:
        if self.process is not None and self.process.poll() is None:
            # An error of our own: never leave the child running.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.is_asked:  # a further signal must not disturb what records the stop
            self.before.clear()
        self.received.close()


@contextmanager
def every_stop_as_interrupt() -> Iterator[None]:
    """The first SIGTERM or SIGHUP raises KeyboardInterrupt here, as every Ctrl-C does, unless it is
    ignored.
    """
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1 or number == signal.SIGINT:
            raise KeyboardInterrupt

    with receiving(interrupt):
        yield


def free_port(host: str = "") -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def with_variables(
    environment: Mapping[str, str], changes: Mapping[str, str | None]
) -> dict[str, str]:
    """The environment with these variables; None: without it."""
    changed = {**environment, **changes}
    return {name: value for name, value in changed.items() if value is not None}
