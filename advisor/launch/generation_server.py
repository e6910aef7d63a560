"""The vLLM server of a stage, if the plan names an environment to start it from: started before the
trainer, waited for, and ended with the stage. Its log is vllm.log in the run folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.files import text_of
from advisor.launch.child import free_port, guard_command, with_variables
from advisor.launch.prepare import PlanRun, Say
from advisor.model_files.folder import CONFIG
from advisor.plan.entries import Entry, start_folder_of, whole_model
from advisor.plan.keys import key_specs
from advisor.plan.vllm import ENVIRONMENT, ServerNeeds, asks_server, serve_arguments, server_needs
from advisor.plan.vllm_client import ServerFault, VLLMClient
from advisor.record.smaller import key_path

LOG = "vllm.log"
SHOWN_LINES = 3  # of the log, in an error
LOOK_EVERY_S = 0.2
END_S = 10.0  # that a server gets to end by itself


def server_needs_of(run: PlanRun, entry: Entry) -> ServerNeeds:
    """What the stage needs of its server."""
    stage, home = entry.stage, run.path.resolve().parent
    start = start_folder_of(entry, run=run.folder, folder=home)
    whole = whole_model(run.plan, start, run=run.folder, folder=home)
    options = key_specs().effective(stage)
    folder = run.resolve(run.plan.model)
    base = str(folder.resolve()) if (folder / CONFIG).is_file() else run.plan.model
    return server_needs(stage, options, model=base if whole is None else str(whole))


@contextmanager
def serving(
    run: PlanRun, entry: Entry, *, gpus: Mapping[str, str | None], say: Say
) -> Iterator[str | None]:
    """Start the stage's server inside; its address, or None if the stage needs none or one that
    runs already.

    Raises MachineNotReady if it does not start.

    Args:
        gpus: Variables that show the server its GPUs alone; None: unset.
    """
    plan, server = run.plan, run.plan.launch.vllm
    if not asks_server(entry.stage) or server is None or server.python is None:
        yield None
        return
    port = free_port("127.0.0.1")
    needs = server_needs_of(run, entry)
    arguments = [*serve_arguments(needs), *("--host", "127.0.0.1", "--port", str(port))]
    if plan.revision and needs.model == plan.model:
        arguments += ["--revision", plan.revision]
    if plan.trust_remote_code:
        arguments.append("--trust-remote-code")
    if plan.launch.device in ("cuda", "rocm"):
        arguments += ["--gpu-memory-utilization", f"{server.memory:g}"]
        if server.gpus > 1:
            arguments += ["--tensor-parallel-size", str(server.gpus)]
    python = str(run.resolve(server.python))
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    url, log = f"http://127.0.0.1:{port}", run.folder / LOG
    say(f"stage {entry.name}: starting a vLLM server at {url} (log: {LOG} in the run folder)")
    with log.open("ab") as file:
        process = subprocess.Popen(
            guard_command(command, parent=os.getpid()),
            env=server_environment(gpus),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=run.folder,
        )
    try:
        _wait_until_ready(process, VLLMClient(url, server.timeout_s), entry, log)
        yield url
        if process.poll() is not None:
            say(f"stage {entry.name}: the vLLM server ended with code {process.returncode}")
    finally:
        _end(process)


def server_environment(gpus: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment for a program that has packages of its own."""
    own = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    found = {key: value for key, value in os.environ.items() if key not in own} | ENVIRONMENT
    return with_variables(found, gpus)


def _wait_until_ready(
    process: subprocess.Popen[bytes], client: VLLMClient, entry: Entry, log: Path
) -> None:
    began = time.monotonic()
    why = ""
    while not why:
        with suppress(ServerFault):
            client.get("/health", dict)
            return
        if process.poll() is not None:
            why = f"ended with code {process.returncode}"
        elif time.monotonic() - began > client.timeout_s:
            why = f"was not ready within {client.timeout_s:g} s (launch.vllm.timeout_s)"
        else:
            time.sleep(LOOK_EVERY_S)
    lines = [line.strip() for line in text_of(log, errors="replace").splitlines()]
    last = " / ".join([line for line in lines if line][-SHOWN_LINES:])
    raise MachineNotReady(
        f"the vLLM server that was started {why}: {last or 'no output'}",
        where=f"stage {entry.name}",
        hint=f"{log} has the rest; --set {key_path(entry, 'rollouts')}=transformers trains"
        " without it",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(process.pid, number)
        # What a leader that has gone left in its group gets the second signal all the same.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
