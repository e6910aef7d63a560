"""One call of the real `advise` in a forked child: fast, since everything is loaded before, and safe,
since the child has limits, and tells of every file that it writes and every connection that it tries.
And what no input may bring about.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

CPU_S = 5.0  # more is a fault
FILE_BYTES = 256 * 2**20
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree",
)  # fmt: skip
COPIES = ("shutil.copyfile", "shutil.copytree")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
# Where rules that were read once are kept (advisor/ground/yaml_files.py), before HOME changes here.
KEPT_RULES = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "finetune-advisor"
)
FREE = ("/dev/null", "/dev/tty", "/proc/self")


@dataclass(frozen=True)
class Limits:
    """What a call may use before it is ended."""

    cpu_s: int = 15
    wall_s: float = 60.0
    memory_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: int  # negative: the signal that ended it
    out: bytes
    err: bytes
    cpu_s: float
    hung: bool
    told: Sequence[str]  # writes outside its folder, connections, programs started
    changed: Sequence[str]  # files in its folder that are new, other or gone


def call(
    run: Callable[[], object],
    folder: Path,
    *,
    arguments: Sequence[str],
    env: Mapping[str, str],
    limits: Limits = Limits(),
) -> Outcome:
    """What `run` does in a fork, in this folder, with these arguments."""
    before = snapshot(folder)
    texts = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "told")]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.environ.update(env)
            sys.argv = ["advise", *arguments]
            code = _in_child(run, folder, texts, limits)
        finally:
            os._exit(code)
    waiter = os.pidfd_open(pid)
    hung = not select.select([waiter], [], [], limits.wall_s)[0]
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    os.close(waiter)
    out, err, told = (text.read_bytes() if text.exists() else b"" for text in texts)
    for text in texts:
        text.unlink(missing_ok=True)
    after = snapshot(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Outcome(
        code=os.waitstatus_to_exitcode(status), out=out, err=err, hung=hung,
        cpu_s=used.ru_utime + used.ru_stime, changed=changed,
        told=told.decode(errors="replace").splitlines(),
    )  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Name -> content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder anew, with these files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _in_child(
    run: Callable[[], object], folder: Path, texts: Sequence[Path], limits: Limits
) -> int:
    os.setsid()
    streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in texts]
    sources = (os.open(os.devnull, os.O_RDONLY), *streams)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(sources[number], number)
        mode = "w" if number else "r"
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    os.chdir(folder)
    _tell_of(folder, streams[2])
    code = 0
    try:
        run()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1 if left.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and Path(origin).is_relative_to(folder):
            os.write(streams[2], f"imported {name} from its input\n".encode())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        code = 98
    return code


def _tell_of(folder: Path, stream: int) -> None:
    """Write a line for each file that is written elsewhere, each connection, each program."""
    caches = folder.parent / "home"  # where advise may keep what it has read
    inside = (str(folder.resolve()), str(caches.resolve()), KEPT_RULES, *FREE)
    is_busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_busy
        if is_busy:
            return
        is_busy = True
        try:
            told = [str(arguments)[:200]] if event in (*NETWORK, *STARTS) else []
            paths = map(os.path.abspath, _written(event, arguments))
            told += [path for path in paths if not path.startswith(inside)]
            for text in told:
                os.write(stream, f"{event} {text}\n".encode(errors="replace"))
        finally:
            is_busy = False

    sys.addaudithook(hook)


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The paths that an event changes."""
    paths = arguments[event in COPIES : 2] if event in CHANGES else ()  # a copy reads the first
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        paths = arguments[:1]
    return [os.fsdecode(one) for one in paths if isinstance(one, str | bytes | os.PathLike)]


def settle() -> None:
    """Before the first fork: collect garbage once, and leave what is loaded alone."""
    gc.collect()
    gc.freeze()


# --------------------------------------------------------------------------- what must not be

# All but tab and newline; a terminal acts on them. C1 controls are characters of UTF-8 here.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
REFUSED = 2


def faults(
    outcome: Outcome, arguments: Sequence[str], codes: Sequence[int], *, cpu_s: float = CPU_S
) -> list[str]:
    """What was not as promised; the first word says of which kind it is."""
    output = outcome.out + outcome.err
    text = output.decode(errors="replace")
    around = (text[max(0, one.start() - 30) : one.end() + 10] for one in CONTROL.finditer(text))
    changed = outcome.changed if outcome.code == REFUSED else ()
    asked = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    found = [
        *(["hang: it did not end"] if outcome.hung else []),
        *([f"exit code {outcome.code}"] if not outcome.hung and outcome.code not in codes else []),
        *([f"slow: {outcome.cpu_s:.1f} s of computing"] if outcome.cpu_s > cpu_s else []),
        *(["traceback"] if "Traceback (most recent call last)" in text else []),
        *(f"control character in the output: {one!r}" for one in islice(around, 1)),
        *(["output is no UTF-8"] if output.decode(errors="ignore").encode() != output else []),
        *(f"outside: {line}" for line in outcome.told[:3]),
        *([f"changed although refused: {', '.join(changed[:3])}"] if changed else []),
        *(["silent"] if outcome.code in (2, 3, 4, 5) and not output.strip() else []),
    ]
    if "--json" in asked and not outcome.hung and not {"-h", "--help", "--version"} & set(asked):
        try:
            json.loads(outcome.out, parse_constant=lambda name: json.loads(f"not JSON: {name}"))
        except RecursionError:
            pass
        except ValueError as error:
            found.append(f"standard output is no JSON: {error}")
    return found
