"""A plan as a task of SkyPilot: `sky.yaml` in a bundle that holds all it needs. SkyPilot starts it
on clouds and on Kubernetes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from textwrap import indent
from typing import Any

import yaml

from advisor.export.exporter import ExportRequest
from advisor.extras.jobs.needs import JobNeeds
from advisor.extras.jobs.pack import SchedulerJob, as_comments, fill_template, wrapped, write_bundle
from advisor.ground.errors import InputError, did_you_mean
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.units import GIB
from advisor.ground.yaml_files import LINK, read_shipped

SKYPILOT_FILE = Keys(
    help="What SkyPilot calls GPUs",
    keys={
        "version": Choice(values=(1,)),
        "checked": Date(help="the day somebody read the source"),
        "source": Text(pattern=LINK),
        "accelerators": MapOf(
            of=ListOf(of=Text(), least=1, help="keys under `gpus` in rules/hardware/"),
            help="SkyPilot's name -> the GPUs that it stands for",
        ),
    },
    required=("version", "checked", "source", "accelerators"),
)
FILE, IGNORED = "sky.yaml", ".skyignore"
RUNS = "/runs"  # where the run folders lie, whichever machine they are on (sky.sh)
USUAL_DISK_GB = 256  # sky.Resources, disk_size
OTHER_DISK_GB = 60  # assumed: the system, the packages, and a margin
AGAIN = 75  # the exit code that SkyPilot starts a job again for


@cache
def skypilot_accelerators() -> Mapping[str, Sequence[str]]:
    """SkyPilot's name -> ids of GPUs. Raises InputError with the faults of the file."""
    path = rules_dir() / "clusters" / "skypilot.yaml"
    return dict(read_shipped(path, shape=SKYPILOT_FILE).data["accelerators"])


def export(wanted: ExportRequest) -> int:
    """Write the bundle with its task. Raises InputError for a GPU that SkyPilot does not have."""
    if not wanted.variant:
        return write_bundle(wanted, lambda needs: skypilot_job(needs, None))
    known = {one.lower(): one for one in skypilot_accelerators()}
    name = known.get(wanted.variant.lower())
    if name is None:
        raise InputError(
            f"'{wanted.variant}' is not in SkyPilot's list of GPUs",
            where=f"--to skypilot:{wanted.variant}",
            allowed=f"known: {', '.join(known.values())}",
            hint=did_you_mean(wanted.variant.upper(), known.values()),
        )
    return write_bundle(wanted, lambda needs: skypilot_job(needs, name), gpu=gpu_of(name))


def gpu_of(name: str) -> str:
    """The GPU that a name of SkyPilot stands for first."""
    return skypilot_accelerators()[name][0]


def skypilot_job(needs: JobNeeds, name: str | None) -> SchedulerJob:
    """The task of a plan, on the GPU of that name, else on the plan's own; the runs are kept in a
    bucket, which a lost machine leaves behind.

    Raises InputError for several machines, and for a GPU that SkyPilot has no name for.
    """
    if needs.nodes > 1:
        raise InputError(
            "a run on several machines needs a folder that all of them write to, and a bucket shows"
            " to none at once what another wrote",
            where="launch.nodes",
            allowed="one machine for --to skypilot",
            hint="--to slurm; or --to bundle on machines with shared storage (docs/scale.md)",
        )
    rented, called = _rented(needs, name), _cloud_name(needs.plan.name)
    kept = f"{called}-{needs.digest}-runs"  # the bucket of the runs
    launch = f"sky jobs launch {FILE}"
    if needs.tasks:
        each = f'-n {called}-"$task" --env TASK="$task"'
        names = " ".join(needs.tasks)
        launch = f"for task in {names}; do sky jobs launch -d -y {each} {FILE}; done"
    resources: dict[str, Any] = {"accelerators": rented} if rented else {"cpus": f"{needs.cores}+"}
    if needs.memory_bytes is not None:
        resources["memory"] = f"{math.ceil(needs.memory_bytes / GIB)}+"
    disk_gb = math.ceil(needs.disk_bytes / 1e9) + OTHER_DISK_GB
    if disk_gb > USUAL_DISK_GB:
        resources["disk_size"] = disk_gb
    resources["job_recovery"] = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [AGAIN]}
    asked: dict[str, Any] = {
        "resources": resources,
        "envs": {"RUNS_BUCKET": kept, "TASK": "", "MAX_STEPS": ""},
        "file_mounts": {RUNS: {"name": "${RUNS_BUCKET}", "mode": "MOUNT_CACHED"}},
    }
    devices = " or ".join(f"{name}:{count}" for name, count in rented.items()) or "no GPU"
    about = [
        f"{FILE}: 1 machine with {devices}",
        f"Checkpoints and results: {RUNS}, the bucket {kept}; a machine that is lost is"
        " replaced, and the run resumes",
        f"Time: {needs.time_words()}; SkyPilot has no time limit",
        f"Price: {needs.price}; SkyPilot shows its own before it starts",
        *(f"Note: {note}" for note in needs.notes),
        "Yours to give or change:",
        "  bucket   SkyPilot makes it; names are taken worldwide: --env RUNS_BUCKET=NAME",
        "  cloud    the cheapest that has it; --infra aws, --infra kubernetes",
        "  spot     --use-spot",
        "  trial    --env MAX_STEPS=10",
    ]
    script = fill_template("sky.sh", {"PLAN": needs.plan.name, "OFFLINE": needs.offline_line()})
    task = fill_template(
        "sky.txt",
        {
            "COMMANDS": as_comments([f"  {launch}"]),
            "ABOUT": as_comments(about),
            "NAME": called,
            "ASKED": yaml.safe_dump(asked, sort_keys=False).rstrip(),
            "RUN": indent(script.rstrip(), "  "),
        },
    )
    return SchedulerJob(
        ending="skypilot",
        files={FILE: task, IGNORED: "/.venv\n/.fetched\n/hub\n/runs\n"},
        about=wrapped(about),
        where="Here, with SkyPilot in an environment of its own (pip install skypilot)",
        is_copied=False,
        commands=[launch],
        facts={**needs.facts, "file": FILE, "accelerators": rented, "runs": kept},
    )


def _rented(needs: JobNeeds, name: str | None) -> dict[str, int]:
    """SkyPilot's name -> GPUs of the machine, any one of which will do. Raises InputError."""
    if not needs.gpus:
        return {}
    gpu, device = needs.gpu, needs.plan.launch.device
    if name is not None and gpu is not None:
        if {"nvidia": "cuda", "amd": "rocm"}.get(gpu.vendor) != device:
            raise InputError(
                f"{gpu.name} is not a GPU for this plan: launch.device is {device}",
                where=f"--to skypilot:{name}",
                hint="another GPU, or another `device` in the plan",
            )
        return {name: needs.gpus}
    names = [one for one, ids in skypilot_accelerators().items() if gpu and gpu.id in ids]
    if not names:
        raise InputError(
            f"SkyPilot's list of GPUs has no {gpu.name}"
            if gpu
            else "which GPU the plan is for is not known, and SkyPilot rents by name",
            where="--to skypilot",
            allowed=f"known: {', '.join(skypilot_accelerators())}",
            hint="--to skypilot:NAME takes another GPU, and the estimate is then for that one",
        )
    return dict.fromkeys(names, needs.gpus)


def _cloud_name(name: str) -> str:
    return name.replace("_", "-")[:40].strip("-")
