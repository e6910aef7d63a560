"""sky.yaml: what is rented, where the run is kept, and what is run there."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from advisor.extras.jobs.accelerators import accelerators
from advisor.extras.jobs.needs import Needs, why_online
from advisor.extras.jobs.words import SCRIPT, Job, wrapped
from advisor.ground.units import GIB
from advisor.ground.version import __version__
from advisor.plan.write import plan_digest

FILE, VOLUME, IGNORED = "sky.yaml", "volume.yaml", ".skyignore"
BODY = "sky.sh"
RUNS = "/runs"  # where the run folders lie, whichever machine they are on
USUAL_DISK_GB = 256  # sky.Resources, disk_size
OTHER_DISK_GB = 60  # assumed: the system, the packages, and a margin
AGAIN = 75  # the exit code that SkyPilot starts a job again for


def skypilot_job(needs: Needs, name: str | None) -> Job:
    """The task of a plan.

    Args:
        name: SkyPilot's name of the GPU; None: that of the plan's.

    Raises InputError for a GPU that SkyPilot has no name for.
    """
    rented = accelerators(needs, name)
    about, missing = _about(needs, rented), _missing(needs)
    lines = [*about, "Yours to give or change:", *(f"  {line}" for line in missing)]
    return Job(
        ending="skypilot",
        files={
            FILE: _text(needs, rented, about, missing),
            **({VOLUME: _volume(needs)} if needs.nodes > 1 else {}),
            IGNORED: "/.venv\n/.fetched\n/hub\n/runs\n",
        },
        about=wrapped(lines),
        where="Here, with SkyPilot in an environment of its own (pip install skypilot)",
        is_copied=False,
        commands=_commands(needs),
        facts={
            "file": FILE,
            "nodes": needs.nodes,
            "accelerators": rented,
            "gpu": needs.gpu.id if needs.gpu is not None else None,
            "tasks": list(needs.tasks),
            "runs": _kept(needs),
            "price": needs.price_words(),
        },
    )


def _kept(needs: Needs) -> str:
    """The bucket or volume that the run folders lie in."""
    return f"{_plain(needs.plan.name)}-{plan_digest(needs.plan)[:8]}-runs"


def _plain(name: str) -> str:
    """As clouds take names: lower case, digits and hyphens."""
    kept = "".join(one if one.isalnum() and one.isascii() else "-" for one in name.lower())
    return kept.strip("-")[:40] or "finetune"


def _commands(needs: Needs) -> tuple[str, ...]:
    launch = f"sky jobs launch {FILE}"
    first = (f"sky volumes apply {VOLUME}    # once",) if needs.nodes > 1 else ()
    if not needs.tasks:
        return (*first, launch)
    names = " ".join(map(shlex.quote, needs.tasks))
    each = f'sky jobs launch -d -y -n {_plain(needs.plan.name)}-"$task" --env TASK="$task" {FILE}'
    return (*first, f"for task in {names}; do {each}; done")


def _about(needs: Needs, rented: dict[str, int]) -> list[str]:
    machines = "1 machine" if needs.nodes == 1 else f"{needs.nodes} machines, each"
    devices = " or ".join(f"{name}:{count}" for name, count in rented.items()) or "no GPU"
    kept = "the volume" if needs.nodes > 1 else "the bucket"
    about = [
        f"{FILE}: {machines} with {devices}",
        f"Checkpoints and results: {RUNS}, {kept} {_kept(needs)}; a machine that is lost is"
        " replaced, and the run resumes",
    ]
    if needs.limit_s is not None:
        about.append(f"Time: {needs.time_words()}; SkyPilot has no time limit")
    else:
        about.append("Time: not known; SkyPilot has no time limit")
    about.append(f"Price: {needs.price_words()}; SkyPilot shows its own before it starts")
    return [*about, *(f"Note: {note}" for note in needs.notes)]


def _missing(needs: Needs) -> list[str]:
    if needs.nodes > 1:
        missing = [
            f"volume   {VOLUME} asks a Kubernetes cluster for storage that all machines write to (a"
            " bucket shows to none what another writes at once); --env RUNS_VOLUME=NAME is another",
        ]
    else:
        missing = [
            "bucket   SkyPilot makes it; names are taken worldwide: --env RUNS_BUCKET=NAME",
        ]
    return [
        *missing,
        "cloud    the cheapest that has it; --infra aws, --infra kubernetes",
        "spot     --use-spot",
        "trial    --env MAX_STEPS=10",
    ]


def _text(
    needs: Needs, rented: dict[str, int], about: Iterable[str], missing: Iterable[str]
) -> str:
    head = [
        f"Trains plan.yaml (finetune-advisor {__version__}). From this folder:",
        *(f"  {line}" for line in _commands(needs)),
        "",
        *about,
        "",
        "Yours to give or change:",
        *(f"  {line}" for line in missing),
        "",
        "Exit codes: 130 (stopped), 75 (a machine was lost), 137 and 143 (killed) are started"
        " again; 5 (training failed) once; all others never.",
    ]
    lines = [f"# {line}".rstrip() for line in wrapped(head)]
    lines += [
        f"name: {_plain(needs.plan.name)}",
        "workdir: .",
        f"num_nodes: {needs.nodes}",
        "resources:",
        *(f"  {line}" for line in _resources(needs, rented)),
        "  job_recovery:",
        "    max_restarts_on_errors: 0",
        f"    recover_on_exit_codes: [{AGAIN}]",
        *_storage(needs),
        f"setup: bash {SCRIPT} --set-up",
        "run: |",
    ]
    online = why_online(needs.plan)
    body = Path(__file__).with_name(BODY).read_text("utf-8")
    body = body.replace("@RUN@", shlex.quote(f"{RUNS}/{needs.plan.name}")).replace(
        "@OFFLINE@",
        f"# Not offline: {online}." if online else "export HF_HUB_OFFLINE=1 # all of it is there",
    )
    return "\n".join([*lines, *(f"  {line}".rstrip() for line in body.splitlines()), ""])


def _resources(needs: Needs, rented: dict[str, int]) -> list[str]:
    lines = [f"accelerators: {json.dumps(rented)}"] if rented else [f"cpus: {needs.cores}+"]
    if needs.memory_bytes is not None:
        lines.append(f"memory: {math.ceil(needs.memory_bytes / GIB)}+")
    disk_gb = math.ceil((needs.disk_bytes or 0) / 1e9) + OTHER_DISK_GB
    if disk_gb > USUAL_DISK_GB:
        lines.append(f"disk_size: {disk_gb}")
    return lines


def _volume(needs: Needs) -> str:
    """Storage of a Kubernetes cluster that several machines write to, with room for two runs."""
    size = max(10, math.ceil(2 * (needs.disk_bytes or 0) / GIB))
    return "\n".join(
        [
            f"# Where the machines of {FILE} keep their run: sky volumes apply {VOLUME}",
            f"name: {_kept(needs)}",
            "type: k8s-pvc",
            "infra: k8s",
            f"size: {size}Gi",
            "config:",
            "  access_mode: ReadWriteMany",
            "",
        ]
    )


def _storage(needs: Needs) -> list[str]:
    """The run folders: a bucket, which a lost machine leaves behind; several machines need storage
    that shows to each what the others write.
    """
    envs = ['  TASK: ""', '  MAX_STEPS: ""']
    if needs.nodes > 1:
        return [
            "envs:",
            f"  RUNS_VOLUME: {_kept(needs)}",
            *envs,
            "volumes:",
            f"  {RUNS}: ${{RUNS_VOLUME}}",
        ]
    return [
        "envs:",
        f"  RUNS_BUCKET: {_kept(needs)}",
        *envs,
        "file_mounts:",
        f"  {RUNS}:",
        "    name: ${RUNS_BUCKET}",
        "    mode: MOUNT_CACHED",
    ]
