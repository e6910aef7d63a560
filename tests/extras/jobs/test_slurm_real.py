"""An exported job on a real Slurm: two machines on the loopback, real trainings on the processor.

`python -m pytest -n0 -m long tests/extras/jobs/test_slurm_real.py`; skipped where Slurm is not installed
(Debian and Ubuntu: `apt install slurmctld slurmd slurm-client munge`). The daemons listen on the loopback, their
files are in a folder, and nothing of the system's own Slurm is read or changed.
"""

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from advisor.extras.jobs.needs import plan_needs
from advisor.extras.jobs.pack import make_bundle
from advisor.extras.jobs.slurm import slurm_job
from advisor.plan.read import read_plan
from tests.extras.jobs.project import DATA, TASKS, write_rows

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: apt install slurmctld slurmd slurm-client munge",
    ),
]
LONG_S = 600  # on a busy machine a training needs a minute to start
ROOT = Path(__file__).resolve().parents[3]
SAFETENSORS = "stages/*/adapter_model.safetensors"
PLAN = """\
version: 1
name: shop
model: {model}
{data}
stages:
  - name: sft
    objective: sft
    update: lora
    micro_batch_size: 2
    grad_accum: 1
    max_steps: {steps}
    save_steps: 20
    learning_rate: 0.001
    gradient_checkpointing: false
launch: {launch}
"""
ONE = 'data: {path: "the rows.jsonl"}'
TWO_TASKS = TASKS.replace(DATA, "the rows.jsonl")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster that is up, and down afterwards."""
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    found.write()
    try:
        found.start()
        found.environment |= {
            "ADVISE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "ADVISE_RUNS": "off",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        yield found
    finally:
        found.stop()


def plan_in(folder, model, *, data=ONE, steps=150, launch="{device: cpu}"):
    """A plan file with its data beside it."""
    write_rows(folder / "the rows.jsonl", 300)
    write_rows(folder / "hr.jsonl", 310)
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.format(model=model, data=data, steps=steps, launch=launch))
    return plan


@pytest.fixture
def exported(tmp_path, tiny_model):
    """Makes an unpacked bundle of a plan, in a folder with a blank in its name."""

    def make(**keys):
        plan = plan_in(tmp_path, tiny_model, **keys)
        job = slurm_job(plan_needs(read_plan(plan), plan))
        return make_bundle(plan, tmp_path / "a job", job=job).folder

    return make


def start(cluster, folder):
    """A job that only trains and saves: the number of it."""
    return cluster.submit(folder, "--no-judge")


def rows(folder, run="shop"):
    """Steps that the run has written down."""
    path = folder / "runs" / run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def processes(folder, words):
    """This job's processes whose command has this pattern, by the folder they work in."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if Path(os.readlink(one / "cwd")) == folder and re.search(words, command):
                found.append(int(one.name))
    return sorted(found)


ADVISE_RUN = r"^(?!srun\b).*-P -m advisor run"


def weights(folder, run="shop"):
    (file,) = (folder / "runs" / run).glob(SAFETENSORS)
    return file.read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model):
    """The weights of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    plan_in(folder, tiny_model)
    subprocess.run(
        [sys.executable, "-m", "advisor", "run", "plan.yaml", "--output", "runs/shop", "--no-judge"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip
    return weights(folder)


def test_a_job_that_is_stopped_or_killed_comes_back_and_ends_the_same(
    cluster, exported, uninterrupted
):
    """Asked to stop, then killed, it is queued again twice and ends with the same bytes."""
    folder = exported()
    job = cluster.submit(folder)
    wait(lambda: rows(folder) >= 25, within_s=LONG_S)
    cluster.call("scancel", "--batch", "--signal=TERM", job)
    wait(lambda: cluster.job(job)["Restarts"] == "1", within_s=LONG_S)
    stopped = rows(folder)
    wait(lambda: rows(folder) >= stopped + 25, within_s=LONG_S)
    (advise,) = processes(folder, ADVISE_RUN)
    os.kill(advise, signal.SIGKILL)
    ended = cluster.ended(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2")
    assert weights(folder) == uninterrupted
    said = next(folder.glob("*.out")).read_text()
    assert (said.count("the job is queued again"), "exit code 130" in said) == (2, True)


def test_a_lost_machine_is_replaced(cluster, exported, uninterrupted):
    """Everything on it dies at once; Slurm itself queues the job again, and the other one goes on."""
    folder = exported()
    job = start(cluster, folder)
    wait(lambda: rows(folder) >= 25, within_s=LONG_S)
    lost = cluster.job(job)["NodeList"]
    kill(cluster.folder / f"slurmd-{lost}.pid", signal.SIGKILL)
    steps = subprocess.run(
        ["pgrep", "-f", f"slurmstepd: \\[{job}\\."], capture_output=True, text=True, check=True
    ).stdout.split()
    for number in (*map(int, steps), *processes(folder, "")):
        os.kill(number, signal.SIGKILL)
    try:
        ended = cluster.ended(job, within_s=LONG_S)
    finally:
        cluster.call("slurmd", "-N", lost)
        wait(lambda: cluster.call("sinfo", "-h", "-n", lost, "-o", "%T").strip() == "idle")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert ended["NodeList"] != lost
    assert weights(folder) == uninterrupted


def test_bad_input_is_not_queued_again(cluster, exported):
    """Exit code 2, said in the job's output; the same of a partition is said by sbatch."""
    folder = exported()
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("max_steps: 150", "max_stepps: 150"))
    ended = cluster.ended(start(cluster, folder))
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "did you mean 'max_steps'" in next(folder.glob("*.out")).read_text()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.call("sbatch", "--partition=nowhere", "job.sbatch", cwd=folder)
    assert "invalid partition specified: nowhere" in refused.value.stderr


def test_a_failed_training_is_queued_again_once(cluster, exported):
    """The trainer is killed twice: exit code 5, once again, and then the end."""
    folder = exported(steps=1500)
    job = start(cluster, folder)
    for restarts in ("0", "1"):
        before = rows(folder)
        wait(lambda before=before: rows(folder) >= before + 25, within_s=LONG_S)
        assert cluster.job(job)["Restarts"] == restarts
        os.kill(processes(folder, "-m trainers ")[0], signal.SIGKILL)
        wait(lambda: cluster.job(job)["JobState"] != "RUNNING", within_s=LONG_S)
    ended = cluster.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "5:0", "1")


@pytest.mark.parametrize(
    ("arguments", "state"), [((), "CANCELLED"), (("--batch", "--signal=INT"), "FAILED")]
)
def test_a_cancelled_job_saves_and_does_not_come_back(cluster, exported, arguments, state):
    """Neither by scancel alone, nor with the signal that asks for a checkpoint first."""
    folder = exported(steps=1500)
    job = start(cluster, folder)
    wait(lambda: rows(folder) >= 25, within_s=LONG_S)
    cluster.call("scancel", *arguments, job)
    ended = cluster.ended(job)
    assert (ended["JobState"], ended["Restarts"]) == (state, "0")
    assert any((folder / "runs" / "shop").glob("stages/sft/checkpoints/*"))
    assert json.loads((folder / "runs/shop/run.json").read_text())["status"] == "stopped"


def test_the_same_job_submitted_twice_trains_once(cluster, exported):
    """The second waits for the first, and finds the run finished."""
    folder = exported(steps=20)
    first, second = start(cluster, folder), start(cluster, folder)
    wait(lambda: cluster.job(first)["JobState"] == "RUNNING")
    assert cluster.job(second)["JobState"] == "PENDING"
    assert cluster.job(second)["Reason"] == "Dependency"
    assert [cluster.ended(job)["JobState"] for job in (first, second)] == ["COMPLETED"] * 2
    assert "is finished" in (folder / f"{cluster.job(second)['JobName']}-{second}.out").read_text()


def test_tasks_train_as_an_array(cluster, exported):
    """Each in its own run folder, side by side; a stop reaches the one task that is meant."""
    folder = exported(data=TWO_TASKS)
    job = start(cluster, folder)
    wait(lambda: rows(folder, "shop-hr") >= 25 and rows(folder, "shop-legal") >= 1, within_s=LONG_S)
    cluster.call("scancel", "--batch", "--signal=TERM", f"{job}_1")
    ended = [cluster.ended(f"{job}_{number}", within_s=LONG_S) for number in (0, 1)]
    assert [one["JobState"] for one in ended] == ["COMPLETED"] * 2
    assert [one["Restarts"] for one in ended] == ["0", "1"]
    for task in ("legal", "hr"):
        record = json.loads((folder / f"runs/shop-{task}/run.json").read_text())
        assert [stage["task"] for stage in record["stages"] if stage["status"] == "done"] == [task]


def test_two_machines_train_one_run_and_resume_it(cluster, exported):
    """`advise run` starts on each by srun; one that is killed takes the job into the queue again."""
    folder = exported(steps=150, launch="{device: cpu, processes: 1, nodes: 2, strategy: ddp}")
    # The names of these machines are no addresses; those of a cluster's are.
    job = cluster.submit(folder, "--no-judge", MASTER_ADDR="127.0.0.1")
    wait(lambda: rows(folder) >= 25, within_s=LONG_S)
    both = processes(folder, ADVISE_RUN)
    assert len(both) == 2
    os.kill(both[-1], signal.SIGKILL)
    ended = cluster.ended(job, within_s=LONG_S)
    assert (ended["JobState"], ended["Restarts"], ended["NumNodes"]) == ("COMPLETED", "1", "2")
    record = json.loads((folder / "runs/shop/run.json").read_text())
    assert (record["status"], record["stages"][0]["launch"]["nodes"]) == ("done", 2)


@pytest.mark.parametrize("gpu_type", [None, "h100", "a100"])
def test_slurm_takes_the_lines_that_ask_for_gpus(cluster, tmp_path, gpu_type):
    """And refuses a GPU that it does not have before anything is queued."""
    launch = "{device: cuda, processes: 2, nodes: 2, strategy: fsdp}"
    plan = plan_in(tmp_path, "Qwen/Qwen3-8B", steps=9, launch=launch)
    script = slurm_job(plan_needs(read_plan(plan), plan), gpu_type).files["job.sbatch"]
    cores = f"--cpus-per-task={min(8, os.cpu_count() or 1)}"
    (tmp_path / "job.sbatch").write_text(script.replace("--cpus-per-task=8", cores))
    found = subprocess.run(
        ["sbatch", "--test-only", "job.sbatch"], cwd=tmp_path, env=cluster.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if gpu_type == "a100":
        assert "Requested node configuration is not available" in found.stderr
    else:
        assert found.returncode == 0, found.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("data", [ONE, TWO_TASKS])
def test_a_shells_linter_finds_nothing(exported, data):
    folder = exported(data=data)
    found = subprocess.run(
        ["shellcheck", folder / "job.sbatch", folder / "run.sh"], check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout


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


class Cluster:
    """The daemons, and the commands that ask them."""

    nodes = ("n1", "n2")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

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
        """What a command prints, with `more` in its environment; raises if it fails."""
        try:
            return subprocess.run(
                command, env=self.environment | more, cwd=cwd, capture_output=True, text=True,
                timeout=60, check=True,
            ).stdout  # fmt: skip
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise

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
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
