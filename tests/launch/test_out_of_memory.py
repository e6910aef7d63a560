"""A trainer that runs out of memory is started again with a smaller micro-batch, and what cannot be
made smaller is told with the change that fits.
"""

import json

import pytest
from msgspec.structs import replace

from advisor.ground.errors import OutOfMemory, TrainingFailed
from advisor.launch import Options, failure_report, run_plan
from advisor.launch.failure_report import explain_failure
from advisor.plan.entries import entries
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.record.smaller import changes, next_change, smaller_micro_batch
from advisor.render.report import report_page
from advisor.render.run import summary_lines
from tests.launch.conftest import run
from tests.launch.test_real import shop as real_shop  # noqa: F401  (a fixture)


def stage_of(**keys):
    common = {"name": "sft", "objective": "sft", "update": "lora", "learning_rate": 1e-4}
    return Stage(**{**common, **keys})


@pytest.fixture(autouse=True)
def training(monkeypatch):
    """What the stand-in was doing when its memory ran out."""
    monkeypatch.setenv("STAND_IN_DOING", "training")


@pytest.mark.parametrize("mode", ["room-1", "room-killed-1"])
def test_it_is_started_again_until_it_fits(shop, monkeypatch, capfd, mode):
    """By its own word, or killed by the kernel: said with the line for the plan, and recorded."""
    monkeypatch.setenv("STAND_IN", mode)
    counts = iter(range(100))
    monkeypatch.setattr(failure_report, "oom_kills", lambda: next(counts))
    monkeypatch.setattr("advisor.launch.stages.oom_kills", lambda: next(counts))
    done = run(output="out")
    assert done.status == "done"
    record = json.loads((shop / "out" / "run.json").read_text())
    found = [
        {key: one[key] for key in ("stage", "at_step", "micro_batch_size", "grad_accum")}
        for one in record["stages"][0]["adjusted"]
    ]
    assert found == [
        {"stage": "sft", "at_step": 3, "micro_batch_size": size, "grad_accum": 4 // size}
        for size in (2, 1)
    ]
    assert record["adjusted"] == record["stages"][0]["adjusted"]
    line = "out of memory after step 3: going on with micro_batch_size 1 and grad_accum 4"
    assert line in " ".join(" ".join(summary_lines(done)).split())
    assert line in report_page(done.record, folder=done.folder, plan_text="", metrics=[])
    said = capfd.readouterr().err
    for size in (2, 1):
        told = f"for the plan: stages.sft.micro_batch_size={size} stages.sft.grad_accum={4 // size}"
        assert told in said


@pytest.mark.parametrize(
    ("doing", "tries", "hint"),
    [
        ("training", 3, "run again with --set stages.sft.seq_len=512"),
        ("loading", 1, "run again with --set stages.sft.quantization=nf4"),
    ],
)
def test_what_cannot_fit_ends_with_the_change_that_fits(shop, monkeypatch, doing, tries, hint):
    """Down to one row; memory that runs out while loading is no reason for a smaller one."""
    monkeypatch.setenv("STAND_IN", "room-0")
    monkeypatch.setenv("STAND_IN_DOING", doing)
    said = []
    with pytest.raises(OutOfMemory) as caught:
        run(output="out", say=said.append)
    assert caught.value.exit_code == 5
    assert hint in caught.value.text()
    assert sum(text.startswith("stage sft (1 of 1)") for text in said) == tries


def test_a_killed_trainer_that_the_kernel_did_not_kill_is_not_started_again(shop, monkeypatch):
    """A person's kill -9 ends the run."""
    monkeypatch.setenv("STAND_IN", "room-killed-1")
    monkeypatch.setattr(failure_report, "oom_kills", lambda: 7)
    monkeypatch.setattr("advisor.launch.stages.oom_kills", lambda: 7)
    with pytest.raises(TrainingFailed, match="signal 9"):
        run(output="out")
    assert not (shop / "out" / "stages" / "sft" / "adjusted.json").exists()


def test_what_the_kernel_killed_is_seen_behind_a_launcher(shop, tmp_path, monkeypatch):
    """Only if the kernel has killed something, and the trainer left no other word."""
    monkeypatch.setattr(failure_report, "oom_kills", lambda: 8)
    entry = entries(read_plan("plan.yaml"))[0]

    def ran_out(kills, *codes):
        about = {"folder": tmp_path, "oom_kills_before": kills, "smaller": str}
        errors = [explain_failure(entry, code=code, **about) for code in codes]
        return [isinstance(error, OutOfMemory) for error in errors]

    assert ran_out(7, 1, 137, -9) == [True, True, True]
    assert ran_out(7, 0, 130, -15) == [False, False, False]
    assert ran_out(8, 1, 137, -9) == [False, False, False]
    assert ran_out(None, 1, 137, -9) == [False, True, True]
    (tmp_path / "error.json").write_text('{"kind": "InputError", "what": "row 3 has no answer"}')
    assert ran_out(7, 2) == [False]


def test_micro_batches_shrink_by_divisors():
    """The largest divisor of at most half, and never below what the objective takes."""
    assert [smaller_micro_batch(size) for size in (1, 2, 3, 6, 7, 12)] == [None, 1, 1, 3, 1, 6]
    kto = stage_of(objective="kto", micro_batch_size=16, grad_accum=2)
    found = [change.values for change in changes(kto) if "micro_batch_size" in change.values]
    assert [(one["micro_batch_size"], one["grad_accum"]) for one in found] == [(8, 4), (4, 8)]


def test_the_change_follows_the_estimate():
    """The first that is enough; if none is alone, the one that lowers the peak most."""
    stage = stage_of(micro_batch_size=1, seq_len=1024)

    def peak_of(tried):
        return 10 - tried.gradient_checkpointing - 4 * (tried.quantization is not None)

    smaller = {"gradient_checkpointing": True}
    assert next_change(stage).values == smaller
    for limit, values in (
        (20, smaller),
        (7, {"quantization": "nf4"}),
        (2, {"quantization": "nf4"}),
    ):
        assert next_change(stage, peak_of=peak_of, limit_bytes=limit).values == values
    assert next_change(stage, peak_of=lambda _: 10) is None


# Read by every Python that starts: the last process has room to train on few tokens at once.
SHORT_OF_MEMORY = """
import os
if os.environ.get("RANK", "1") == "1":
    import torch
    plain = torch.nn.functional.embedding
    def embedding(tokens, *rest, **keys):
        if tokens.numel() > 220 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(tokens, *rest, **keys)
    torch.nn.functional.embedding = embedding
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_start_again_with_the_smaller_setting(
    real_shop,  # noqa: F811
    monkeypatch,
    capfd,
    processes,
):
    """They end with the weights of a run that was planned so."""
    (real_shop / "site").mkdir()
    (real_shop / "site" / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    plan = (real_shop / "plan.yaml").read_text().replace("steps: 12", "steps: 2")
    plan += f"launch: {{device: cpu, processes: {processes}}}\n"
    asked = plan.replace("micro_batch_size: 2", "micro_batch_size: 8")
    wanted = plan.replace("micro_batch_size: 2", "micro_batch_size: 4\n    grad_accum: 2")
    (real_shop / "wanted.yaml").write_text(wanted)
    planned = run_plan("wanted.yaml", Options(judge=False, output="planned"))
    monkeypatch.setenv("PYTHONPATH", str(real_shop / "site"))
    (real_shop / "plan.yaml").write_text(asked)
    done = run_plan("plan.yaml", Options(judge=False))
    assert done.status == "done"
    (adjusted,) = done.record.adjusted
    assert (adjusted.micro_batch_size, adjusted.grad_accum) == (4, 2)
    who = "process 1: " if processes == 2 else ""
    assert f"{who}out of memory while training" in adjusted.why
    assert "for the plan: stages.sft.micro_batch_size=4" in capfd.readouterr().err
    found, expected = (
        (one.folder / "stages" / "sft" / "adapter_model.safetensors").read_bytes()
        for one in (done, planned)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("optimizer", "smaller"),
    [("adamw_fused", "adamw_8bit"), ("adamw_split", "adamw_stochastic"), ("muon", None)],
)
def test_an_optimizer_that_keeps_less_is_offered_where_all_weights_train(optimizer, smaller):
    """With an optimizer that trains the same; modules have small states."""
    full = stage_of(update="full", optimizer=optimizer, weights_dtype="bfloat16")
    offered = [one.values["optimizer"] for one in changes(full) if "optimizer" in one.values]
    assert offered == ([smaller] if smaller else [])
    assert not any("optimizer" in one.values for one in changes(replace(full, update="lora")))
