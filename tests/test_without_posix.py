"""Advice runs natively on Windows: shown here by taking away what only POSIX systems have."""

import ctypes
import json
import re
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
import json, shlex
from advisor.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv[1:] = shlex.split(line)
    try:
        main()
    except SystemExit as left:
        print(f"\\n{left.code} of {line}", file=sys.stderr)
"""
CARD = "--gpu 'RTX 4090'"
ASKED = f"--task qa {CARD} --model Qwen/Qwen3-8B"
PLAN = f"--json {ASKED} --data train.jsonl --plan plan.yaml"


@pytest.fixture
def advise(tmp_path: Path):
    """Lines behind `advise` without what Windows lacks, in a folder with examples: exit codes by
    line, standard output, and standard error.
    """
    (tmp_path / "train.jsonl").write_text(PAIRS)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*lines):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, json.dumps(lines)],
            cwd=tmp_path, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        codes = re.findall(r"(?m)^(\d+) of (.*)$", done.stderr)
        return {line: int(code) for code, line in codes}, done.stdout, done.stderr

    return run


def test_advice_needs_no_posix(advise):
    """Advice, probe, check, estimate and rules answer."""
    documents = (
        f"--json {ASKED} --data-kind paired", "probe --json", "check train.jsonl --json",
        f"estimate --json --model Qwen/Qwen3-8B --update lora {CARD}",
    )  # fmt: skip
    codes, out, err = advise(*documents)
    assert (codes, "Traceback" in err) == (dict.fromkeys(documents, 0), False), err
    for _ in documents:
        _, end = json.JSONDecoder().raw_decode(out)
        out = out[end:].lstrip()
    pages = (f"{ASKED} --data-kind paired", "rules dpo")
    codes, shown, err = advise(*pages)
    assert (codes, out, "Traceback" in shown + err) == (dict.fromkeys(pages, 0), "", False), err


def test_training_without_posix_says_where_it_runs(advise, tmp_path):
    """A plan is written, but `advise run` on Windows starts nothing and names WSL2."""
    codes, _, err = advise(PLAN, "run plan.yaml")
    assert (codes, "WSL2" in err) == ({PLAN: 0, "run plan.yaml": 4}, True), err
    assert (tmp_path / "plan.yaml").read_text(encoding="utf-8").startswith("#")
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
