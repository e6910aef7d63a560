"""A plan as a job of Slurm: `job.sbatch` in a bundle that holds all it needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from advisor.export.exporter import Wanted
from advisor.ground.errors import InputError
from advisor.ground.units import MIB, format_duration

if TYPE_CHECKING:
    from advisor.extras.jobs.needs import Needs
    from advisor.extras.jobs.pack import Job

NAME = "slurm"
HELP = "job.sbatch in a bundle; slurm:h100 names the cluster's GPU"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()
VARIANTS = True

FILE = "job.sbatch"
MOST_SIGNAL_S = 65535  # sbatch(1), --signal
UNKNOWN_GRACE_S = 600  # where no estimate says how long a step and a save take
GPU_TYPE = re.compile(r"[\w.-]+")


def export(wanted: Wanted) -> int:
    """Write the bundle with its job and say how it is submitted."""
    from advisor.extras.jobs.pack import write_bundle

    return write_bundle(wanted, lambda needs: slurm_job(needs, wanted.variant or None))


def slurm_job(needs: Needs, gpu_type: str | None = None) -> Job:
    """The job of a plan; without the cluster's name of the GPU any is given.

    Raises InputError for what cannot be such a name.
    """
    from advisor.extras.jobs.pack import Job, as_comments, filled, wrapped

    if gpu_type is not None and (not needs.gpus or not GPU_TYPE.fullmatch(gpu_type)):
        raise InputError(
            f"'{gpu_type}' cannot be a GPU of the job" if needs.gpus else "the plan uses no GPU",
            where=f"--to slurm:{gpu_type}",
            allowed="letters, digits and _ . -, as `sinfo -o %G` shows them between two colons",
        )
    missing = _missing(needs, gpu_type)
    about = _about(needs)
    about.append("Not known here, and yours to give where your cluster asks for it:")
    about += [f"  {line}" for line in missing]
    script = filled(
        "job.sh",
        ABOUT=as_comments(about),
        JOB=f"{needs.plan.name}-{needs.digest}",
        NODES=str(needs.nodes),
        CORES=str(needs.cores),
        ASKED="".join(f"\n#SBATCH --{option}" for option in _asked(needs, gpu_type)),
        GRACE_S=str(_grace_s(needs)),
        NUMBER="%A_%a" if needs.tasks else "%j",
        PLAN=needs.plan.name,
        TASKS=" ".join(needs.tasks),
        OFFLINE=needs.offline_line(),
    )
    return Job(
        ending="slurm",
        files={FILE: script},
        about=wrapped(about),
        where="On the cluster, in a folder that all its machines share",
        is_copied=True,
        commands=("bash run.sh --set-up    # once, where there is a connection", f"sbatch {FILE}"),
        facts={
            **needs.facts,
            "file": FILE,
            "gpus_per_node": needs.gpus,
            "cores_per_node": needs.cores,
            "time_limit_s": needs.limit_s,
            "stop_signal_s": _grace_s(needs),
            "not_known": [line.split("  ")[0] for line in missing],
        },
    )


def _grace_s(needs: Needs) -> int:
    return min(needs.grace_s or UNKNOWN_GRACE_S, MOST_SIGNAL_S)


def _about(needs: Needs) -> list[str]:
    """What the job asks for, in words."""
    gpu = f" ({needs.gpu.name})" if needs.gpu is not None else ""
    devices = f"{_count(needs.gpus, 'GPU')}{gpu}" if needs.gpus else "no GPU"
    tasks = len(needs.tasks)
    jobs = f"an array of {_count(tasks, 'job')}, one for each task; " if tasks else ""
    time = f"Time: {needs.time_words(why=True)}, so that the partition's own limit holds"
    if needs.limit_s is not None:
        time = f"Time limit {_clock(needs.limit_s)}: {needs.time_words()}"
    stop = "one step and one save" if needs.grace_s else "not known, so generously"
    grace = format_duration(_grace_s(needs))
    return [
        f"{FILE}: {jobs}{needs.machines} with {devices}, {_count(needs.cores, 'core')}",
        time,
        f"Asked to stop {grace} before the limit ({stop}), then queued again",
        f"Price: {needs.price}",
        *(f"Note: {note}" for note in needs.notes),
    ]


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
    return [*missing, "modules     `module load` lines, if Python 3.11 is a module of the cluster"]


def _asked(needs: Needs, gpu_type: str | None) -> list[str]:
    """The options of sbatch that not every job has."""
    asked = []
    if needs.gpus:
        kind = f"{gpu_type}:" if gpu_type is not None else ""
        asked.append(f"gpus-per-node={kind}{needs.gpus}")
    if needs.memory_bytes is not None:
        asked.append(f"mem={-(-needs.memory_bytes // MIB)}M")
    if needs.limit_s is not None:
        asked.append(f"time={_clock(needs.limit_s)}")
    if needs.tasks:
        asked.append(f"array=0-{len(needs.tasks) - 1}")
    return asked


def _clock(seconds: int) -> str:
    """As sbatch reads it: days-hours:minutes:seconds."""
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
