"""Many departments: one process, one base, a module each; equal to trainings of their own; a table
of all on all; a task added later.
"""

from pathlib import Path

import pytest

from advisor.ground.errors import InputError, TrainingFailed
from advisor.launch import Options, run_plan
from tests.launch.conftest import record_of, write_rows

PLAN = """\
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


def write_plan(folder: Path, model: Path, tasks, update="lora") -> Path:
    for task in tasks:
        said = SAID[task]
        questions = ((f"What about number {n}?", said.format(n=n)) for n in range(30))
        write_rows(folder / f"{task}.jsonl", [{"question": q, "answer": a} for q, a in questions])
    lines = "\n".join(f"  - {{name: {task}, data: {{path: {task}.jsonl}}}}" for task in tasks)
    path = folder / "plan.yaml"
    path.write_text(PLAN.format(model=model, tasks=lines, update=update))
    return path


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(run, name):
    from safetensors.torch import load_file

    return load_file(run.folder / "stages" / name / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "update", ["lora", *(pytest.param(u, marks=pytest.mark.long) for u in ("adapter", "prefix"))]
)
def test_departments_share_a_process_and_equal_trainings_of_their_own(shop, tiny_model, update):
    """The very weights, and the own task's loss is the lowest of the table."""
    import torch

    said = []
    together = run_plan(
        write_plan(shop, tiny_model, ["legal", "hr"], update),
        Options(output=shop / "together", say=said.append),
    )
    assert together.status == "done"
    assert any("1 to 2 of 2" in line for line in said)
    for task in ("legal", "hr"):
        alone = run_plan(shop / "plan.yaml", Options(output=shop / f"alone-{task}", only=task))
        for name, tensor in adapter(alone, f"sft-{task}").items():
            assert torch.equal(tensor, adapter(together, f"sft-{task}")[name]), name
    first, second = (stage.measured.peak_bytes for stage in together.record.stages)
    assert second > first / 2, "memory counts from before the base that both stand on"
    assert all(task in together.record.verdict.text for task in ("legal", "hr"))
    table = together.record.cross_evaluation
    assert set(table) == {"legal", "hr"}
    for task, losses in table.items():
        assert set(losses) == {"base", "legal", "hr"}
        assert losses[task] == min(losses.values())


@pytest.mark.slow
def test_a_task_is_added_without_training_the_others_again(shop, tiny_model):
    """It goes into the same folder; a changed task is refused."""
    first = run_plan(write_plan(shop, tiny_model, ["legal", "hr"]))
    before = {stage.name: stage.finished_at for stage in first.record.stages}
    second = run_plan(write_plan(shop, tiny_model, ["legal", "hr", "sales"]))
    assert second.folder == first.folder
    assert second.status == "done"
    after = {stage.name: stage.finished_at for stage in second.record.stages}
    assert after | before == after
    assert set(second.record.cross_evaluation) == {"legal", "hr", "sales"}
    plan = shop / "plan.yaml"
    plan.write_text(plan.read_text().replace("legal.jsonl", "sales.jsonl"))
    with pytest.raises(InputError, match="holds other tasks: legal"):
        run_plan(plan)


def test_one_task_that_fails_leaves_the_finished_ones(shop, tiny_model):
    """A rank wider than the layers stops the second task; the first is done."""
    plan = write_plan(shop, tiny_model, ["legal", "hr"])
    plan.write_text(plan.read_text().replace("hr.jsonl}", "hr.jsonl}, overrides: {rank: 4096}"))
    with pytest.raises((InputError, TrainingFailed)):
        run_plan(plan, Options(output=shop / "run"))
    assert [stage["status"] for stage in record_of("run")["stages"]] == ["done", "failed"]


def test_faults_of_every_task_are_said_before_the_first_is_trained(shop, tiny_model):
    """Rows too long in two of three tasks: both are named, nothing is trained."""
    plan = write_plan(shop, tiny_model, ["legal", "hr", "sales"])
    for task in ("hr", "sales"):
        rows = ({"question": "Why? " * 200, "answer": f"Form {n}."} for n in range(30))
        write_rows(shop / f"{task}.jsonl", rows)
    with pytest.raises(InputError) as failed:
        run_plan(plan, Options(output=shop / "run"))
    text = failed.value.text()
    assert "task hr: " in text
    assert "task sales: " in text
    assert "task legal" not in text
    assert not (shop / "run" / "metrics.jsonl").exists()
