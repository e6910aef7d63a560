"""A Slurm cluster of two machines on this one: its daemons on the loopback, its files in a folder.

Debian and Ubuntu: `apt install slurmctld slurmd slurm-client munge`. Nothing of the system's own
Slurm is read or changed.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
# cred_expire: how long a job that is queued again waits until the old one's credential is void.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MinJobAge=3600
GresTypes=gpu
"""
NODE = """\
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={mib} \
Gres=gpu:h100:2 State=UNKNOWN
"""


def missing_programs() -> list[str]:
    """What is not installed of Slurm."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """The daemons, and the commands that ask them."""

    nodes = ("n1", "n2")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def write(self) -> None:
        """The configuration, with ports that are free now."""
        user, host = getpass.getuser(), socket.gethostname().partition(".")[0]
        ports = free_ports(1 + len(self.nodes))
        mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 3 // 4
        text = CONFIGURATION.format(folder=self.folder, host=host, port=ports[0], user=user)
        for name, port in zip(self.nodes, ports[1:], strict=True):
            text += NODE.format(name=name, host=host, port=port, cpus=os.cpu_count(), mib=mib)
            (self.folder / f"spool-{name}").mkdir()
        text += f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES State=UP\n"
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        # Files stand in for two GPUs: the scheduler gives them away and never opens them.
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={','.join(self.nodes)} Name=gpu Type=h100 File={file}\n"
                for file in ("/dev/null", "/dev/zero")
            )
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.folder.chmod(0o700)

    def start(self) -> None:
        """All daemons; returns when both machines are idle."""
        at = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self.call(
            "munged", "--force", f"--key-file={self.folder / 'munge.key'}",
            f"--socket={at['socket']}", f"--pid-file={at['pid']}", f"--log-file={at['log']}",
            f"--seed-file={at['seed']}",
        )  # fmt: skip
        self.call("slurmctld")
        for name in self.nodes:
            self.call("slurmd", "-N", name)
        wait(lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])

    def stop(self) -> None:
        """What was started here, by its number."""
        if (self.folder / "slurmctld.pid").exists():
            with suppress(subprocess.CalledProcessError):
                self.call("scancel", f"--user={getpass.getuser()}", "--signal=KILL", "--full")
        for file in (*self.folder.glob("slurm*.pid"), self.folder / "munge.pid"):
            kill(file, signal.SIGTERM)

    def call(self, *command: str, cwd: Path | None = None, **more: str) -> str:
        """What a command prints; `more` goes into its environment.

        Raises CalledProcessError, with what it says, if it fails.
        """
        found = subprocess.run(
            command, env=self.environment | more, cwd=cwd, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        if found.returncode:
            error = subprocess.CalledProcessError(
                found.returncode, command, found.stdout, found.stderr
            )
            error.add_note(found.stderr)
            raise error
        return found.stdout

    def submit(self, folder: Path, *arguments: str, **more: str) -> str:
        """The number of a job: job.sbatch of the folder."""
        command = ("sbatch", "--parsable", "job.sbatch", *arguments)
        return self.call(*command, cwd=folder, **more).strip()

    def job(self, number: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode, ... of a job."""
        text = self.call("scontrol", "show", "job", "-o", number)
        return dict(pair.partition("=")[::2] for pair in text.split() if "=" in pair)

    def ended(self, number: str, *, within_s: float = 600) -> dict[str, str]:
        """The job, once it has ended."""
        going = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED"}
        wait(lambda: self.job(number)["JobState"] not in going, within_s=within_s)
        return self.job(number)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that is up, and down afterwards."""
    cluster = Cluster(folder)
    cluster.write()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait(is_so: Callable[[], bool], *, within_s: float = 60) -> None:
    """Until it is so. Raises TimeoutError."""
    end_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {within_s:g} s")
        time.sleep(0.2)


def kill(pid_file: Path, number: int) -> None:
    """A signal to the process that a file names, if it is alive."""
    with suppress(OSError, ValueError):
        os.kill(int(pid_file.read_text()), number)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
