"""Advice runs natively on Windows: shown here by taking away what only POSIX systems have."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from advisor.probe.system import windows_memory

REPOSITORY = Path(__file__).resolve().parent.parent
# What Python on Windows lacks (docs.python.org: "Availability: Unix"), taken away before the
# product is imported. sys.platform stays: the standard library would look for Windows' own modules.
WITHOUT = """
import os, shutil, signal, sys, types
shutil.disk_usage = lambda folder: types.SimpleNamespace(free=2**36)  # Windows has another
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getgid", "fork", "killpg", "getpgid", "setsid", "statvfs", "uname",
             "sysconf", "sched_getaffinity", "getloadavg", "mkfifo", "chown", "fchmod",
             "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGTSTP"):
    if hasattr(signal, name):
        delattr(signal, name)
from advisor.cli import main
main()
"""
SITUATION = (
    "--task",
    "qa",
    "--gpu",
    "RTX 4090",
    "--model",
    "Qwen/Qwen3-8B",
    "--data-kind",
    "paired",
)


def advise(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`advise ARGUMENTS` without what Windows lacks."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Where is order {n}?", "completion": f"It left on day {n}."} for n in range(60)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("--json", *SITUATION),
        SITUATION,
        ("probe", "--json"),
        ("check", "train.jsonl", "--json"),
        ("estimate", "--json", "--model", "Qwen/Qwen3-8B", "--update", "lora", "--gpu", "RTX 4090"),
        ("rules", "dpo"),
        ("--json", *SITUATION[:-2], "--data", "train.jsonl", "--plan", "plan.yaml"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_advice_needs_no_posix(arguments, data):
    """Advice, probe, check, estimate and rules answer, and a plan is written."""
    done = advise(*arguments, folder=data.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in arguments:
        json.loads(done.stdout)
    if "--plan" in arguments:
        assert (data.parent / "plan.yaml").read_text(encoding="utf-8").startswith("#")


def test_training_without_posix_says_where_it_runs(data):
    """`advise run` on Windows says that training runs under WSL2, and starts nothing."""
    assert advise(
        "--json", *SITUATION[:-2], "--data", "train.jsonl", "--plan", "plan.yaml", folder=data.parent
    ).returncode == 0  # fmt: skip
    done = advise("run", "plan.yaml", folder=data.parent)
    assert done.returncode == 4, done.stderr
    assert "WSL2" in done.stderr
    assert not (data.parent / "runs").exists()


def test_the_memory_of_windows_is_what_its_call_fills_in(monkeypatch):
    """GlobalMemoryStatusEx gets a structure of 64 bytes with its length, as its page says."""

    class Kernel:
        @staticmethod
        def GlobalMemoryStatusEx(reference):
            status = reference._obj
            assert status.length == ctypes.sizeof(status) == 64
            status.total, status.free = 32 * 2**30, 20 * 2**30
            return 1

    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=Kernel), raising=False)
    assert windows_memory() == (32 * 2**30, 20 * 2**30)


def test_other_systems_have_no_such_call():
    """Linux and macOS say their memory otherwise."""
    assert windows_memory() == (None, None)
