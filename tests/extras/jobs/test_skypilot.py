"""A plan as a task of SkyPilot: what it rents, where the run is kept, and what is started again."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from advisor.extras.jobs.needs import plan_needs
from advisor.extras.jobs.skypilot import gpu_of, skypilot_accelerators, skypilot_job
from advisor.ground.errors import InputError
from advisor.plan.read import read_plan
from advisor.probe.catalogue import load_catalogue
from tests.extras.jobs.project import TASKS, TWO_MACHINES, write_program, write_project

# An environment that holds skypilot: its packages do not go with those of the trainers.
SKY_PYTHON = os.environ.get("ADVISE_SKYPILOT_PYTHON", "")


def job_of(folder, name=None, **plan):
    """The task of a plan."""
    path = write_project(folder, **plan)
    return skypilot_job(plan_needs(read_plan(path), path, gpu=gpu_of(name) if name else None), name)


def task_of(folder, **plan):
    """The task as its file says."""
    return yaml.safe_load(job_of(folder, **plan).files["sky.yaml"])


def test_one_machine_keeps_its_run_in_a_bucket(tmp_path):
    """Any of SkyPilot's names of the GPU will do; 75 is the code that is started again."""
    task = task_of(tmp_path, launch="{device: cuda, processes: 4}")
    assert (task["num_nodes"], task["setup"]) == (1, "bash run.sh --set-up")
    assert task["resources"]["accelerators"] == {"H100": 4, "H100-SXM": 4}
    again = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert task["resources"]["job_recovery"] == again
    assert task["file_mounts"]["/runs"] == {"name": "${RUNS_BUCKET}", "mode": "MOUNT_CACHED"}
    assert task["envs"]["RUNS_BUCKET"].startswith("shop-")
    assert "volumes" not in task


def test_tasks_are_launched_one_by_one(tmp_path):
    """Each is a job of its own, with a run folder of its own."""
    job = job_of(tmp_path, data=TASKS)
    (line,) = job.commands
    write_program(tmp_path / "sky", 'printf "%s|" "$@" >>"$LOG"; echo >>"$LOG"')
    log = tmp_path / "log"
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], env={"PATH": path, "LOG": str(log)}, check=True)
    assert log.read_text().splitlines() == [
        f"jobs|launch|-d|-y|-n|shop-{name}|--env|TASK={name}|sky.yaml|" for name in ("legal", "hr")
    ]
    trained = Machine(tmp_path / "machine", job.files["sky.yaml"]).start([0], TASK="hr")
    assert trained.calls[0].endswith("plan.yaml --output RUNS/shop-hr --only hr")


def test_a_plan_for_the_processor_rents_cores_and_memory(tmp_path):
    """No accelerator is asked for."""
    resources = task_of(tmp_path, model="base", launch="{device: cpu}")["resources"]
    assert "accelerators" not in resources
    assert all(resources[name].endswith("+") for name in ("cpus", "memory"))


def test_every_name_stands_for_gpus_of_the_catalogue(tmp_path):
    """The list holds no GPU that rules/hardware/ does not have; one that is named is estimated."""
    named = [gpu for ids in skypilot_accelerators().values() for gpu in ids]
    assert len(named) > 50
    assert set(named) <= set(load_catalogue())
    job = job_of(tmp_path, "L40S")
    assert job.facts["accelerators"] == {"L40S": 1}
    assert "1 x L40S at $" in " ".join(job.about)


def test_what_cannot_be_rented_is_refused_with_the_way_out(tmp_path):
    """A GPU of another vendor; and several machines, as a bucket does not show to one at once what
    another has written.
    """
    with pytest.raises(InputError, match=r"launch\.device is cuda"):
        job_of(tmp_path, "MI300X")
    with pytest.raises(InputError, match=r"launch\.nodes: .*all of them write to") as refused:
        job_of(tmp_path, launch=TWO_MACHINES)
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
    return Machine(tmp_path / "machine", job_of(tmp_path / "project").files["sky.yaml"])


FURTHER = {"STEP": "mkdir -p RUNS/shop; echo row >>RUNS/shop/metrics.jsonl"}
STARTS = [  # starts of the job: codes of its trainings, the environment, and the code that it keeps
    # SkyPilot starts a job again for 75 alone.
    *[[([code], {}, code)] for code in (0, 2, 3, 4, 6, 70)],
    # Three starts in a row without a further step end it with the code of the training.
    *[[*[([code], FURTHER, 75)] * 3, *[([code], {}, 75)] * 2, ([code], {}, code)]
      for code in (130, 75, 137, 143)],
    # A failed training is tried once more, also where another machine goes on with it.
    [([5, 0], {}, 0), ([5], {}, 5)],
]  # fmt: skip


@pytest.mark.parametrize("starts", STARTS)
def test_what_gets_further_asks_to_be_started_again(machine, starts):
    """What would only fail again keeps its code."""
    for codes, more, kept in starts:
        machine.start(codes, **more)
        assert (machine.code, len(machine.calls)) == (kept, len(codes))


def test_a_trial_has_a_run_folder_of_its_own(machine):
    """--env MAX_STEPS=10."""
    machine.start([0], MAX_STEPS="10")
    assert machine.calls[0].endswith("--output RUNS/shop-trial --max-steps 10")


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
    job = job_of(tmp_path, name, launch=launch, data=data)
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
