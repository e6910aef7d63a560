"""A plan as a job of Slurm or a task of SkyPilot: what it asks for, and when it is started again."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from advisor.extras.jobs.needs import plan_needs
from advisor.extras.jobs.skypilot import gpu_of, skypilot_accelerators, skypilot_job
from advisor.extras.jobs.slurm import slurm_job
from advisor.ground.errors import InputError
from advisor.launch.folder import RunFolder
from advisor.plan.read import read_plan
from advisor.probe.catalogue import load_catalogue
from tests.extras.conftest import write_program
from tests.extras.jobs.project import DATA, TASKS, TWO_MACHINES, write_project


def job_of(folder, **plan):
    """The job of a plan."""
    path = write_project(folder, **plan)
    return slurm_job(plan_needs(read_plan(path), path))


def script_of(folder, **plan):
    """The text of the job of a plan."""
    return job_of(folder, **plan).files["job.sbatch"]


def options(script):
    """Option -> value of the lines that sbatch reads."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, flags=re.MULTILINE)
    assert len(found) == script.count("#SBATCH --")
    return dict(found)


def test_a_job_asks_for_the_machines_of_the_plan_and_for_the_time_of_the_estimate(tmp_path):
    """The limit is the upper end of the estimate and the set-up; nothing of the site is invented."""
    path = write_project(tmp_path, launch=TWO_MACHINES)
    needs = plan_needs(read_plan(path), path)
    job = slurm_job(needs)
    script = job.files["job.sbatch"]
    asked = options(script)
    assert asked.items() >= {
        "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "open-mode": "append",
        "requeue": "", "cpus-per-task": "32",
    }.items()  # fmt: skip
    days, *clock = map(int, asked["time"].replace("-", ":").split(":"))
    limit_s = days * 86400 + sum(one * unit for one, unit in zip(clock, (3600, 60, 1), strict=True))
    assert needs.high_s + 1800 <= limit_s < needs.high_s + 1800 + 900
    assert job.facts["time_limit_s"] == limit_s
    assert max(needs.stop_s, 120) <= int(asked["signal"].removeprefix("B:TERM@")) < limit_s
    assert not {"partition", "account", "gres", "mail-user", "mem", "array"} & set(asked)
    assert re.search(
        r"16 x H100 SXM5 80GB at \$[\d.]+/h *\(\w+, 20\d\d-\d\d-\d\d\)",
        re.sub(r"\n# *", " ", script),
    )
    assert "--partition, or SBATCH_PARTITION" in script
    assert any("--account, or" in line for line in job.about)


def test_a_plan_for_the_processor_asks_for_cores_and_memory(tmp_path):
    """There is no GPU in it, and no price."""
    plan = {"model": "base", "launch": "{device: cpu}"}
    job = job_of(tmp_path, **plan)
    asked = options(job.files["job.sbatch"])
    assert not any("gpu" in key for key in asked)
    assert int(asked["mem"].removesuffix("M")) > 2048
    assert "no price: it trains on the processor" in " ".join(job.about)
    rented = sky_file(tmp_path, **plan)["resources"]
    assert "accelerators" not in rented
    assert all(rented[name].endswith("+") for name in ("cpus", "memory"))


def test_a_time_that_nobody_knows_is_said_and_not_invented(tmp_path):
    """The partition's own limit holds then."""
    path = write_project(tmp_path)
    (tmp_path / DATA).write_text('{"question": "What is 1?", "answer": "One."}\n' * 80)
    job = slurm_job(plan_needs(read_plan(path), path))
    assert "time" not in options(job.files["job.sbatch"])
    assert "time" in job.facts["not_known"]
    about = " ".join(line.strip() for line in job.about)
    assert re.search("Time: not known.*the data cannot be read", about)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ("{device: cuda, processes: 2, strategy: zero2}", r"launch\.strategy is zero2"),
        ("{device: cuda, processes: 2, strategy: zero3}", r"launch\.strategy is zero3"),
        ("{device: mps}", "for an Apple GPU"),
    ],
)
def test_a_plan_that_no_run_starts_is_refused_with_the_words_of_the_run(tmp_path, launch, said):
    """Nothing is written then. No scheduler has an Apple GPU."""
    with pytest.raises(InputError, match=said):
        script_of(tmp_path, launch=launch)


def test_the_command_writes_a_bundle_with_its_job(tmp_path, call):
    """--json says what was written and what is not known; the screen has the four commands."""
    write_project(tmp_path, launch=TWO_MACHINES)
    code, out, err = call("export", "plan.yaml", "--to", "slurm", "--json")
    assert code == 0, err
    document, folder = json.loads(out), tmp_path / "shop-slurm"
    assert document["written"] == [str(folder), f"{folder}.tar.gz"]
    assert document["job"]["not_known"][:2] == ["partition", "account"]
    assert {"job.sbatch", "run.sh", "plan.yaml"} <= {path.name for path in folder.iterdir()}
    assert "  sbatch job.sbatch" in err
    assert "tar xzf shop-slurm.tar.gz && cd shop-slurm" in err
    assert max(map(len, err.splitlines())) <= 80
    for name in ("job.sbatch", "run.sh"):
        subprocess.run(["bash", "-n", folder / name], check=True)


class Cluster:
    """A folder with a job, and stand-ins for the commands of Slurm that write down their calls."""

    def __init__(self, folder, script):
        self.folder, self.bin = folder / "it's here", folder / "bin"
        for place in (self.folder, self.bin):
            place.mkdir(parents=True)
        for name, text in (
            ("job.sbatch", script), ("plan.yaml", ""), ("run.sh", '[ "$*" = --set-up ]\n'),
        ):  # fmt: skip
            (self.folder / name).write_text(text)
        for name, text in {
            "srun": 'printf "%s\\n" "$@" >srun.log; eval "${STEP:-}"; exit "$CODE"',
            "squeue": 'echo "${STATE:-RUNNING}"',
            "scontrol": 'echo "$*" >>scontrol.log',
            "scancel": 'echo "$*" >>scancel.log; kill "$(cat step.pid)"',
            "sleep": "exit 0",
        }.items():
            write_program(self.bin / name, text)

    def submit(self, code, *arguments, array=None, **environment):
        """The job run once, where the training ends with a code."""
        numbers = {} if array is None else {
            "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(array),
        }  # fmt: skip
        return subprocess.run(
            ["bash", "job.sbatch", *arguments], cwd=self.folder, capture_output=True, text=True,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "14", "SLURM_SUBMIT_DIR": str(self.folder),
                "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "4",
                "CODE": str(code), **numbers, **environment,
            },
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
    return script_of(tmp_path_factory.mktemp("project"))


@pytest.fixture
def cluster(tmp_path, script):
    return Cluster(tmp_path, script)


FURTHER = {"STEP": "mkdir -p runs/shop; echo row >>runs/shop/metrics.jsonl"}
CANCELLED = {"STATE": "COMPLETING", "SLURM_JOB_END_TIME": "4000000000"}


@pytest.mark.parametrize(
    ("submits", "queued"),
    [  # codes of the training, each with its environment, and how often the job is queued again
        # Done, bad input, nothing fits, machine not ready, too much lost, a bug.
        *[([(code, {})], 0) for code in (0, 2, 3, 4, 6, 70)],
        # Stopped: three starts in a row without a further line of metrics.jsonl end it.
        *[([(code, FURTHER)] * 4 + [(code, {})] * 3, 6) for code in (130, 75, 137, 143)],
        # A second failure is final, also with a stop between them.
        ([(5, {}), (130, {}), (5, {})], 2),
        # Slurm says of a cancelled job that it is completing; so it does of one whose machine or time
        # was lost.
        ([(130, CANCELLED)], 0),
        ([(130, CANCELLED | {"SLURM_JOB_END_TIME": "1"})], 1),
    ],
)  # fmt: skip
def test_what_gets_further_is_queued_again(cluster, submits, queued):
    """What would only fail again is not; the job's code is that of the training."""
    for code, more in submits:
        assert cluster.submit(code, **more).returncode == code
    assert cluster.log("scontrol") == ["requeue 14"] * queued


@pytest.mark.parametrize(("name", "queued"), [("TERM", ["requeue 12_1"]), ("INT", [])])
def test_tasks_are_an_array_and_a_signal_to_one_reaches_its_training(tmp_path, name, queued):
    """Each number trains one task; TERM means a time limit, INT a person, and its code is kept."""
    script = script_of(tmp_path / "project", data=TASKS)
    asked = options(script)
    assert (asked["array"], asked["output"]) == ("0-1", "%x-%A_%a.out")
    cluster = Cluster(tmp_path, script)
    step = (
        "trap 'kill $!; exit 130' TERM; echo $$ >step.pid; /bin/sleep 20 & "
        f"kill -{name} $PPID; wait"
    )
    assert cluster.submit(0, array=1, STEP=step).returncode == 130
    assert cluster.trained() == ["plan.yaml", "--output", "runs/shop-hr", "--only", "hr"]
    assert (cluster.log("scancel"), cluster.log("scontrol")) == (["--signal=TERM 12_1"], queued)
    assert cluster.submit(0, array=1).returncode == 0


def test_a_run_that_another_process_still_holds_is_tried_again_later(cluster):
    """A machine that Slurm has lost may still train. Nothing is started beside it."""
    run = cluster.folder / "runs" / "shop"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    write_program(cluster.bin / "flock", "exit 1")
    assert ([cluster.submit(0).returncode for _ in range(3)], cluster.log("srun")) == ([75] * 3, [])
    assert cluster.log("scontrol") == ["requeue 14"] * 2


def test_a_run_that_is_just_ending_is_waited_for(cluster):
    """By the lock that `advise run` holds on its folder."""
    run = cluster.folder / "runs" / "shop"
    run.mkdir(parents=True)
    with RunFolder(run):
        locks = [
            int(one.name) for one in Path("/proc/self/fd").iterdir()
            if os.path.exists(one) and Path(os.readlink(one)) == run / ".lock"
        ]  # fmt: skip
        waits = "while ! [ -f released ]; do /bin/sleep 0.05; done"
        holder = subprocess.Popen(["bash", "-c", waits], cwd=run, pass_fds=locks)
        threading.Timer(0.5, lambda: (run / "released").touch()).start()
    assert cluster.submit(0, STEP="ls runs/shop >seen").returncode == 0
    holder.wait()
    assert "released" in (cluster.folder / "seen").read_text()


def test_a_trial_has_a_run_folder_of_its_own(cluster, tmp_path):
    """Options reach `advise run` as they are; a job from another folder is bad input, once."""
    more = ["--max-steps", "3", "--set", 'stages.0.data=it\'s a "file".jsonl']
    assert cluster.submit(0, *more).returncode == 0
    assert cluster.trained() == ["plan.yaml", "--output", "runs/shop-trial", *more]
    found = cluster.submit(0, SLURM_SUBMIT_DIR=str(tmp_path))
    assert (found.returncode, "cd FOLDER && sbatch job.sbatch" in found.stderr) == (2, True)


# An environment that holds skypilot: its packages do not go with those of the trainers.
SKY_PYTHON = os.environ.get("ADVISE_SKYPILOT_PYTHON", "")


def task_of_sky(folder, name=None, **plan):
    """The task of a plan."""
    path = write_project(folder, **plan)
    return skypilot_job(plan_needs(read_plan(path), path, gpu=gpu_of(name) if name else None), name)


def sky_file(folder, **plan):
    """The task as its file says."""
    return yaml.safe_load(task_of_sky(folder, **plan).files["sky.yaml"])


def test_one_machine_keeps_its_run_in_a_bucket(tmp_path):
    """Any of SkyPilot's names of the GPU will do; 75 is the code that is started again."""
    task = sky_file(tmp_path, launch="{device: cuda, processes: 4}")
    assert (task["num_nodes"], task["setup"]) == (1, "bash run.sh --set-up")
    assert task["resources"]["accelerators"] == {"H100": 4, "H100-SXM": 4}
    again = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert task["resources"]["job_recovery"] == again
    assert task["file_mounts"]["/runs"] == {"name": "${RUNS_BUCKET}", "mode": "MOUNT_CACHED"}
    assert task["envs"]["RUNS_BUCKET"].startswith("shop-")
    assert "volumes" not in task


def test_tasks_are_launched_one_by_one(tmp_path):
    """Each is a job of its own, with a run folder of its own; so is a trial: --env MAX_STEPS=10."""
    job = task_of_sky(tmp_path, data=TASKS)
    (line,) = job.commands
    write_program(tmp_path / "sky", 'printf "%s|" "$@" >>"$LOG"; echo >>"$LOG"')
    log, path = tmp_path / "log", f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], env={"PATH": path, "LOG": str(log)}, check=True)
    assert log.read_text().splitlines() == [
        f"jobs|launch|-d|-y|-n|shop-{name}|--env|TASK={name}|sky.yaml|" for name in ("legal", "hr")
    ]
    machine = Machine(tmp_path / "machine", job.files["sky.yaml"])
    for environment, said in (
        ({"TASK": "hr"}, "plan.yaml --output RUNS/shop-hr --only hr"),
        ({"TASK": "hr", "MAX_STEPS": "10"},
         "plan.yaml --output RUNS/shop-hr-trial --only hr --max-steps 10"),
    ):  # fmt: skip
        assert machine.start([0], **environment).calls[0].endswith(said)


def test_every_name_stands_for_gpus_of_the_catalogue(tmp_path):
    """The list holds no GPU that rules/hardware/ does not have; one that is named is estimated."""
    named = [gpu for ids in skypilot_accelerators().values() for gpu in ids]
    assert len(named) > 50
    assert set(named) <= set(load_catalogue())
    job = task_of_sky(tmp_path, "L40S")
    assert job.facts["accelerators"] == {"L40S": 1}
    assert "1 x L40S at $" in " ".join(" ".join(job.about).split())


def test_what_cannot_be_rented_is_refused_with_the_way_out(tmp_path):
    """Other vendors' GPUs, and several machines, as a bucket does not show them writes at once."""
    with pytest.raises(InputError, match=r"launch\.device is cuda"):
        task_of_sky(tmp_path, "MI300X")
    with pytest.raises(InputError, match=r"launch\.nodes: .*all of them write to") as refused:
        task_of_sky(tmp_path, launch=TWO_MACHINES)
    assert "--to slurm" in refused.value.faults[0].hint


@pytest.mark.parametrize(
    ("gpu", "form", "expected", "said"),
    [
        ("H100 SXM", "skypilot:H10", 2, "did you mean 'H100'?"),
        ("H100 SXM", "skypilot:rtx3090", 0, "  sky jobs launch sky.yaml"),
        ("RTX 3080", "skypilot", 2, r"has no RTX 3080\n.*known: .*H100"),
    ],
)
def test_a_gpu_without_a_name_is_an_error_that_names_the_known_ones(
    tmp_path, call, gpu, form, expected, said
):
    """So is a name that SkyPilot does not have."""
    path = write_project(tmp_path)
    path.write_text(path.read_text().replace("H100 SXM", gpu))
    code, _, error = call("export", path, "--to", form, "--out", tmp_path / "made")
    assert code == expected
    assert re.search(said, error)
    assert (tmp_path / "made" / ".skyignore").is_file() == (expected == 0)


class Machine:
    """The `run` of a task in a folder, where the training ends with the codes that it is given."""

    def __init__(self, folder, text):
        self.folder = folder
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / "RUNS").mkdir()
        write_program(
            folder / ".venv" / "bin" / "python",
            'echo "$*" >>calls.log\n[ -z "${STEP:-}" ] || eval "$STEP"\n'
            "code=$(head -n 1 codes)\nsed -i 1d codes\nexit $code",
        )
        self.script = yaml.safe_load(text)["run"].replace("/runs/", "RUNS/")

    def start(self, codes, **environment):
        """The same job, from its start."""
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        (self.folder / "calls.log").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", self.script], cwd=self.folder, check=False, capture_output=True,
            env={"PATH": os.environ["PATH"], "SKYPILOT_TASK_ID": "sky-managed-1", **environment},
        )  # fmt: skip
        self.code = done.returncode
        self.calls = (self.folder / "calls.log").read_text().splitlines()
        return self


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "machine", task_of_sky(tmp_path / "project").files["sky.yaml"])


FURTHER_IN_BUCKET = {"STEP": "mkdir -p RUNS/shop; echo row >>RUNS/shop/metrics.jsonl"}


@pytest.mark.parametrize(
    "starts",
    [  # starts of the job: codes of its trainings, the environment, and the code that it keeps
        # SkyPilot starts a job again for 75 alone.
        *[[([code], {}, code)] for code in (0, 2, 3, 4, 6, 70)],
        # Three starts in a row without a further step end it with the code of the training.
        *[[*[([code], FURTHER_IN_BUCKET, 75)] * 3, *[([code], {}, 75)] * 2, ([code], {}, code)]
          for code in (130, 75, 137, 143)],
        # A failed training is tried once more, also where another machine goes on with it.
        [([5, 0], {}, 0), ([5], {}, 5)],
    ],
)  # fmt: skip
def test_what_gets_further_asks_to_be_started_again(machine, starts):
    """What would only fail again keeps its code."""
    for codes, more, kept in starts:
        machine.start(codes, **more)
        assert (machine.code, len(machine.calls)) == (kept, len(codes))


@pytest.mark.long
@pytest.mark.skipif(not SKY_PYTHON, reason="ADVISE_SKYPILOT_PYTHON names no Python with skypilot")
@pytest.mark.parametrize(
    ("launch", "data", "name"),
    [
        ("{device: cuda, processes: 4}", None, None),
        ("{device: cuda}", TASKS, "A100-80GB"),
        ("{device: cpu}", None, None),
    ],
)
def test_skypilot_reads_the_file(tmp_path, launch, data, name):
    """sky.Task.from_yaml finds no fault, and reads what was meant; so does a shell's linter."""
    job = task_of_sky(tmp_path, name, launch=launch, data=data)
    for file, text in job.files.items():
        (tmp_path / file).write_text(text)
    code = (
        "import sky; t = sky.Task.from_yaml('sky.yaml');"
        " print(t.num_nodes, [(r.accelerators, r.job_recovery['recover_on_exit_codes'])"
        " for r in t.resources])"
    )
    found = subprocess.run(
        [SKY_PYTHON, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("1 [")
    accelerators = job.facts["accelerators"]
    assert found.stdout.count("[75]") == max(1, len(accelerators))
    for one, count in accelerators.items():
        assert f"{{'{one}': {count}}}" in found.stdout
    if shutil.which("shellcheck"):
        script = tmp_path / "run"
        script.write_text("#!/bin/bash\n" + yaml.safe_load(job.files["sky.yaml"])["run"])
        subprocess.run(["shellcheck", script], check=True, stdout=sys.stderr)
