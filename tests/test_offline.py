"""Nothing reaches the network unless a person named what is there: local files connect nowhere."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.conftest import PAIRS, ROOT
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG

# Runs at the start of each process of ours (PYTHONPATH), trainers included: notes what would reach
# another machine, and refuses it.
GUARD = """
import os, socket, sys
def refuse(what):
    def called(*arguments, **options):
        family = getattr(arguments[0], "family", socket.AF_INET)
        if family in (socket.AF_INET, socket.AF_INET6):
            with open(os.environ["SOCKET_LOG"], "a") as log:
                log.write(f"{what} {arguments[1:] or arguments} {sys.argv}\\n")
            raise OSError("the test has no network")
        return real[what](*arguments, **options)
    return called
real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
for name in real:
    setattr(socket.socket, name, refuse(name))
socket.getaddrinfo = refuse("getaddrinfo")
"""
# What the kernel saw: also libraries that are not Python.
INTERNET = re.compile(r"(?:connect|sendto|sendmsg)\(.*AF_INET")
PLAN = """version: 1
name: x
model: ./model
data: {path: d.jsonl}
stages: [{name: sft, objective: sft, update: lora, max_steps: 2, seq_len: 64, holdout: 0.1}]
launch: {device: cpu}
"""
# What `advise check --show-row`, `advise chat` and `advise export` start, with torch loaded once.
TOOLS = """
from pathlib import Path
from trainers.tools import chat, merge, show_row
codes = [
    show_row.main(['{"data": "d.jsonl", "row": 1, "model": "./model"}']),
    chat.main(["run", "--max-new-tokens", "2"]),
    merge.main(["run", "--out", "merged"]),
]
assert codes == [0, 0, 0] and list(Path("merged").rglob("*.safetensors")), codes
"""


@pytest.fixture
def refused(monkeypatch):
    """What every attempt of this process to reach another machine calls."""
    refuse = Mock(side_effect=OSError("the test has no network"))
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return refuse


UNKNOWN = "--json --task qa --gpu none --model org/unknown-1b"
LOCAL = {
    "advice": "--json --task qa --gpu none",
    "advice for a model folder": "--json --task qa --gpu none --model ./model --data d.jsonl",
    "a check": "check d.jsonl",
    "a check with a tokenizer": "check d.jsonl --model ./model",
    "an estimate": "estimate p.yaml",
    "a probe": "probe --json",
    "the rules": "rules",
    "a model of the hub, where the hub is forbidden": UNKNOWN,
}


@pytest.mark.parametrize("line", LOCAL.values(), ids=LOCAL)
def test_what_is_local_opens_no_connection(call, tmp_path, refused, monkeypatch, line):
    """A folder is looked up nowhere, nor a model of the hub with HF_HUB_OFFLINE=1."""
    if line != UNKNOWN:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    _lay_out(tmp_path)
    write_fake_model(tmp_path / "model", CONFIG)
    code, _, err = call(*line.split())
    assert (code, refused.call_args_list) == (0, []), err


def _lay_out(folder: Path) -> None:
    (folder / "d.jsonl").write_text(PAIRS)
    (folder / "p.yaml").write_text(PLAN)


@pytest.mark.slow
def test_a_run_its_chat_and_its_export_open_no_connection(tmp_path, tiny_model):
    """With the hub allowed, neither Python nor, by strace, anything below reaches elsewhere."""
    _lay_out(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    log, trace = tmp_path / "sockets.txt", tmp_path / "trace.txt"
    path = os.pathsep.join((str(tmp_path / "guard"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "SOCKET_LOG": str(log)}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-A", "-o", str(trace)]
    strace = [*strace, "-e", "trace=connect,sendto,sendmsg"] if shutil.which("strace") else []

    def start(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*strace, sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    for words, typed in (
        (("-m", "advisor", "run", "p.yaml", "--output", "run"), ""),
        (("-c", TOOLS), "hello\n"),
    ):
        done = start(*words, typed=typed)
        assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    traced = trace.read_text() if strace else ""
    assert not INTERNET.findall(traced), "\n".join(INTERNET.findall(traced))
    # Both would have seen it.
    start("-c", "import socket; socket.socket().connect(('127.0.0.1', 9))")
    assert "connect" in log.read_text()
    if not strace:
        pytest.skip("Python opens no connection; strace, which sees libraries too, is missing")
    start("-S", "-c", "import socket; socket.socket().connect(('127.0.0.1', 9))")
    assert INTERNET.search(trace.read_text())
