"""Processes of a run: started as a person would, found by what they carry, and ended by signals; and
what happens in its folder, as it happens: a kill that is meant to fall into a save of some
milliseconds cannot wait for a poll.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.table import ROOT

MARK = "ADVISE_FAULTS_MARK"  # in the environment of every process of one run
# A background shell leaves SIGINT ignored, nohup SIGHUP, and children inherit that.
START = (
    "import signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2, 15)];"
    " signal.signal(2, signal.default_int_handler); sys.argv[0] = 'advise';"
    " from advisor.cli import main; main()"
)


@dataclass
class Command:
    """One `advise` process, with its output in a file."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def running(self) -> dict[int, str]:
        """Process number -> command line, of everything that belongs to this run and lives."""
        every = (one.info for one in psutil.process_iter(["pid", "cmdline", "environ", "status"]))
        return {
            one["pid"]: " ".join(one["cmdline"] or ())
            for one in every
            if (one["environ"] or {}).get(MARK) == self.mark and one["status"] != "zombie"
        }

    def trainers(self) -> list[int]:
        """The child that trains; of several processes, the launcher first and then its workers."""
        others = {
            pid: words
            for pid, words in self.running().items()
            if pid != self.process.pid and "trainers" in words
        }
        return sorted(others, key=lambda pid: ("say.torchrun" not in others[pid], pid))

    def wait(self, seconds: float) -> int | None:
        """The exit code; None if it did not end in time."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_for_all(self, seconds: float) -> list[str]:
        """Command lines of what still lives after so many seconds."""
        until = time.monotonic() + seconds
        while (left := self.running()) and time.monotonic() < until:
            time.sleep(0.05)
        return list(left.values())

    def end(self) -> None:
        """End whatever is left."""
        for pid in [self.process.pid, *self.running()]:
            send(pid, signal.SIGKILL)
        self.process.wait()


def advise(*arguments: str, folder: Path, log: Path) -> Command:
    """Start `advise ARGUMENTS` in a folder, in a process group of its own."""
    mark = uuid.uuid4().hex
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", MARK: mark,
    }  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Command(process, mark, log)


def send(pid: int, number: int, *, group: bool = False) -> bool:
    """Send a signal, to the process or to its whole group; False if the process is gone."""
    try:
        os.killpg(os.getpgid(pid), number) if group else os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


# --------------------------------------------------------------------------- its folder

# Of Linux' inotify, through the C library.
MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x02, 0x40, 0x80, 0x100, 0x200
WATCHED = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE
IS_FOLDER = 0x40000000
HEAD = struct.Struct("iIII")


class Watch:
    """Events below a folder, those of folders made later included. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.library = ctypes.CDLL(None, use_errno=True)
        self.places: dict[int, Path] = {}

    def __enter__(self) -> Watch:
        self.fd = self.library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        list(self._add(self.root))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _add(self, folder: Path) -> Iterator[str]:
        """Watch the folder; the paths of what was in it before it was watched."""
        number = self.library.inotify_add_watch(self.fd, os.fsencode(folder), WATCHED)
        if number < 0:
            return  # it is gone again
        self.places[number] = folder
        with suppress(OSError):
            for path in list(folder.iterdir()):
                yield path.relative_to(self.root).as_posix()
                if path.is_dir() and not path.is_symlink():
                    yield from self._add(path)

    def events(self, timeout_s: float) -> Iterator[str]:
        """Paths, relative to the folder, of what happened since the last call; waits for the first."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return
        data, at = os.read(self.fd, 1 << 16), 0
        while at < len(data):
            number, mask, _, length = HEAD.unpack_from(data, at)
            at += HEAD.size + length
            name = data[at - length : at].rstrip(b"\0")
            if number not in self.places or not name:
                continue
            path = self.places[number] / os.fsdecode(name)
            yield path.relative_to(self.root).as_posix()
            if mask & IS_FOLDER and mask & (CREATE | MOVED_TO):
                yield from self._add(path)
