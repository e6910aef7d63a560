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
from advisor.ground.sources import LINK
from advisor.ground.units import GIB
from advisor.ground.yaml_files import read_shipped
from advisor.probe.catalogue import load_catalogue

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
FILE, VOLUME, IGNORED = "sky.yaml", "volume.yaml", ".skyignore"
RUNS = "/runs"  # where the run folders lie, whichever machine they are on (sky.sh)
USUAL_DISK_GB = 256  # sky.Resources, disk_size
OTHER_DISK_GB = 60  # assumed: the system, the packages, and a margin
AGAIN = 75  # the exit code that SkyPilot starts a job again for
ACCESS = {"access_mode": "ReadWriteMany"}


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
    """The task of a plan, on the GPU of that name, else on the plan's own.

    Raises InputError for a GPU that SkyPilot has no name for. The runs are kept in a bucket, which
    a lost machine leaves behind; several machines need storage that shows to each what the others
    write.
    """
    rented, called = _rented(needs, name), _cloud_name(needs.plan.name)
    kept = f"{called}-{needs.digest}-runs"  # the bucket or volume of the runs
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
    asked: dict[str, Any] = {"resources": resources, "envs": {}}
    files = {IGNORED: "/.venv\n/.fetched\n/hub\n/runs\n"}
    if needs.nodes > 1:
        storage, setting, commands = "volume", "RUNS_VOLUME", [f"sky volumes apply {VOLUME}"]
        where = (
            f"volume   {VOLUME} asks a Kubernetes cluster for storage that all machines write to (a"
            " bucket shows to none what another writes at once); --env RUNS_VOLUME=NAME is another"
        )
        asked["volumes"] = {RUNS: "${RUNS_VOLUME}"}
        size = f"{max(10, math.ceil(2 * needs.disk_bytes / GIB))}Gi"  # with room for two runs
        volume = {"name": kept, "type": "k8s-pvc", "infra": "k8s", "size": size, "config": ACCESS}
        note = f"# Where the machines of {FILE} keep their run: {commands[0]}\n"
        files[VOLUME] = note + yaml.safe_dump(volume, sort_keys=False)
        commands = [f"{commands[0]}    # once", launch]
    else:
        storage, setting, commands = "bucket", "RUNS_BUCKET", [launch]
        where = "bucket   SkyPilot makes it; names are taken worldwide: --env RUNS_BUCKET=NAME"
        asked["file_mounts"] = {RUNS: {"name": "${RUNS_BUCKET}", "mode": "MOUNT_CACHED"}}
    asked["envs"] = {setting: kept, "TASK": "", "MAX_STEPS": ""}
    devices = " or ".join(f"{name}:{count}" for name, count in rented.items()) or "no GPU"
    about = [
        f"{FILE}: {needs.machines} with {devices}",
        f"Checkpoints and results: {RUNS}, the {storage} {kept}; a machine that is lost is"
        " replaced, and the run resumes",
        f"Time: {needs.time_words()}; SkyPilot has no time limit",
        f"Price: {needs.price}; SkyPilot shows its own before it starts",
        *(f"Note: {note}" for note in needs.notes),
        "Yours to give or change:",
        f"  {where}",
        "  cloud    the cheapest that has it; --infra aws, --infra kubernetes",
        "  spot     --use-spot",
        "  trial    --env MAX_STEPS=10",
    ]
    script = fill_template("sky.sh", {"PLAN": needs.plan.name, "OFFLINE": needs.offline_line()})
    files[FILE] = fill_template(
        "sky.txt",
        {
            "COMMANDS": as_comments(f"  {line}" for line in commands),
            "ABOUT": as_comments(about),
            "NAME": called,
            "NODES": str(needs.nodes),
            "ASKED": yaml.safe_dump(asked, sort_keys=False).rstrip(),
            "RUN": indent(script.rstrip(), "  "),
        },
    )
    return SchedulerJob(
        ending="skypilot",
        files=files,
        about=wrapped(about),
        where="Here, with SkyPilot in an environment of its own (pip install skypilot)",
        is_copied=False,
        commands=commands,
        facts={**needs.facts, "file": FILE, "accelerators": rented, "runs": kept},
    )


def _rented(needs: JobNeeds, name: str | None) -> dict[str, int]:
    """SkyPilot's name -> GPUs of each machine, any one of which will do. Raises InputError."""
    if not needs.gpus:
        return {}
    if name is not None and needs.gpu is not None:
        device = {"nvidia": "cuda", "amd": "rocm"}.get(needs.gpu.vendor)
        if device != needs.plan.launch.device:
            raise InputError(
                f"{needs.gpu.name} is not a GPU for this plan: launch.device is"
                f" {needs.plan.launch.device}",
                where=f"--to skypilot:{name}",
                hint=f"another GPU, or `device: {device}` in the plan",
            )
        return {name: needs.gpus}
    what, gpu = "which GPU the plan is for is not known, and SkyPilot rents by name", needs.gpu
    if gpu is not None:
        names = [name for name, ids in skypilot_accelerators().items() if gpu.id in ids]
        if names:
            return dict.fromkeys(names, needs.gpus)
        what = f"SkyPilot's list of GPUs has no {gpu.name}"
    similar = _similar_gpus(gpu.memory_bytes if gpu else None)
    raise InputError(
        what,
        where="--to skypilot",
        allowed=f"the nearest by memory: {', '.join(similar)}",
        hint="--to skypilot:NAME takes another GPU, and the estimate is then for that one",
    )


def _similar_gpus(memory_bytes: int | None) -> list[str]:
    """Three names of GPUs with as much memory, the smallest first; without one the largest."""
    catalogue = load_catalogue()
    sizes = {name: catalogue[gpu_of(name)].memory_bytes or 0 for name in skypilot_accelerators()}
    by_size = sorted(sizes, key=lambda name: sizes[name])
    enough = [name for name in by_size if memory_bytes and sizes[name] >= memory_bytes]
    return (enough or by_size[::-1])[:3]


def _cloud_name(name: str) -> str:
    """As clouds take names: lower case, digits and hyphens."""
    return name.replace("_", "-")[:40].strip("-")
