"""The engine that a stage names, opened before its model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from advisor.ground.errors import Fault
from advisor.plan.model import VLLMServer
from advisor.plan.vllm import VLLMClient, asks_server, server_needs, server_url, unservable
from trainers.job.job import JUDGE, Job, label
from trainers.job.machine import is_main_process
from trainers.rollouts.engine import Engine
from trainers.say.telling import say


@dataclass(frozen=True)
class OpenServer:
    """A server that has what the stage needs."""

    client: VLLMClient
    base: str  # its name of the base


def rollout_faults(job: Job) -> list[Fault]:
    """What in the stage the engine of its rollouts cannot do."""
    return list(unservable(job.stage, job.options)) if asks_server(job.stage) else []


def open_rollouts(job: Job) -> OpenServer | None:
    """The server of the stage; None if its own process generates.

    A dry run measures the memory of training alone, so that it asks no server; nor does judging,
    which lets the model itself answer.

    Raises MachineNotReady if the server is not there or lacks what the stage needs.
    """
    if not asks_server(job.stage) or job.part == JUDGE:
        return None
    from trainers.rollouts.vllm_engine import open_server

    if job.dry_run:
        if is_main_process():
            say(f"{label(job)}: the dry run generates in its own process and asks no server")
        return None
    needs = server_needs(job.stage, job.options, model=job.whole_model(job.start))
    timeout_s = (job.plan.launch.vllm or VLLMServer()).timeout_s
    client, base, note = open_server(
        server_url(job.plan, os.environ), timeout_s, needs, stage=job.stage.name
    )
    if is_main_process():
        say(f"{label(job)}: {note}")
        if job.stage.quantization is not None:
            say(
                f"{label(job)}: the server's base is not quantised: importance weights correct for"
                " the difference"
            )
    return OpenServer(client, base)


def engine_of(
    job: Job,
    server: OpenServer | None,
    local: Engine,
    policy: Callable[[], AbstractContextManager[Any]],
) -> Engine:
    """The engine of the stage.

    Args:
        job: The stage.
        server: What `open_rollouts` returned.
        local: The engine of this process.
        policy: Makes the context in which the model is the policy.
    """
    if server is None:
        return local
    from advisor.methods import update
    from trainers.rollouts.vllm_engine import VLLMEngine

    return VLLMEngine(
        server.client,
        server.base,
        policy,
        sends="adapter" if update(job.stage.update).is_module else "weights",
        run=job.run,
        stage=job.stage.name,
    )
