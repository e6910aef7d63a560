"""Child processes that die with their parent, and signals that reach them exactly once.

The child leads a session of its own, so that Ctrl-C on the terminal reaches the parent alone, which
passes it on. Before it becomes the trainer, it asks the kernel to end it when its parent ends,
however that happens (Linux: PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

# Runs in the child, in a bare interpreter (20 ms), and is replaced by the trainer. A preexec_fn
# would do the same inside a fork of this process, which Python's manual warns about. 1 is
# PR_SET_PDEATHSIG of <linux/prctl.h>. If the parent died before the call took effect, getppid()
# shows it.
GUARD = """
import os, sys
parent, number = int(sys.argv[1]), int(sys.argv[2])
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, number, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(143)
os.execv(sys.argv[3], sys.argv[3:])
"""
WATCH_EVERY_S = 1.0


def guard_command(
    command: Sequence[str], *, parent: int, death: signal.Signals = signal.SIGKILL
) -> list[str]:
    """The command, which the kernel ends with the given signal when its parent ends.

    Args:
        parent: The parent's process number; 0: not known yet.
    """
    return [sys.executable, "-I", "-S", "-c", GUARD, str(parent), str(int(death)), *command]


class Child:
    """One child process, as a context manager.

    While it runs, SIGINT, SIGTERM and SIGHUP reach it once, as SIGTERM.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        keep_fds: Sequence[int] = (),
        death: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.command = list(command)
        self.env = dict(env)
        self.keep_fds = tuple(keep_fds)
        self.death = death
        self.process: subprocess.Popen[bytes] | None = None
        self.stops = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                self.previous[number] = signal.signal(number, self._stop)
        # What the child prints are messages: our own stdout is for data.
        self.process = subprocess.Popen(
            guard_command(self.command, parent=os.getpid(), death=self.death),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_fd(sys.stderr) else 2,
            start_new_session=True,
            pass_fds=self.keep_fds,
        )
        if self.stops:  # the signal came while the child was being started
            self._pass_on()
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1
        if self.process is None:
            return
        if self.stops == 1:
            print("stopping; press Ctrl-C again to stop immediately", file=sys.stderr, flush=True)
        self._pass_on()

    def _pass_on(self) -> None:
        """First time: ask the child to stop. Again: end everything in its session."""
        if self.process is None or self.process.returncode is not None:
            return
        try:
            if self.stops == 1:
                os.kill(self.process.pid, signal.SIGTERM)
            elif self.stops > 1:
                os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            # An error of our own: never leave the child running.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _has_fd(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
