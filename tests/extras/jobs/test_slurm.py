"""A plan as a job of Slurm: what it asks for, and when it is queued again."""

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from advisor.commands.export import export
from advisor.extras.jobs.needs import plan_needs
from advisor.extras.jobs.slurm import slurm_job
from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE
from advisor.launch.folder import RunFolder
from advisor.plan.read import read_plan
from tests.extras.jobs.project import DATA, TASKS, write_project

TWO_MACHINES = "{device: cuda, processes: 8, nodes: 2, strategy: fsdp}"


def job_of(plan):
    """The job of a plan file."""
    return slurm_job(plan_needs(read_plan(plan), plan))


def options(script):
    """Option -> value of the lines that sbatch reads."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, flags=re.MULTILINE)
    assert len(found) == script.count("#SBATCH --")
    return dict(found)


def test_a_job_asks_for_the_machines_of_the_plan_and_for_the_time_of_the_estimate(tmp_path):
    """The limit is the upper end of the estimate and the set-up; nothing of the site is invented."""
    job = job_of(write_project(tmp_path, launch=TWO_MACHINES))
    script = job.files["job.sbatch"]
    asked = options(script)
    assert {key: asked[key] for key in ("nodes", "ntasks-per-node", "gpus-per-node")} == {
        "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8",
    }  # fmt: skip
    needs = plan_needs(read_plan(tmp_path / PLAN_FILE), tmp_path / PLAN_FILE)
    high_s = needs.high_s
    days, clock = asked["time"].split("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    limit_s = int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    assert high_s + 1800 <= limit_s < high_s + 1800 + 900
    assert job.facts["time_limit_s"] == limit_s
    grace_s = int(asked["signal"].removeprefix("B:TERM@"))
    assert max(needs.stop_s, 120) <= grace_s < limit_s
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    assert not {"partition", "account", "gres", "mail-user", "mem", "array"} & set(asked)
    assert re.search(r"16 x H100 SXM5 80GB at \$[\d.]+/h\n?#? *\(\w+, 20\d\d-\d\d-\d\d\)", script)
    assert "sbatch --partition=NAME job.sbatch" in script
    assert any("--account=NAME" in line for line in job.about)


def test_a_plan_for_the_processor_asks_for_cores_and_memory(tmp_path):
    """There is no GPU in it, and no price."""
    job = job_of(write_project(tmp_path, model="base", launch="{device: cpu}"))
    asked = options(job.files["job.sbatch"])
    assert not any("gpu" in key for key in asked)
    assert int(asked["mem"].removesuffix("M")) > 2048
    assert "no price: it trains on the processor" in " ".join(job.about)


def test_a_time_that_nobody_knows_is_said_and_not_invented(tmp_path):
    """The partition's own limit holds then."""
    path = write_project(tmp_path)
    (tmp_path / DATA).write_text('{"question": "What is 1?", "answer": "One."}\n' * 80)
    job = job_of(path)
    assert "time" not in options(job.files["job.sbatch"])
    about = " ".join(line.strip() for line in job.about)
    assert "Time: not known" in about
    assert "the data cannot be read" in about
    assert "time" in job.facts["not_known"]


def test_tasks_are_an_array_with_a_run_folder_each(tmp_path):
    """Each number of the array trains one task by its name."""
    path = write_project(tmp_path, data=TASKS)
    script = job_of(path).files["job.sbatch"]
    assert options(script)["array"] == "0-1"
    assert options(script)["output"] == "%x-%A_%a.out"
    cluster = Cluster(tmp_path / "cluster", script)
    assert cluster.submit(0, array=1).returncode == 0
    assert cluster.trained() == ["plan.yaml", "--output", "runs/shop-hr", "--only", "hr"]


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_plan_that_no_run_starts_is_refused_with_the_words_of_the_run(tmp_path, strategy):
    """Nothing is written then."""
    path = write_project(tmp_path, launch=f"{{device: cuda, processes: 2, strategy: {strategy}}}")
    with pytest.raises(InputError, match=f"launch.strategy is {strategy}"):
        job_of(path)


def test_a_plan_for_an_apple_gpu_is_refused(tmp_path):
    """No scheduler has one."""
    with pytest.raises(InputError, match="for an Apple GPU"):
        job_of(write_project(tmp_path, launch="{device: mps}"))


def test_the_command_writes_a_bundle_with_its_job(tmp_path, monkeypatch):
    """--json says what was written and what is not known; the screen has the four commands."""
    write_project(tmp_path, launch=TWO_MACHINES)
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(export, ["plan.yaml", "--to", "slurm", "--json"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    folder = tmp_path / "shop-slurm"
    assert document["written"] == [str(folder), f"{folder}.tar.gz"]
    assert document["job"]["not_known"][:2] == ["partition", "account"]
    assert {"job.sbatch", "run.sh", "plan.yaml"} <= {path.name for path in folder.iterdir()}
    assert "  sbatch job.sbatch" in found.stderr
    assert "tar xzf shop-slurm.tar.gz && cd shop-slurm" in found.stderr
    assert all(len(line) <= 80 for line in found.stderr.splitlines())
    for name in ("job.sbatch", "run.sh"):
        subprocess.run(["bash", "-n", folder / name], check=True)


class Cluster:
    """A folder with a job, and stand-ins for the commands of Slurm that write down their calls."""

    def __init__(self, folder, script):
        self.folder, self.bin = folder / "it's here", folder / "bin"
        self.folder.mkdir(parents=True)
        self.bin.mkdir()
        (self.folder / "job.sbatch").write_text(script)
        (self.folder / "plan.yaml").touch()
        (self.folder / "run.sh").write_text('[ "$*" = --set-up ]\n')
        self.command("srun", 'printf "%s\\n" "$@" >srun.log; eval "${STEP:-}"; exit "$CODE"')
        self.command("squeue", 'echo "${STATE:-RUNNING}"')
        self.command("scontrol", 'echo "$*" >>scontrol.log')
        self.command("scancel", 'echo "$*" >>scancel.log; kill "$(cat step.pid)"')
        self.command("sleep", "exit 0")

    def command(self, name, text):
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def submit(self, code, *arguments, array=None, **environment):
        """The job run once, where the training ends with a code."""
        numbers = {} if array is None else {
            "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(array),
        }  # fmt: skip
        return subprocess.run(
            ["bash", "job.sbatch", *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "14", "SLURM_SUBMIT_DIR": str(self.folder),
                "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "4",
                "CODE": str(code), **numbers, **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip

    def log(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def trained(self):
        """The arguments of `advise run`."""
        step = self.log("srun")
        return step[step.index("run") + 1 :]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return job_of(write_project(tmp_path_factory.mktemp("project"))).files["job.sbatch"]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 6, 70])
def test_what_would_only_fail_again_is_not_queued_again(tmp_path, script, code):
    """Done, bad input, nothing fits, machine not ready, too much lost, a bug."""
    cluster = Cluster(tmp_path, script)
    assert cluster.submit(code).returncode == code
    assert cluster.log("scontrol") == []


@pytest.mark.parametrize("code", [130, 75, 137, 143])
def test_what_was_stopped_is_queued_again_while_it_gets_further(tmp_path, script, code):
    """Three starts in a row without a further line of metrics.jsonl end it."""
    cluster = Cluster(tmp_path, script)
    for _ in range(4):
        step = "mkdir -p runs/shop; echo row >>runs/shop/metrics.jsonl"
        assert cluster.submit(code, STEP=step).returncode == code
    assert cluster.log("scontrol") == ["requeue 14"] * 4
    assert [cluster.submit(code).returncode for _ in range(3)] == [code] * 3
    assert cluster.log("scontrol") == ["requeue 14"] * 6


def test_a_failed_training_is_queued_again_once(tmp_path, script):
    """A second failure is final, also with a stop between them."""
    cluster = Cluster(tmp_path, script)
    for code in (5, 130, 5):
        assert cluster.submit(code).returncode == code
    assert cluster.log("scontrol") == ["requeue 14"] * 2


def test_a_cancelled_job_does_not_come_back(tmp_path, script):
    """Slurm says of it that it is completing; so it does of one that lost its machine, which it
    queues again without being asked.
    """
    cluster = Cluster(tmp_path, script)
    ends = {"SLURM_JOB_END_TIME": "4000000000"}
    assert cluster.submit(130, STATE="COMPLETING", **ends).returncode == 130
    assert cluster.log("scontrol") == []
    assert cluster.submit(130, STATE="COMPLETING", SLURM_JOB_END_TIME="1").returncode == 130
    assert cluster.log("scontrol") == ["requeue 14"]  # its time was up


@pytest.mark.parametrize(("name", "queued"), [("TERM", ["requeue 12_1"]), ("INT", [])])
def test_a_signal_to_the_job_reaches_the_training_and_its_code_counts(tmp_path, name, queued):
    """TERM comes before the time limit; INT is a person who wants it saved and ended. An array's
    task is called by its own number.
    """
    plan = write_project(tmp_path / "project", data=TASKS)
    cluster = Cluster(tmp_path, job_of(plan).files["job.sbatch"])
    step = (
        "trap 'kill $!; exit 130' TERM; echo $$ >step.pid; /bin/sleep 20 & "
        f"kill -{name} $PPID; wait"
    )
    assert cluster.submit(0, array=1, STEP=step).returncode == 130
    assert cluster.log("scancel") == ["--signal=TERM 12_1"]
    assert cluster.log("scontrol") == queued


def test_a_run_that_another_process_still_holds_is_tried_again_later(tmp_path, script):
    """A machine that Slurm has lost may still train. Nothing is started beside it."""
    cluster = Cluster(tmp_path, script)
    (cluster.folder / "runs" / "shop").mkdir(parents=True)
    (cluster.folder / "runs" / "shop" / ".lock").touch()
    cluster.command("flock", "exit 1")
    assert [cluster.submit(0).returncode for _ in range(3)] == [75] * 3
    assert cluster.log("srun") == []
    assert cluster.log("scontrol") == ["requeue 14"] * 2


def test_a_run_that_is_just_ending_is_waited_for(tmp_path, script):
    """By the lock that `advise run` holds on its folder."""
    cluster = Cluster(tmp_path, script)
    run = cluster.folder / "runs" / "shop"
    run.mkdir(parents=True)
    with RunFolder(run):
        released = threading.Timer(0.5, lambda: (run / "released").touch())
        holder = subprocess.Popen(
            ["bash", "-c", "while ! [ -f released ]; do /bin/sleep 0.05; done"],
            cwd=run, pass_fds=[int(one.name) for one in open_locks(run)],
        )  # fmt: skip
        released.start()
    assert cluster.submit(0, STEP="ls runs/shop >seen").returncode == 0
    holder.wait()
    assert "released" in (cluster.folder / "seen").read_text()


def open_locks(run):
    """The numbers under which this process has the lock of a run folder open."""
    return [
        one for one in Path("/proc/self/fd").iterdir()
        if one.is_symlink() and os.path.exists(one) and Path(os.readlink(one)) == run / ".lock"
    ]  # fmt: skip


def test_a_trial_has_a_run_folder_of_its_own(tmp_path, script):
    """Options behind job.sbatch are those of `advise run`; blanks and quotes arrive as they are."""
    cluster = Cluster(tmp_path, script)
    option = 'stages.0.data=it\'s a "file".jsonl'
    assert cluster.submit(0, "--max-steps", "3", "--set", option).returncode == 0
    assert cluster.trained() == [
        "plan.yaml", "--output", "runs/shop-trial", "--max-steps", "3", "--set", option,
    ]  # fmt: skip


def test_a_job_from_another_folder_says_where_it_belongs(tmp_path, script):
    """That is bad input: it is not queued again."""
    cluster = Cluster(tmp_path, script)
    found = cluster.submit(0, SLURM_SUBMIT_DIR=str(tmp_path))
    assert found.returncode == 2
    assert "cd FOLDER && sbatch job.sbatch" in found.stderr
