"""Whether the vLLM servers that stages generate with are there, or can be started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.launch.call import Call
from advisor.launch.generation_server import server_environment, server_needs_of
from advisor.plan.entries import Entry
from advisor.plan.vllm import asks_server, is_local, serve_line, server_url
from advisor.plan.vllm_client import ServerFault, VLLMClient, check_server, version_fault
from advisor.record.smaller import key_path

PHASE = "machine"
VERSION_S = 30.0
ASK_VERSION = "import importlib.metadata as m; print(m.version('vllm'))"


def check(call: Call) -> Checked:
    """What the vLLM servers of the stages lack. A dry run generates nothing."""
    entries = [entry for entry in call.left if asks_server(entry.stage)]
    if not entries or call.options.dry_run or not call.starts_servers:
        return Checked()
    return Checked(lacking=list(_faults(call, entries)))


def _faults(call: Call, entries: Sequence[Entry]) -> Iterator[Fault]:
    plan, launch, server = call.run.plan, call.run.plan.launch, call.run.plan.launch.vllm
    url, python = server_url(plan, os.environ), server.python if server is not None else None
    instead = f"or --set {key_path(entries[0], 'rollouts')}=transformers"
    if launch.nodes > 1 and (python is not None or is_local(url)):
        yield Fault(
            where="launch.vllm",
            what=f"the plan is for {launch.nodes} machines, and its vLLM server is one that only"
            " the first of them reaches",
            allowed="a server that runs already, by an address that every machine reaches",
            hint=f"start it yourself, and --set launch.vllm.url=http://HOST:8000; {instead}",
        )
    elif server is not None and python is not None:
        yield from _environment_faults(call.run.resolve(python), instead)
        there = len(call.machine.gpus)
        if launch.device in ("cuda", "rocm") and launch.processes + server.gpus > there:
            yield Fault(
                what=f"the plan wants {launch.processes} GPUs for training and {server.gpus} for"
                f" the vLLM server, and {there} can be used here",
                hint="--set launch.vllm.gpus=0 --set launch.vllm.memory=0.4 lets it share a GPU,"
                f" {instead}",
            )
    else:
        for entry in entries:
            if entry.starts_from is None:  # else its trainer asks: that is not trained yet
                yield from _running_server_faults(call, entry, url)


def _running_server_faults(call: Call, entry: Entry, url: str) -> Iterator[Fault]:
    server, needs = call.run.plan.launch.vllm, server_needs_of(call.run, entry)
    try:
        check_server(VLLMClient.at(url, server.timeout_s if server else 600.0), needs)
    except ServerFault as error:
        yield Fault(
            where=f"stage {entry.name}",
            what=f"the vLLM server at {url} {error}",
            allowed=f"a server started with: {serve_line(needs)}",
            hint="start it that way; or --set launch.vllm.python=... of an environment with vLLM,"
            f" from which `advise run` starts it; or --set {key_path(entry, 'rollouts')}"
            "=transformers",
        )


def _environment_faults(python: Path, instead: str) -> Iterator[Fault]:
    where = "launch.vllm.python"
    if not (python.is_file() and os.access(python, os.X_OK)):
        yield Fault(
            where=where,
            what=f"{where}: {python} is no program",
            allowed="the interpreter of an environment with vLLM, such as /opt/vllm/bin/python",
            hint=f"python3 -m venv vllm && vllm/bin/pip install vllm, {instead}",
        )
        return
    command = [str(python), "-c", ASK_VERSION]
    try:
        version = subprocess.check_output(
            command, text=True, timeout=VERSION_S, stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=python.parent, env=server_environment({}),
        )  # fmt: skip
        fault = version_fault(version.strip())
    except (OSError, subprocess.SubprocessError):
        fault = "is missing"
    if fault is not None:
        yield Fault(
            where=where,
            what=f"{where}: the vLLM of {python} {fault}",
            hint=f"{python} -m pip install --upgrade vllm (into an environment of its own: vLLM and"
            f" our transformers need different versions), {instead}",
        )
