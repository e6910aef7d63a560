"""Supervised fine-tuning of a tiny model, in this process."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from msgspec import structs

from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from tests.trainers.runs import break_at, losses, trained
from trainers import sft
from trainers.__main__ import main
from trainers.job import libraries
from trainers.job.files import read_json
from trainers.job.job import TRAINING
from trainers.job.machine import is_main_process
from trainers.keep import results

ROOT = Path(__file__).resolve().parents[2]


def test_lora_learns_and_loads_in_plain_peft(make):
    """A LoRA stage lowers the loss, records everything, and leaves an adapter that plain PEFT loads
    and that changes the base.
    """
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = make(max_steps=12, rank=8)
    result = trained(job)
    assert result["status"] == "done"
    assert result["steps"] == 12 == len(losses(job))
    assert result["loss_last"] < 0.9 * result["loss_first"]
    assert result["evaluation"]["holdout_loss_after"] < result["evaluation"]["holdout_loss_before"]
    assert result["evaluation"]["perplexity_before"] == pytest.approx(
        math.exp(result["evaluation"]["holdout_loss_before"])
    )
    assert (
        result["data"]["train_rows"] + result["data"]["holdout_rows"]
        == result["data"]["rows"]
        == 30
    )
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    # On the CPU it is how much the process has grown, which is nothing after other tests.
    assert result["measured"]["peak_bytes"] >= 0
    assert result["resolved"]["options"]["rank"] == 8
    assert result["resolved"]["peft"]["lora_alpha"] == 16
    assert (
        not list(job.output.rglob("*.bin"))
        + list(job.output.rglob("*.pt"))
        + list(job.output.rglob("*.pth"))
    ), "pickle"
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    assert tokenizer.chat_template
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_qlora_trains_on_the_cpu(make):
    """A 4-bit base trains on the CPU through the same code, its module in float32."""
    result = trained(make(quantization="nf4", max_steps=8))
    assert result["loss_last"] < result["loss_first"]
    assert result["resolved"]["trainable_dtype"] == "float32"
    assert result["resolved"]["double_quantization"] is True


def test_packing_gives_the_rows_their_own_attention(make):
    """Packed rows train as they would alone: the first step's loss over the same rows is the
    same.
    """
    single = make(micro_batch_size=30, holdout=0.0, max_steps=1, warmup=0.0, job_judge=False)
    packed = make(
        micro_batch_size=64,
        holdout=0.0,
        max_steps=1,
        warmup=0.0,
        packing=True,
        job_judge=False,
        job_run=single.run.parent / "packed",
    )
    trained(single)
    result = trained(packed)
    assert losses(packed)[0] == pytest.approx(losses(single)[0], rel=1e-4)
    assert result["data"]["train_rows"] == 30


def test_our_loss_is_trls_loss(make, monkeypatch):
    """Leaving out entropy, accuracy and unlearned positions changes neither loss nor gradient."""
    from trl import SFTTrainer

    from trainers.stage.trl_trainer import SFT

    job = make(micro_batch_size=4, max_steps=2, job_judge=False)
    trained(job)

    def by_trl(self, model, inputs, *args, **kwargs):
        inputs.pop("answer_places", None)
        return SFTTrainer.compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFT, "compute_loss", by_trl)
    trl = make(micro_batch_size=4, max_steps=2, job_judge=False, job_run=job.run.parent / "trl")
    trained(trl)
    assert losses(job) == pytest.approx(losses(trl), rel=1e-5)
    norms = [
        [json.loads(line)["grad_norm"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (job.run, trl.run)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run(make, monkeypatch):
    """NaN ends the run with exit code 5 and saves nothing."""
    import trainers.start.loading as loading

    load = loading.load_base

    def poisoned(*args, **kwargs):
        model = load(*args, **kwargs)
        model.model.norm.weight.data[0] = float("nan")
        return model

    monkeypatch.setattr(loading, "load_base", poisoned)
    job = make(max_steps=40, job_judge=False)
    with pytest.raises(TrainingFailed, match="loss became nan at step 1") as caught:
        sft.train(job)
    assert caught.value.exit_code == 5
    assert not (job.output / "result.json").exists()
    assert not list(job.output.rglob("*.safetensors"))


def test_a_broken_run_resumes_with_the_same_losses(make, monkeypatch, capsys):
    """After a crash half way the next call goes on from the last complete checkpoint; the losses
    are those of an unbroken run.
    """
    keys = {"max_steps": 10, "save_steps": 2, "dropout": 0.1, "job_judge": False}
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=whole.run.parent / "broken")
    break_at(7, broken, monkeypatch)
    (broken.checkpoints / "checkpoint-8").mkdir()  # what a process killed while saving leaves
    capsys.readouterr()
    result = trained(broken)
    assert "resuming after step 6 of 10, learning rate 0.00" in capsys.readouterr().err
    assert losses(broken) == losses(whole)
    assert result["loss_first"] == losses(whole)[0]


def test_a_moved_split_and_damaged_run_goes_on(make, monkeypatch, capsys, tmp_path, tiny_model):
    """The run folder and the model's have other names, an optimizer step is cut into smaller
    micro-batches, torch is another version, and the newest checkpoint and a line of metrics.jsonl
    are damaged: the one before is used, with the same rows.
    """
    keys = {"max_steps": 10, "save_steps": 2, "job_judge": False}
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=tmp_path / "broken")
    break_at(7, broken, monkeypatch)
    newest = broken.checkpoints / "checkpoint-6" / "adapter_model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-9] ^= 1
    newest.write_bytes(content)
    with (broken.run / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n{"stage": "sft", "step": "x"}\n\xff\xfe\n{"st')
    shutil.copytree(tiny_model, tmp_path / "model-2")
    broken.run.rename(tmp_path / "moved")
    small = make(**keys | {"micro_batch_size": 2, "grad_accum": 2}, job_run=tmp_path / "moved")
    moved = replace(small, plan=structs.replace(small.plan, model=str(tmp_path / "model-2")))
    found = libraries.check_versions(quantized=False)
    monkeypatch.setattr(
        "trainers.stage.load.check_versions", lambda **_: {**found, "torch": "9.9.9"}
    )
    capsys.readouterr()
    trained(moved)
    said = capsys.readouterr().err
    assert "checkpoint-6 is damaged (adapter_model.safetensors has other content" in said
    assert f"torch {found['torch']} -> 9.9.9" in said
    assert "resuming after step 4 of 10" in said
    assert "metrics.jsonl held 3 lines that could not be read" in said
    assert "beginning" not in said
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(moved)[:4] == losses(whole)[:4]


def test_checkpoints_of_other_settings_are_not_resumed(make, monkeypatch, capsys):
    """Another learning rate in the same folder starts from the beginning, and is named."""
    first = make(max_steps=4, save_steps=2, job_judge=False)
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_result", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(first)
    capsys.readouterr()
    job = make(max_steps=4, save_steps=2, learning_rate=1e-3, job_judge=False)
    trained(job)
    said = capsys.readouterr().err
    for name in ("checkpoint-2", "checkpoint-4"):
        assert f"{name} is not used: learning_rate 0.01 -> 0.001" in said
    assert len(losses(job)) == 4


def test_an_adapter_without_effect_fails(make):
    """A run whose adapter does nothing is a failure, not a success; under --max-steps a warning."""
    job = make(
        max_steps=1, warmup=0.5, scheduler="linear", job_judge=False
    )  # one step, at learning rate 0
    with pytest.raises(TrainingFailed, match="has no effect"):
        sft.train(job)
    capped = make(
        max_steps=5, warmup=0.5, job_max_steps=1, job_judge=False, job_run=job.run.parent / "capped"
    )
    result = trained(capped)
    assert [check["ok"] for check in result["checks"]][:2] == [True, False]


def test_unknown_and_owned_keys_are_refused_before_the_model_loads(make, monkeypatch):
    """trl: and peft: take the config classes' fields, not typos, and not what the plan itself
    sets.
    """
    import trainers.start.loading as loading

    monkeypatch.setattr(
        loading, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    with pytest.raises(InputError) as caught:
        sft.train(
            make(
                trl={"max_grad_nrom": 1.0, "learning_rate": 1.0, "max_length": 3, "bf16": True},
                peft={"use_dorra": True, "r": 4},
            )
        )
    text = str(caught.value)
    assert "did you mean 'max_grad_norm'?" in text
    assert "'learning_rate' is set by the plan's own key learning_rate" in text
    assert "'max_length' is set by the plan's own key seq_len" in text
    assert "'bf16' is set by the plan's own key weights_dtype and precision" in text
    assert "did you mean 'use_dora'?" in text
    assert "'r' is set by the plan's own key rank" in text


def test_passed_through_keys_reach_trl_and_peft(make):
    """What trl: and peft: say is what the trainer gets."""
    result = trained(
        make(
            trl={"max_grad_norm": 0.5, "adam_beta2": 0.95}, peft={"use_dora": True}, job_judge=False
        )
    )
    assert result["resolved"]["trl"]["max_grad_norm"] == 0.5
    assert result["resolved"]["trl"]["adam_beta2"] == 0.95
    assert result["resolved"]["peft"]["use_dora"] is True


def test_a_dry_run_measures_and_saves_nothing(make):
    """Two steps on the longest batch and one evaluation batch; memory, its kind, and time come
    back, no weights do.
    """
    job = make(grad_accum=4, max_steps=50, job_dry_run=True)
    sft.train(job)
    record = read_json(job.output / "dry_run.json")
    assert record["measured"]["counter"] == "rss_growth"
    assert record["measured"]["peak_bytes"] > 0
    assert len(record["losses"]) == 2
    assert record["steps"] == 50
    assert record["evaluation_loss"] > 0
    assert not list(job.run.rglob("*.safetensors"))


def test_a_stage_goes_on_from_the_adapter_of_the_stage_before(make, tmp_path):
    """A second stage continues the first one's adapter, and another rank is refused."""

    from trainers.job.job import make_job

    first = make(max_steps=4, rank=4, job_judge=False)
    trained(first)
    stages = (
        first.stage,
        structs.replace(first.stage, name="more"),
        structs.replace(first.stage, name="other", start_from="sft", options={"rank": 8}),
    )
    plan = structs.replace(first.plan, stages=stages)
    second = make_job(plan, stage="more", run=first.run, folder=tmp_path, judge=False)
    result = trained(second)
    assert result["resolved"]["start_from"] == str(first.output)
    assert result["loss_first"] < losses(first)[0]
    with pytest.raises(InputError, match="rank is 8, the adapter it continues from has 4"):
        sft.train(make_job(plan, stage="other", run=first.run, folder=tmp_path, judge=False))


def test_a_plan_for_a_gpu_is_refused_without_one(make):
    """launch.device: cuda on a machine that cannot use it is exit 4, never training on the CPU."""
    import torch

    from advisor.ground.errors import MachineNotReady
    from advisor.plan.model import Launch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    job = make()
    with pytest.raises(
        MachineNotReady, match=r"the plan is for a GPU .*without CUDA|finds 0 usable"
    ):
        sft.train(replace(job, plan=structs.replace(job.plan, launch=Launch(device="cuda"))))


@pytest.mark.light
def test_untested_versions_are_refused_with_both_named(monkeypatch):
    """A library outside the tested range is exit 4, naming the installed and the wanted version."""
    import importlib.metadata

    from advisor.ground.errors import MachineNotReady
    from trainers.job.libraries import check_versions

    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "trl" else real(name)
    )
    with pytest.raises(MachineNotReady, match=r"trl 0\.1 is installed.*\n\s*wanted: trl.*>=1"):
        check_versions(quantized=False)


def test_a_disk_that_is_full_at_the_last_file_of_a_checkpoint_says_so(make, monkeypatch):
    """Also where it is the library that writes the file; nothing of the checkpoint stays."""
    from transformers import TrainerState

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", full)
    job = make(max_steps=1, job_judge=False)
    with pytest.raises(MachineNotReady, match=r"no space left to write it\n.*takes more than"):
        sft.train(job)
    assert list(job.checkpoints.iterdir()) == []


def test_no_pickle_no_telemetry(make, monkeypatch):
    """TRL's usage ping is never sent."""
    import trl.trainer.base_trainer as base

    monkeypatch.setattr(base, "send_telemetry", lambda *args, **kwargs: pytest.fail("telemetry"))
    trained(make(max_steps=2, job_judge=False))
    assert is_main_process()


# --------------------------------------------------------------------------- the command


def plan_file(folder: Path, model: Path, data: Path, **stage) -> Path:
    keys = {
        "name": "sft",
        "objective": "sft",
        "update": "lora",
        "learning_rate": 0.01,
        "max_steps": 12,
        "micro_batch_size": 4,
        "seq_len": 128,
        **stage,
    }
    path = folder / "plan.yaml"
    lines = "\n".join(f"    {key}: {json.dumps(value)}" for key, value in keys.items())
    path.write_text(
        f"version: 1\nname: test\nmodel: {model}\ndata: {{path: {data}}}\nstages:\n  -\n{lines}\n"
    )
    return path


def command(plan: Path, run: Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-m",
        "trainers",
        "sft",
        str(plan),
        "--stage",
        "sft",
        "--run",
        str(run),
        *flags,
    ]


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.long  # tests/faults kills such a run in less time
def test_a_killed_run_resumes_with_the_same_losses(tmp_path, tiny_model, chats):
    """kill -9 half way, then the same command: it says where it goes on, and the loss curve is that
    of an unbroken run.
    """
    plan = plan_file(tmp_path, tiny_model, chats, save_steps=2, max_steps=400, dropout=0.1)
    process = subprocess.Popen(
        command(plan, tmp_path / "broken", "--no-judge"), env=ENV, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "broken" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= 7
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    reached = metrics.read_text().count("\n")
    process = subprocess.Popen(
        command(plan, tmp_path / "broken", "--no-judge"), env=ENV, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and metrics.read_text().count("\n") < reached + 8:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "resuming after step" in said
    assert "learning rate" in said
    assert read_json(tmp_path / "broken" / "stages" / "sft" / "error.json")["exit_code"] == 130
    resumed = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    assert [record["step"] for record in resumed] == list(range(1, len(resumed) + 1))
    whole = subprocess.Popen(
        command(plan, tmp_path / "whole", "--no-judge"), env=ENV, stderr=subprocess.DEVNULL
    )
    other = tmp_path / "whole" / "metrics.jsonl"
    while whole.poll() is None and not (
        other.exists() and other.read_text().count("\n") > len(resumed)
    ):
        time.sleep(0.02)
    whole.kill()
    whole.wait()
    unbroken = [json.loads(line) for line in other.read_text().splitlines()[: len(resumed)]]
    assert [record["loss"] for record in resumed] == [record["loss"] for record in unbroken]
    assert [record["learning_rate"] for record in resumed] == [
        record["learning_rate"] for record in unbroken
    ]


def test_failures_leave_a_record_and_their_exit_code(
    tmp_path, tiny_model, chats, capsys, monkeypatch
):
    """error.json holds what, allowed, hint and the exit code, and stderr says the same."""
    plan = plan_file(tmp_path, tiny_model, chats, seq_len=8)
    code = main(["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")])
    record = read_json(tmp_path / "run" / "stages" / "sft" / "error.json")
    assert code == 2 == record["exit_code"]
    assert record["kind"] == "InputError"
    assert "longer than seq_len 8" in record["what"]
    assert "truncation" in record["hint"]
    assert "longer than seq_len 8" in capsys.readouterr().err


def test_an_unplanned_exception_is_a_bug_with_its_log(tmp_path, tiny_model, chats, monkeypatch):
    """What nobody foresaw is exit 70 and names the file with the traceback."""
    plan = plan_file(tmp_path, tiny_model, chats)

    def broken(job):
        raise RuntimeError("surprise")

    monkeypatch.setattr(sft, "train", broken)
    code = main(["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")])
    record = read_json(tmp_path / "run" / "stages" / "sft" / "error.json")
    assert code == 70 == record["exit_code"]
    assert "surprise" in Path(record["hint"].split()[-1]).read_text()


def test_out_of_memory_names_the_next_smaller_setting(tmp_path, tiny_model, chats, monkeypatch):
    """Out of memory is exit 5 with the setting that changes the result least."""
    plan = plan_file(tmp_path, tiny_model, chats, micro_batch_size=8)

    def full(job):
        job.enter(TRAINING)
        raise MemoryError("no room")

    monkeypatch.setattr(sft, "train", full)
    code = main(["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")])
    assert code == 5
    found = read_json(tmp_path / "run" / "stages" / "sft" / "error.json")
    assert (found["kind"], found["doing"]) == ("OutOfMemory", "training")
    assert "--set stages.sft.micro_batch_size=4 --set stages.sft.grad_accum=2" in found["hint"]
