"""The vLLM server of a stage, if the plan names an environment to start it from: started before the
trainer, waited for, and ended with the stage. Its log is vllm.log in the run folder.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from advisor.ground.errors import Fault, MachineNotReady
from advisor.ground.types import Hardware
from advisor.launch.child import free_port, guard_command, with_variables
from advisor.launch.record_keeper import Say
from advisor.model_files.folder import CONFIG
from advisor.plan.entries import Entry, start_of, whole_model
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path
from advisor.plan.vllm import (
    ENVIRONMENT,
    ServerFault,
    ServerNeeds,
    VLLMClient,
    asks_server,
    check_server,
    serve_arguments,
    serve_line,
    server_needs,
    server_url,
    version_fault,
)
from advisor.record.smaller import key_path

LOG = "vllm.log"
SHOWN_LINES = 3  # of the log, in an error
LOOK_EVERY_S = 0.2
END_S = 10.0  # that a server gets to end by itself
VERSION_S = 30.0
ASK_VERSION = "import importlib.metadata as m; print(m.version('vllm'))"


def needs_of(plan: Plan, plan_path: Path, entry: Entry, run: Path) -> ServerNeeds:
    """What the stage needs of its server."""
    stage = entry.stage
    folder = resolve_path(plan_path, plan.model)
    home = plan_path.resolve().parent
    start = start_of(entry, run=run, folder=home)
    whole = whole_model(plan, start, run=run, folder=home)
    options = key_specs().effective(stage.options, objective=stage.objective, update=stage.update)
    base = str(folder.resolve()) if (folder / CONFIG).is_file() else plan.model
    return server_needs(stage, options, model=base if whole is None else str(whole))


# --------------------------------------------------------------------------- before the run


def is_own_address(address: str) -> bool:
    """Whether an address means the machine itself, whoever uses it: 127.0.0.1, localhost."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def server_faults(
    plan: Plan, plan_path: Path, todo: Sequence[Entry], hardware: Hardware, run: Path
) -> Iterable[Fault]:
    """What is missing of the servers of the stages: the environment to start one from, GPUs for it,
    or the one that should run already.
    """
    entries = [entry for entry in todo if asks_server(entry.stage)]
    if not entries:
        return
    server = plan.launch.vllm
    if plan.launch.nodes > 1 and (
        (server is not None and server.python is not None)
        or is_own_address(urlsplit(server_url(plan, os.environ)).hostname or "")
    ):
        yield Fault(
            where="launch.vllm",
            what=f"the plan is for {plan.launch.nodes} machines, and its vLLM server is one that"
            " only the first of them reaches",
            allowed="a server that runs already, by an address that every machine reaches",
            hint=(
                "start it yourself, and --set launch.vllm.url=http://HOST:8000; or"
                f" --set {key_path(entries[0], 'rollouts')}=transformers"
            ),
        )
        return
    if server is not None and server.python is not None:
        yield from _environment_faults(resolve_path(plan_path, server.python), entries[0])
        wanted = plan.launch.processes + server.gpus
        if plan.launch.device in ("cuda", "rocm") and wanted > len(hardware.gpus):
            yield Fault(
                what=(
                    f"the plan wants {plan.launch.processes} GPUs for training and {server.gpus}"
                    f" for the vLLM server, and {len(hardware.gpus)} can be used here"
                ),
                hint=(
                    "--set launch.vllm.gpus=0 --set launch.vllm.memory=0.4 lets it share a GPU, or"
                    f" --set {key_path(entries[0], 'rollouts')}=transformers"
                ),
            )
        return
    url = server_url(plan, os.environ)
    for entry in entries:
        if entry.starts_from is not None:
            continue  # what it starts from is not trained yet: its trainer asks
        needs = needs_of(plan, plan_path, entry, run)
        try:
            check_server(VLLMClient.at(url, server.timeout_s if server else 600.0), needs)
        except ServerFault as error:
            yield Fault(
                where=f"stage {entry.name}",
                what=f"the vLLM server at {url} {error}",
                allowed=f"a server started with: {serve_line(needs)}",
                hint=(
                    "start it that way; or --set launch.vllm.python=... of an environment with"
                    " vLLM, from which `advise run` starts it; or"
                    f" --set {key_path(entry, 'rollouts')}=transformers"
                ),
            )


def _environment_faults(python: Path, entry: Entry) -> Iterable[Fault]:
    """What is wrong with an interpreter that should have vLLM."""
    instead = f"or --set {key_path(entry, 'rollouts')}=transformers"
    if not (python.is_file() and os.access(python, os.X_OK)):
        yield Fault(
            where="launch.vllm.python",
            what=f"launch.vllm.python: {python} is no program",
            allowed="the interpreter of an environment with vLLM, such as /opt/vllm/bin/python",
            hint=f"python3 -m venv vllm && vllm/bin/pip install vllm, {instead}",
        )
        return
    try:
        done = subprocess.run(
            [str(python), "-c", ASK_VERSION], capture_output=True, text=True, check=False,
            timeout=VERSION_S, stdin=subprocess.DEVNULL, cwd=python.parent, env=_environment({}),
        )  # fmt: skip
        version, code = done.stdout.strip(), done.returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        version, code = str(error), 1
    if code:
        yield Fault(
            where="launch.vllm.python",
            what=f"launch.vllm.python: {python} has no vLLM",
            hint=(
                f"{python} -m pip install vllm (into an environment of its own: vLLM and"
                f" our transformers need different versions), {instead}"
            ),
        )
    elif (fault := version_fault(version)) is not None:
        yield Fault(
            where="launch.vllm.python",
            what=f"launch.vllm.python: the vLLM of {python} {fault}",
            hint=f"{python} -m pip install --upgrade vllm, {instead}",
        )


# --------------------------------------------------------------------------- during the stage


@contextmanager
def serving(
    plan: Plan,
    plan_path: Path,
    entry: Entry,
    run: Path,
    *,
    gpus: Mapping[str, str | None],
    say: Say,
) -> Iterator[str | None]:
    """Start the stage's server inside; its address, or None if the stage needs none or one that
    runs already.

    Raises MachineNotReady if it does not start.

    Args:
        gpus: Variables that show the server its GPUs alone; None: unset.
    """
    server = plan.launch.vllm
    if not asks_server(entry.stage) or server is None or server.python is None:
        yield None
        return
    port = free_port("127.0.0.1")
    needs = needs_of(plan, plan_path, entry, run)
    arguments = [
        *serve_arguments(needs, revision=plan.revision if needs.model == plan.model else None),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    if plan.trust_remote_code:
        arguments.append("--trust-remote-code")
    if plan.launch.device in ("cuda", "rocm"):
        arguments += ["--gpu-memory-utilization", f"{server.memory:g}"]
        if server.gpus > 1:
            arguments += ["--tensor-parallel-size", str(server.gpus)]
    python = str(resolve_path(plan_path, server.python))
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    url, log = f"http://127.0.0.1:{port}", run / LOG
    say(f"stage {entry.name}: starting a vLLM server at {url} (log: {LOG} in the run folder)")
    with log.open("ab") as file:
        process = subprocess.Popen(
            guard_command(command, parent=os.getpid()),
            env=_environment(gpus),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=run,
        )
    try:
        _wait_until_ready(process, VLLMClient(url, server.timeout_s), entry, log)
        yield url
        if process.poll() is not None:
            say(f"stage {entry.name}: the vLLM server ended with code {process.returncode}")
    finally:
        _end(process)


def _environment(gpus: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment for a program that has packages of its own."""
    own = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    found = {key: value for key, value in os.environ.items() if key not in own} | ENVIRONMENT
    return with_variables(found, gpus)


def _wait_until_ready(
    process: subprocess.Popen[bytes], client: VLLMClient, entry: Entry, log: Path
) -> None:
    began = time.monotonic()
    while True:
        with suppress(ServerFault):
            client.get("/health")
            return
        if process.poll() is not None:
            why = f"ended with code {process.returncode}"
        elif time.monotonic() - began > client.timeout_s:
            why = f"was not ready within {client.timeout_s:g} s (launch.vllm.timeout_s)"
        else:
            time.sleep(LOOK_EVERY_S)
            continue
        last = " / ".join(_last_lines(log))
        raise MachineNotReady(
            f"the vLLM server that was started {why}: {last or 'no output'}",
            where=f"stage {entry.name}",
            hint=(
                f"{log} has the rest; --set {key_path(entry, 'rollouts')}=transformers trains"
                " without it"
            ),
        )


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    return [line.strip() for line in lines if line.strip()][-SHOWN_LINES:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started."""
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(process.pid, number)
        # What a leader that has gone left in its group gets the second signal all the same.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
