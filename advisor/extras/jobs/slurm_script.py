"""job.sbatch: what is asked of the scheduler, above the script that runs and requeues."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advisor.extras.jobs.needs import UNKNOWN_GRACE_S, Needs, why_online
from advisor.extras.jobs.words import SCRIPT, Job, wrapped
from advisor.ground.errors import InputError
from advisor.ground.units import MIB, format_duration
from advisor.ground.version import __version__
from advisor.plan.write import plan_digest

FILE = "job.sbatch"
BODY = "job.sh"
MOST_SIGNAL_S = 65535  # sbatch(1), --signal
GPU_TYPE = re.compile(r"[\w.-]+")


def slurm_job(needs: Needs, gpu_type: str | None = None) -> Job:
    """The job of a plan, with what it asks for and what only its user knows.

    Args:
        gpu_type: What the cluster calls the GPU; None: not known, so that any is given.

    Raises InputError for what cannot be such a name.
    """
    if gpu_type is not None and (not needs.gpus or not GPU_TYPE.fullmatch(gpu_type)):
        raise InputError(
            f"'{gpu_type}' cannot be a GPU of the job" if needs.gpus else "the plan uses no GPU",
            where=f"--to slurm:{gpu_type}",
            allowed="letters, digits and _ . -, as `sinfo -o %G` shows them between two colons",
        )
    about = _about(needs)
    missing = _missing(needs, gpu_type)
    lines = [*about, "Not known here, and yours to give where your cluster asks for it:"]
    lines += [f"  {line}" for line in missing]
    return Job(
        ending="slurm",
        files={FILE: _script(needs, gpu_type, about, missing)},
        about=wrapped(lines),
        where="On the cluster, in a folder that all its machines share",
        is_copied=True,
        commands=(
            f"bash {SCRIPT} --set-up    # once, where there is a connection",
            f"sbatch {FILE}",
        ),
        facts=_facts(needs, missing),
    )


def _grace_s(needs: Needs) -> int:
    return min(needs.grace_s, MOST_SIGNAL_S)


def _about(needs: Needs) -> list[str]:
    """What the job asks for, in words."""
    machines = "1 machine" if needs.nodes == 1 else f"{needs.nodes} machines, each"
    gpu = f" ({needs.gpu.name})" if needs.gpu is not None else ""
    devices = "no GPU" if not needs.gpus else f"{_count(needs.gpus, 'GPU')}{gpu}"
    jobs = (
        f"an array of {_count(len(needs.tasks), 'job')}, one for each task; " if needs.tasks else ""
    )
    about = [f"{FILE}: {jobs}{machines} with {devices}, {_count(needs.cores, 'core')}"]
    if needs.limit_s is None:
        unknown = dict.fromkeys(why for part in needs.parts for why in part.unknown)
        why = f" ({'; '.join(unknown)})" if unknown else ""
        about.append(f"Time: not known{why}, so that the partition's own limit holds")
    else:
        about.append(f"Time limit {_clock(needs.limit_s)}: {needs.time_words()}")
    stop = (
        "not known, so generously" if needs.grace_s == UNKNOWN_GRACE_S else "one step and one save"
    )
    grace = format_duration(_grace_s(needs))
    about.append(f"Asked to stop {grace} before the limit ({stop}), then queued again")
    about.append(f"Price: {needs.price_words()}")
    return [*about, *(f"Note: {note}" for note in needs.notes)]


def _missing(needs: Needs, gpu_type: str | None) -> list[str]:
    """What only the user of the cluster knows, and how it is given."""
    missing = [
        f"partition   sbatch --partition=NAME {FILE}, or SBATCH_PARTITION; else the default one",
        f"account     sbatch --account=NAME {FILE}, or SBATCH_ACCOUNT; else your default one",
    ]
    if needs.gpus and gpu_type is None:
        missing.append(
            f"GPU type    sbatch --gpus-per-node=TYPE:{needs.gpus} {FILE}; `sinfo -o %G` lists the"
            " cluster's names; without one, any GPU is given"
        )
    if needs.gpus:
        missing.append(
            f"memory      sbatch --mem=64G {FILE}; for each machine; else the cluster's default"
        )
    if needs.limit_s is None:
        missing.append(f"time        sbatch --time=HOURS:00:00 {FILE}")
    missing.append("modules     `module load` lines, if Python 3.11 is a module of the cluster")
    return missing


def _script(
    needs: Needs, gpu_type: str | None, about: Iterable[str], missing: Iterable[str]
) -> str:
    head = [
        f"Trains plan.yaml (finetune-advisor {__version__}). In this folder, which all machines of"
        " the job must share:",
        f"  bash {SCRIPT} --set-up   # once, where there is a connection: packages, models",
        f"  sbatch {FILE}        # options of `advise run` may follow: --max-steps 10",
        "",
        *about,
        "",
        "Not known here, and yours to give where your cluster asks for it:",
        *(f"  {line}" for line in missing),
        "",
        "Exit codes: 130 (stopped), 75 (a machine was lost), 137 and 143 (killed) are queued again;"
        " 5 (training failed) once; all others never.",
        "Save and end for good: scancel --batch --signal=INT JOB",
    ]
    lines = ["#!/bin/bash", *(f"# {line}".rstrip() for line in wrapped(head))]
    lines += [f"#SBATCH {option}" for option in _options(needs, gpu_type)]
    body = Path(__file__).with_name(BODY).read_text("utf-8")
    about_run, run = _run(needs)
    online = why_online(needs.plan)
    offline = "export HF_HUB_OFFLINE=1 # all of it is there now"
    if online is not None:
        offline = f"# Not offline: {online}."
    body = body.replace("@RUN_ABOUT@", about_run).replace("@RUN_LINES@", run)
    return "\n".join([*lines, body.replace("@OFFLINE@", offline)])


def _options(needs: Needs, gpu_type: str | None) -> list[str]:
    plan = needs.plan
    options = [
        # With the digest: another job of this name waits until this one has ended.
        f"--job-name={plan.name}-{plan_digest(plan)[:8]}",
        "--dependency=singleton",
        f"--nodes={needs.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={needs.cores}",
    ]
    if needs.gpus:
        kind = f"{gpu_type}:" if gpu_type is not None else ""
        options.append(f"--gpus-per-node={kind}{needs.gpus}")
    if needs.memory_bytes is not None:
        options.append(f"--mem={-(-needs.memory_bytes // MIB)}M")
    if needs.limit_s is not None:
        options.append(f"--time={_clock(needs.limit_s)}")
    if needs.tasks:
        options.append(f"--array=0-{len(needs.tasks) - 1}")
    return [
        *options,
        f"--signal=B:TERM@{_grace_s(needs)}",
        "--requeue",
        "--open-mode=append",
        f"--output=%x-{'%A_%a' if needs.tasks else '%j'}.out",
    ]


def _run(needs: Needs) -> tuple[str, str]:
    """(a comment, the lines that name the run folder)."""
    folder = shlex.quote(f"runs/{needs.plan.name}")
    if not needs.tasks:
        return "The run folder: a job that is queued again resumes there.", f"RUN={folder}"
    names = " ".join(map(shlex.quote, needs.tasks))
    return (
        "Each task is one number of the array, with a run folder of its own.",
        f"TASKS=({names})\n"
        "NAME=${TASKS[${SLURM_ARRAY_TASK_ID:?it is submitted as an array}]}\n"
        f"RUN={folder}-$NAME\n"
        'set -- --only "$NAME" "$@"',
    )


def _facts(needs: Needs, missing: list[str]) -> dict[str, Any]:
    return {
        "file": FILE,
        "nodes": needs.nodes,
        "gpus_per_node": needs.gpus,
        "gpu": needs.gpu.id if needs.gpu is not None else None,
        "cores_per_node": needs.cores,
        "tasks": list(needs.tasks),
        "time_limit_s": needs.limit_s,
        "stop_signal_s": _grace_s(needs),
        "price": needs.price_words(),
        "not_known": [line.split("  ")[0] for line in missing],
    }


def _clock(seconds: int) -> str:
    """As sbatch reads it: days-hours:minutes:seconds."""
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
