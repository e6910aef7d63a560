"""Which of a run's machines this one is: read from what the scheduler, or a person, has set."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import InputError

# Variables with: how many machines, which one this is, the first one or a list that begins with it.
# The first whose count is set tells: what a person sets by hand comes before what is always there.
SCHEDULERS = (
    ("NNODES", "NODE_RANK", "MASTER_ADDR"),
    ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"),  # Kubeflow
    # Of Slurm's step, which may have fewer machines than the job: srun sets them in each task.
    ("SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_STEP_NODELIST"),
    ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"),
)
PORTS = ("MASTER_PORT", "PET_MASTER_PORT")
JOIN, JOIN_S = "ADVISE_JOIN_S", 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This machine among those of a run. Machine 0 decides, and keeps the record."""

    node: int
    nodes: int
    address: str  # of machine 0, as the others reach it
    port: int | None  # there; None: machine 0 chooses a free one
    wait_s: int  # in which every machine has to come


def first_host(hosts: str) -> str:
    """The first name of a list: of 'gpu[03-05,7],cpu1', as Slurm writes it, gpu03; of lines, the
    first.
    """
    begin, bracket, rest = (*re.split(r"(\[|,|\s|$)", hosts.strip(), maxsplit=1), "")[:3]
    if bracket != "[":
        return begin
    inside, _, behind = rest.partition("]")
    return first_host(f"{begin}{re.split('[-,]', inside)[0]}{behind}")


def find_place(nodes: int, environ: Mapping[str, str], *, plan: Path, folder: Path) -> Place | None:
    """This machine among those of a run; None if the run has one alone.

    Raises InputError, with both numbers, if the plan and the scheduler disagree; if nothing says
    which of the machines this is, with the command to start.
    """
    scheduler = next((names for names in SCHEDULERS if environ.get(names[0])), None)
    if scheduler is None:
        if nodes == 1:
            return None
        raise _nothing_tells(nodes, environ, plan, folder)
    count_name, node_name, address_name = scheduler
    count = _number(environ, count_name, least=1, most=10_000)
    if count != nodes:
        raise InputError(
            f"launch.nodes is {nodes} in the plan, and {count_name} says that the command is"
            f" started on {count}",
            allowed="the same number in both",
            hint=f"--set launch.nodes={count}, start it on {nodes}, or unset {count_name} if it"
            " means something else",
        )
    if nodes == 1:
        return None
    told = environ.get("MASTER_ADDR", "").strip()
    address = told or first_host(environ.get(address_name, ""))
    if not address:
        raise InputError(
            f"nothing says where the first machine is: {address_name} is not set",
            where=address_name,
            allowed="the name or address of the first machine, as the others reach it",
        )
    port = next((name for name in PORTS if environ.get(name)), None)
    return Place(
        node=_number(environ, node_name, least=0, most=nodes - 1),
        nodes=nodes,
        address=address,
        port=None if port is None else _number(environ, port, least=1, most=65_535),
        wait_s=_number(environ, JOIN, least=1, most=10**6) if environ.get(JOIN) else JOIN_S,
    )


def node_of(nodes: int, environ: Mapping[str, str]) -> int:
    """The number of this machine in a run on several, 0 if nothing says it."""
    name = next((names[1] for names in SCHEDULERS if environ.get(names[0])), "")
    text = environ.get(name, "") if nodes > 1 else ""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _number(environ: Mapping[str, str], name: str, *, least: int, most: int) -> int:
    """The variable's value. Raises InputError."""
    text = environ.get(name, "")
    # Digits alone: int() takes '1_0' and digits of other scripts, too.
    if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    raise InputError(
        f"{name} is '{text}'" if text else f"{name} is not set",
        where=name,
        allowed=f"a whole number from {least} to {most}",
    )


def _nothing_tells(nodes: int, environ: Mapping[str, str], plan: Path, folder: Path) -> InputError:
    here = f"MASTER_ADDR={socket.gethostname()} NNODES={nodes} NODE_RANK=0"
    start = f"srun --nodes={nodes} --ntasks-per-node=1 --kill-on-bad-exit=0"
    return InputError(
        f"the plan is for {nodes} machines (launch.nodes), and nothing says which one this is",
        allowed="the same command on every machine, with the same folder on a shared disk, started"
        f" by a scheduler, or by hand with NODE_RANK from 0 to {nodes - 1}",
        hint=f"{start if 'SLURM_JOB_ID' in environ else here}"
        f" {shlex.join(['advise', 'run', str(plan), '--output', str(folder)])}",
    )
