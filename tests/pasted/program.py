"""The program in a process that waits with everything loaded: each call of `advise` from a shell is
answered by a fork of it, with the caller's folder, environment and streams, in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ), os.getpgrp()])
    socket.send_fds(server, [asked.encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.makefile().readline() or 70))
"""


def serve(address: str, *, stands_in: bool) -> None:
    """Answer calls until somebody ends the process; `stands_in`: no trainer is real."""
    from advisor import cli
    from advisor.commands import output
    from advisor.launch import call
    from advisor.ruleset.load import load_rules
    from tests.launch.conftest import MACHINE

    for name in cli.COMMANDS:
        import_module(f"advisor.commands.{name}")
    import_module("advisor.advice.advise")
    load_rules()
    if stands_in:
        trainers = write_stand_ins(Path(address).parent / "stand-in")
        call.trainers_root = output.trainers_root = lambda: trainers
        call.probe = lambda: MACHINE
        output.find_spec = lambda name: True  # what a trainer needs
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(8)
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        called, streams = heard(caller)
        if "lint" in called[0]:
            prove(*called)
        if os.fork() == 0:
            answer(caller, streams, called, cli.main)
        for number in (*streams, caller.detach()):
            os.close(number)
        while os.waitpid(-1, os.WNOHANG)[0]:  # at least the last one is still at work
            pass


def write_stand_ins(folder: Path) -> Path:
    """The stand-in trainer of the tests for every objective, and one for `advise chat`."""
    from advisor.methods import objectives
    from tests.launch.conftest import STAND_IN

    shutil.copytree(STAND_IN, folder)
    for name in objectives():
        (folder / "trainers" / f"{name}.py").touch()
    chat = "import sys\nopen(sys.argv[1] + '/run.json').close()\n"
    (folder / "trainers" / "tools" / "chat.py").write_text(chat)
    return folder


def heard(caller: socket.socket) -> tuple[list[Any], list[int]]:
    """What a caller asks for (its words, folder, environment and group), and its streams."""
    text, streams, _, _ = socket.recv_fds(caller, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += caller.recv(1 << 16)
    return json.loads(text), streams


def prove(words: list[str], folder: str, environment: dict[str, str], _: int) -> None:
    """Prove these rules here, so that every fork has what takes seconds: pages ask several times."""
    from advisor.advice.linting import lint_rules

    named = [word for before, word in pairwise(words) if before == "--rules"]
    named = named or environment.get("ADVISE_RULES", "").split(os.pathsep)
    lint_rules(overlays=tuple(Path(folder, name) for name in named if name))


def answer(caller: socket.socket, streams: list[int], called: list[Any], main: object) -> None:
    """Be the program for one caller, who gets the exit code; never returns."""
    sys.argv, folder, environment, group = called
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.setpgid(0, group)  # what ends the shell ends this
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 70
    try:
        main()  # type: ignore[operator]
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        caller.sendall(f"{code}\n".encode())
        os._exit(0)


def write_client(path: Path, address: str) -> None:
    """The `advise` that a shell finds on its path."""
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)


if __name__ == "__main__":
    serve(sys.argv[1], stands_in="--real" not in sys.argv)
