"""Advice runs natively on Windows: shown here by taking away what only POSIX systems have."""

import ctypes
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from advisor.probe.system import windows_memory
from tests.conftest import PAIRS, ROOT

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
CARD = "--gpu 'RTX 4090'"
ASKED = f"--task qa {CARD} --model Qwen/Qwen3-8B"
PLAN = f"--json {ASKED} --data train.jsonl --plan plan.yaml"


@pytest.fixture
def advise(tmp_path: Path):
    """`advise LINE` without what Windows lacks, in a folder with examples."""
    (tmp_path / "train.jsonl").write_text(PAIRS)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return lambda line: subprocess.run(
        [sys.executable, "-c", WITHOUT, *shlex.split(line)],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        f"--json {ASKED} --data-kind paired",
        f"{ASKED} --data-kind paired",
        "probe --json",
        "check train.jsonl --json",
        f"estimate --json --model Qwen/Qwen3-8B --update lora {CARD}",
        "rules dpo",
    ],
)
def test_advice_needs_no_posix(advise, line):
    """Advice, probe, check, estimate and rules answer."""
    done = advise(line)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    if "--json" in line:
        json.loads(done.stdout)


def test_training_without_posix_says_where_it_runs(advise, tmp_path):
    """A plan is written, but `advise run` on Windows starts nothing and names WSL2."""
    done = advise(PLAN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.yaml").read_text(encoding="utf-8").startswith("#")
    done = advise("run plan.yaml")
    assert (done.returncode, "WSL2" in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_memory_of_windows_is_what_its_call_fills_in(monkeypatch):
    """GlobalMemoryStatusEx gets 64 bytes with their length, as its page says; Linux has none."""

    def fill(reference):
        status = reference._obj
        assert status.length == ctypes.sizeof(status) == 64
        status.total, status.free = 32 * 2**30, 20 * 2**30
        return 1

    assert windows_memory() == (None, None)
    kernel = SimpleNamespace(GlobalMemoryStatusEx=fill)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert windows_memory() == (32 * 2**30, 20 * 2**30)
