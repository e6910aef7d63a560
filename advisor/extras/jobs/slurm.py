"""A plan as a job of Slurm: `job.sbatch` in a bundle that holds all it needs."""

from __future__ import annotations

import re

from advisor.export.exporter import ExportRequest
from advisor.extras.jobs.needs import JobNeeds
from advisor.extras.jobs.pack import SchedulerJob, as_comments, fill_template, wrapped, write_bundle
from advisor.ground.errors import InputError
from advisor.ground.units import MIB, format_duration

FILE = "job.sbatch"
MOST_SIGNAL_S = 65535  # sbatch(1), --signal
UNKNOWN_GRACE_S = 600  # where no estimate says how long a step and a save take
GPU_TYPE = re.compile(r"[\w.-]+")


def export(wanted: ExportRequest) -> int:
    """Write the bundle with its job and say how it is submitted."""
    return write_bundle(wanted, lambda needs: slurm_job(needs, wanted.variant or None))


def slurm_job(needs: JobNeeds, gpu_type: str | None = None) -> SchedulerJob:
    """The job of a plan, on any GPU or the named one. Raises InputError for the name."""
    gpus, tasks = needs.gpus, needs.tasks
    if gpu_type is not None and (not gpus or not GPU_TYPE.fullmatch(gpu_type)):
        raise InputError(
            f"'{gpu_type}' cannot be a GPU of the job" if gpus else "the plan uses no GPU",
            where=f"--to slurm:{gpu_type}",
            allowed="letters, digits and _ . -, as `sinfo -o %G` shows them between two colons",
        )
    asked = []  # the options of sbatch that not every job has
    missing = [  # what only the user of the cluster knows, and how it is given
        "partition   --partition, or SBATCH_PARTITION; else the default one",
        "account     --account, or SBATCH_ACCOUNT; else your default one",
    ]
    devices = "no GPU"
    if gpus:
        devices = f"{_count(gpus, 'GPU')}{f' ({needs.gpu.name})' if needs.gpu is not None else ''}"
        asked.append(f"gpus-per-node={f'{gpu_type}:' if gpu_type is not None else ''}{gpus}")
        if gpu_type is None:
            missing.append(
                f"GPU type    --gpus-per-node, with its name before :{gpus}; `sinfo -o %G` lists"
                " the cluster's names; without one, any GPU is given"
            )
        missing.append("memory      --mem, for each machine; else the cluster's default")
    if needs.memory_bytes is not None:
        asked.append(f"mem={-(-needs.memory_bytes // MIB)}M")
    if needs.limit_s is None:
        time = f"Time: {needs.time_words()}, so that the partition's own limit holds"
        missing.append("time        --time, such as 8:00:00")
    else:
        days, rest = divmod(needs.limit_s, 86400)
        clock = f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
        time = f"Time limit {clock}: {needs.time_words()}"
        asked.append(f"time={clock}")
    if tasks:
        asked.append(f"array=0-{len(tasks) - 1}")
    missing.append("modules     `module load` lines, if Python 3.11 is a module of the cluster")
    jobs = f"an array of {_count(len(tasks), 'job')}, one for each task; " if tasks else ""
    grace_s = min(needs.grace_s or UNKNOWN_GRACE_S, MOST_SIGNAL_S)
    stop = "one step and one save" if needs.grace_s else "not known, so generously"
    machines = f"{_count(needs.nodes, 'machine')}{', each' if needs.nodes > 1 else ''}"
    about = [
        f"{FILE}: {jobs}{machines} with {devices}, {_count(needs.cores, 'core')}",
        time,
        f"Asked to stop {format_duration(grace_s)} before the limit ({stop}), then queued again",
        f"Price: {needs.price}",
        *(f"Note: {note}" for note in needs.notes),
        "Not known here, and yours to give to sbatch where your cluster asks for it:",
        *(f"  {line}" for line in missing),
    ]
    script = fill_template(
        "job.sh",
        {
            "ABOUT": as_comments(about),
            "JOB": f"{needs.plan.name}-{needs.digest}",
            "NODES": str(needs.nodes),
            "CORES": str(needs.cores),
            "ASKED": "".join(f"\n#SBATCH --{option}" for option in asked),
            "GRACE_S": str(grace_s),
            "NUMBER": "%A_%a" if tasks else "%j",
            "PLAN": needs.plan.name,
            "TASKS": " ".join(tasks),
            "OFFLINE": needs.offline_line(),
        },
    )
    return SchedulerJob(
        ending="slurm",
        files={FILE: script},
        about=wrapped(about),
        where="On the cluster, in a folder that all its machines share",
        is_copied=True,
        commands=("bash run.sh --set-up    # once, where there is a connection", f"sbatch {FILE}"),
        facts={
            **needs.facts,
            "file": FILE,
            "gpus_per_node": gpus,
            "cores_per_node": needs.cores,
            "time_limit_s": needs.limit_s,
            "stop_signal_s": grace_s,
            "not_known": [line.split("  ")[0] for line in missing],
        },
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
