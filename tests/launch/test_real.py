"""The launcher with the real trainer on a tiny model: one run, two machines, many departments."""

import shlex
import shutil
import sys
from contextlib import closing

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError, TrainingFailed
from advisor.launch import Options, run_plan
from advisor.launch.child import Ended
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.model import Launch
from advisor.plan.read import read_plan
from advisor.record.judge import folder_verdict
from advisor.render.result_commands import ask_command, serve_command
from advisor.render.run import summary_lines
from tests.distributed.cells import LIMIT, apart, left_by
from tests.launch.conftest import chat, record_of, wait_for, write_rows
from tests.launch.test_machines import Machines, codes
from tests.trainers.runs import kinds_of_files
from trainers.job.job import make_job

PLAN = """\
name: shop
model: MODEL
data: {path: train.jsonl}
stages:
  - name: sft
    objective: sft
    update: lora
    rank: 4
    learning_rate: 1e-2
    max_steps: 12
    save_steps: 2
    micro_batch_size: 2
    seq_len: 128
    holdout: 0.1
"""


@pytest.fixture
def shop(tmp_path, monkeypatch, tiny_model):
    """A folder with data and a plan for the tiny model; it is the current folder."""
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = (chat(f"Where is parcel {n}?", f"Your parcel {n} is in the red van.") for n in range(40))
    write_rows(tmp_path / "train.jsonl", rows)
    (tmp_path / "plan.yaml").write_text(PLAN.replace("MODEL", str(tiny_model)))
    return tmp_path


SUMMARY = (
    "Done: shop", "Stage sft: sft+lora, 36 rows", "loss", "Task     ", "General  ", "Next     ",
    "memory", "time", "result",
)  # fmt: skip


def test_a_real_run_from_plan_to_an_answer(shop, capfd):
    """Record and summary hold what was measured; the printed command answers."""
    done = run_plan("plan.yaml")
    stage = done.record.stages[0]
    assert (done.status, stage.steps) == ("done", 12)
    assert stage.loss_last < stage.loss_first
    assert min(stage.measured.peak_bytes, stage.expected.duration_s) > 0
    assert done.record.resolved["sft"].options["rank"] == 4
    assert "torch" in done.record.versions
    text = "\n".join(summary_lines(done))
    assert [words for words in SUMMARY if words not in text] == [], text
    assert done.record.verdict == folder_verdict(done.folder, done.record)
    assert done.record.verdict.task.status in text
    assert "vllm serve" in (command := serve_command(done.record, [stage], done.folder))
    assert "--max-lora-rank 8" in command  # the least of vLLM's that holds rank 4
    assert run_plan("plan.yaml").already_done
    assert capfd.readouterr().out == ""
    python, _, code = shlex.split(ask_command(str(done.folder / stage.folder), stage.update))
    assert shutil.which(python) == shutil.which(sys.executable)
    exec(code, {})  # not started: this process has imported the libraries
    assert capfd.readouterr().out.endswith("\n")


@pytest.mark.slow
def test_a_real_dry_run_measures_and_keeps_nothing_else(shop):
    """It prints measured beside expected memory and time, and leaves dry_run.json and the plan."""
    measured = run_plan("plan.yaml", Options(dry_run=True))
    assert sorted(path.name for path in measured.folder.iterdir()) == [
        ".lock",
        "dry_run.json",
        "plan.yaml",
    ]
    text = "\n".join(summary_lines(measured))
    told = ("Measured, not trained", "memory", "measured", "expected", "in all", "room")
    assert [words for words in told if words not in text] == [], text


@pytest.mark.slow
def test_a_plan_for_two_gpus_runs_unchanged_on_two_processes(shop):
    """On the CPU two processes hold it together, with the losses of one."""
    text = (shop / "plan.yaml").read_text().replace("max_steps: 12", "max_steps: 3")
    on_two = "launch: {device: cuda, processes: 2, strategy: fsdp}\n"
    (shop / "plan.yaml").write_text(text + on_two)
    done = run_plan("plan.yaml", Options(set_values=["launch.device=cpu"], judge=False))
    (stage,) = done.record.stages
    assert (done.status, stage.steps) == ("done", 3)
    launch = stage.launch
    assert (launch.strategy, launch.processes, launch.nodes) == ("fsdp", 2, 1)
    assert launch.sharded_tensors > 10
    assert len(launch.peak_gib_per_rank) == 2
    assert len(list(done.folder.rglob("divided/*.safetensors"))) >= 2
    assert kinds_of_files(done.folder) <= {"safetensors", "text", "arrow", "numbers"}
    # The same in this process, whose steps have as many rows.
    from trainers import sft

    plan = read_plan("plan.yaml")
    stages = (replace(plan.stages[0], grad_accum=2 * plan.stages[0].grad_accum),)
    plan = replace(plan, stages=stages, launch=Launch())
    job = make_job(plan, stage="sft", run=shop / "alone", folder=shop, judge=False)
    sft.train(job)
    assert apart(left_by(job.run), left_by(done.folder)).most <= LIMIT


ON_ONE, ON_TWO = "launch: {device: cpu, processes: 2}\n", "launch: {device: cpu, nodes: 2}\n"
REAL = {"hardware": None, "judge": False}


@pytest.fixture
def machines(shop):
    """Two machines of a plan for the tiny model, with real trainers."""
    plan = (shop / "plan.yaml").read_text()
    plan = plan.replace("max_steps: 12", "max_steps: 120").replace("steps: 2", "steps: 10")
    (shop / "one.yaml").write_text(plan + ON_ONE)
    (shop / "plan.yaml").write_text(plan + ON_TWO)
    with closing(Machines(shop, trainers=None)) as made:
        yield made


def weights(machines, folder):
    return (machines.folder / folder / "stages" / "sft" / "adapter_model.safetensors").read_bytes()


@pytest.mark.long
def test_two_machines_train_what_two_processes_of_one_do(machines):
    """Bit for bit; also if the run was stopped, or lost a machine, and was resumed."""
    alone = machines.start(0, plan="one.yaml", output="alone", environ={"NNODES": ""}, **REAL)
    assert codes(alone) == [0], machines.said(0)
    assert codes(*machines.both(**REAL)) == [0, 0]
    assert weights(machines, "out") == weights(machines, "alone")
    shutil.rmtree(machines.folder / "out")
    for victim in (1, 0):
        before = machines.checkpoints()
        both = machines.both(**REAL)
        wait_for(lambda before=before: machines.checkpoints() - before, seconds=400)
        both[victim].kill()
        assert codes(both[1 - victim]) == [75]
    assert codes(*machines.both(**REAL)) == [0, 0]
    assert weights(machines, "out") == weights(machines, "alone")


DEPARTMENTS = """\
version: 1
name: departments
model: {model}
tasks:
{tasks}
stages:
  - {{name: sft, objective: sft, update: {update}, learning_rate: 0.02, max_steps: 8, micro_batch_size: 4, seq_len: 64, holdout: 0.2}}
"""
SAID = {
    "legal": "See clause {n} of the contract.",
    "hr": "Ask for form {n}, please.",
    "sales": "That is {n} euros, today only!",
}


def write_plan(folder, model, tasks, update="lora"):
    for task in tasks:
        said = SAID[task]
        questions = ((f"What about number {n}?", said.format(n=n)) for n in range(30))
        write_rows(folder / f"{task}.jsonl", [{"question": q, "answer": a} for q, a in questions])
    lines = "\n".join(f"  - {{name: {task}, data: {{path: {task}.jsonl}}}}" for task in tasks)
    path = folder / "plan.yaml"
    path.write_text(DEPARTMENTS.format(model=model, tasks=lines, update=update))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "update", ["lora", *(pytest.param(u, marks=pytest.mark.long) for u in ("adapter", "prefix"))]
)
def test_departments_share_a_process_and_equal_trainings_of_their_own(shop, tiny_model, update):
    """The very weights, and the own task's loss is the lowest of the table."""
    import torch
    from safetensors.torch import load_file

    said = []
    together = run_plan(
        write_plan(shop, tiny_model, ["legal", "hr"], update),
        Options(output=shop / "together", say=said.append),
    )
    assert together.status == "done"
    assert any("1 to 2 of 2" in line for line in said)
    for task in ("legal", "hr"):
        alone = run_plan(shop / "plan.yaml", Options(output=shop / f"alone-{task}", only=task))
        path = f"stages/sft-{task}/adapter_model.safetensors"
        tensors = load_file(together.folder / path)
        for name, tensor in load_file(alone.folder / path).items():
            assert torch.equal(tensor, tensors[name]), name
    first, second = (stage.measured.peak_bytes for stage in together.record.stages)
    assert second > first / 2, "memory counts from before the base that both stand on"
    assert all(task in together.record.verdict.text for task in ("legal", "hr"))
    table = together.record.cross_evaluation
    assert set(table) == {"legal", "hr"}
    for task, losses in table.items():
        assert (set(losses), losses[task]) == ({"base", "legal", "hr"}, min(losses.values()))


@pytest.mark.slow
def test_a_task_is_added_without_training_the_others_again(shop, tiny_model):
    """It goes into the same folder."""
    first = run_plan(write_plan(shop, tiny_model, ["legal", "hr"]))
    before = {stage.name: stage.finished_at for stage in first.record.stages}
    second = run_plan(write_plan(shop, tiny_model, ["legal", "hr", "sales"]))
    assert (second.folder, second.status) == (first.folder, "done")
    after = {stage.name: stage.finished_at for stage in second.record.stages}
    assert after | before == after
    assert set(second.record.cross_evaluation) == {"legal", "hr", "sales"}


@pytest.fixture
def in_process(monkeypatch):
    """Trainers run in this process, which has imported torch."""
    from trainers.__main__ import main

    def run(starter, command, **_):
        return Ended(main(command[command.index("trainers") + 1 :]), False)

    monkeypatch.setattr(TrainerStarter, "_run", run)


@pytest.mark.usefixtures("in_process")
def test_one_task_that_fails_leaves_the_finished_ones(shop, tiny_model):
    """A rank wider than the layers stops the second task; the first is done."""
    plan = write_plan(shop, tiny_model, ["legal", "hr"])
    plan.write_text(plan.read_text().replace("hr.jsonl}", "hr.jsonl}, overrides: {rank: 4096}"))
    with pytest.raises((InputError, TrainingFailed)):
        run_plan(plan, Options(output=shop / "run"))
    assert [stage["status"] for stage in record_of("run")["stages"]] == ["done", "failed"]


@pytest.mark.usefixtures("in_process")
def test_faults_of_every_task_are_said_before_the_first_is_trained(shop, tiny_model):
    """Rows too long in two of three tasks: both are named, nothing is trained."""
    plan = write_plan(shop, tiny_model, ["legal", "hr", "sales"])
    for task in ("hr", "sales"):
        rows = ({"question": "Why? " * 200, "answer": f"Form {n}."} for n in range(30))
        write_rows(shop / f"{task}.jsonl", rows)
    with pytest.raises(InputError) as failed:
        run_plan(plan, Options(output=shop / "run"))
    text = failed.value.text()
    assert [f"task {task}: " in text for task in ("legal", "hr", "sales")] == [False, True, True]
    assert not (shop / "run" / "metrics.jsonl").exists()
