"""Which of a run's machines this one is: read from what the scheduler, or a person, has set."""

from __future__ import annotations

import ipaddress
import re
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import InputError

PORT = 29600  # of the leader, where nothing says another
SLURM_PORTS = (20_000, 10_000)  # the first, and how many: below those that Linux lends to clients
MOST_NODES = 10_000
SHOWN = 4  # commands of machines


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This machine among those of a run. Node 0 leads: it decides, and keeps the record."""

    node: int
    nodes: int
    address: str  # of the leader, as the others reach it
    port: int  # there
    told_by: str  # 'Slurm (SLURM_STEP_NUM_NODES)'

    @property
    def leads(self) -> bool:
        """Whether this machine decides."""
        return self.node == 0

    @property
    def meets_at(self) -> str:
        """'gpu-a:29600'."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """Variables by which something that starts a command on several machines tells each of them
    which one it is.
    """

    name: str
    count: str
    node: str
    address: str = "MASTER_ADDR"  # or the list of machines, whose first one leads
    first: Callable[[str], str] = str.strip
    port: str = "MASTER_PORT"
    port_of: Callable[[Mapping[str, str]], int] = lambda environ: PORT


def first_host(hosts: str) -> str:
    """The first name of a list as Slurm writes it: 'gpu[03-05,7],cpu1' begins with gpu03."""
    found = re.match(r"[^,\[]*", hosts.strip())
    begin = found.group() if found else ""
    rest = hosts.strip()[len(begin) :]
    if not rest.startswith("["):
        return begin
    inside, _, behind = rest[1:].partition("]")
    number = re.split(r"[-,]", inside)[0]
    return first_host(f"{begin}{number}{behind}")


def first_line(hosts: str) -> str:
    """The first of addresses that stand one on each line."""
    return (hosts.split() or [""])[0]


def slurm_port(environ: Mapping[str, str]) -> int:
    """A port of the job's own, since several jobs may share a machine."""
    first, count = SLURM_PORTS
    job = environ.get("SLURM_JOB_ID", "")
    return first + int(job) % count if job.isdigit() else PORT


# The first whose count is set tells. What a person sets by hand comes before what is always there.
SCHEDULERS = (
    Scheduler(name="", count="NNODES", node="NODE_RANK"),
    Scheduler(
        name="Kubeflow", count="PET_NNODES", node="PET_NODE_RANK", address="PET_MASTER_ADDR",
        port="PET_MASTER_PORT",
    ),
    # Of the step, which may have fewer machines than the job: srun sets them in each task.
    Scheduler(
        name="Slurm", count="SLURM_STEP_NUM_NODES", node="SLURM_NODEID",
        address="SLURM_STEP_NODELIST", first=first_host, port_of=slurm_port,
    ),
    Scheduler(
        name="SkyPilot", count="SKYPILOT_NUM_NODES", node="SKYPILOT_NODE_RANK",
        address="SKYPILOT_NODE_IPS", first=first_line,
    ),
)  # fmt: skip
SLURM_JOB, SLURM_STEP, SLURM_TASK = "SLURM_JOB_ID", "SLURM_STEP_NUM_NODES", "SLURM_LOCALID"


def find_place(nodes: int, environ: Mapping[str, str], *, plan: Path, folder: Path) -> Place | None:
    """This machine among those of a run; None if the run has one alone.

    Raises InputError, with both numbers, if the plan and the scheduler disagree; if nothing says
    which of the machines this is, with the command for each of them.

    Args:
        nodes: The plan's `launch.nodes`.
        environ: This process's environment.
        plan: The plan file, for the commands.
        folder: The run folder.
    """
    scheduler = next((one for one in SCHEDULERS if environ.get(one.count)), None)
    if scheduler is None:
        if nodes == 1:
            return None
        raise _nothing_tells(nodes, environ, plan, folder)
    who = f"{scheduler.name} ({scheduler.count})" if scheduler.name else scheduler.count
    count = _number(environ, scheduler.count, least=1, most=MOST_NODES)
    if count != nodes:
        raise InputError(
            f"launch.nodes is {nodes} in the plan, and {who} says that the command is started on"
            f" {count} machine{'s' if count != 1 else ''}",
            allowed="the same number in both",
            hint=f"--set launch.nodes={count}, or start it on {nodes}"
            + (f"; where {scheduler.count} means something else: unset it" if nodes == 1 else ""),
        )
    if scheduler.count == SLURM_STEP and environ.get(SLURM_TASK, "0") != "0":
        raise InputError(
            f"Slurm starts the command several times on a machine ({SLURM_TASK} is"
            f" {environ[SLURM_TASK]})",
            allowed="once on each machine: it starts launch.processes itself",
            hint="srun --ntasks-per-node=1",
        )
    if nodes == 1:
        return None
    node = _number(environ, scheduler.node, least=0, most=nodes - 1)
    told = environ.get("MASTER_ADDR", "").strip()
    address = told or scheduler.first(environ.get(scheduler.address, ""))
    if not address:
        raise InputError(
            f"nothing says where the first machine is: {scheduler.address} is not set",
            where=scheduler.address,
            allowed="the name or address of the first machine, as the others reach it",
        )
    port = next((name for name in ("MASTER_PORT", scheduler.port) if environ.get(name)), None)
    return Place(
        node=node,
        nodes=nodes,
        address=address,
        port=scheduler.port_of(environ)
        if port is None
        else _number(environ, port, least=1, most=65_535),
        told_by=who,
    )


def node_of(nodes: int, environ: Mapping[str, str]) -> int:
    """The number of this machine in a run on several, 0 if nothing says it."""
    scheduler = next((one for one in SCHEDULERS if environ.get(one.count)), None)
    text = environ.get(scheduler.node, "") if scheduler is not None and nodes > 1 else ""
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
    command = shlex.join(["advise", "run", str(plan), "--output", str(folder)])
    what = f"the plan is for {nodes} machines (launch.nodes), and nothing says which one this is"
    if SLURM_JOB in environ:
        return InputError(
            what,
            allowed="inside of a Slurm job, srun starts the command on every machine",
            hint=f"srun --nodes={nodes} --ntasks-per-node=1 --kill-on-bad-exit=0 {command}",
        )
    here = socket.gethostname()
    lines = [
        f"on {f'machine {node}' if node else f'the first ({here}, if it is this one)'}:"
        f" MASTER_ADDR={here} NNODES={nodes} NODE_RANK={node} {command}"
        for node in range(min(nodes, SHOWN))
    ]
    more = [f"and so on, up to NODE_RANK={nodes - 1}"] if nodes > SHOWN else []
    return InputError(
        what,
        allowed="the same command on every machine, with the same folder on a shared disk (Slurm:"
        " srun; SkyPilot: num_nodes; else by hand):",
        hint="\n  ".join([*lines, *more]),
    )


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address, 'eth0'; None if that is not known."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                question = name.encode()[:15].ljust(40, b"\0")
                try:  # SIOCGIFADDR, netdevice(7)
                    found = fcntl.ioctl(asking.fileno(), 0x8915, question)
                except OSError:  # one without an address
                    continue
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    except (ImportError, OSError):
        pass
    return None


def is_own_address(address: str) -> bool:
    """Whether an address means the machine itself, whoever uses it: 127.0.0.1, localhost."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def names(nodes: Sequence[int]) -> str:
    """'node 1', 'nodes 1, 2 and 5 more'."""
    shown = ", ".join(str(node) for node in nodes[:8])
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    return f"node{'s' if len(nodes) > 1 else ''} {shown}{more}"
