"""Training on a real GPU; ADVISE_VLLM_PYTHON is an interpreter with vLLM for real rollouts."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from advisor.launch import Options, run_plan
from advisor.methods.kernels import kernel, why_no_torch_compile
from advisor.methods.optimizers import OPTIMIZERS
from tests.trainers.alignment import REWARD
from tests.trainers.runs import losses, trained, whole_and_broken


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that were built, for a look at their models and optimizers."""
    from trainers.stage import load as module

    built: list[Any] = []
    original = module.build_trainer

    def build(*args: Any, **rest: Any) -> Any:
        built.append(original(*args, **rest))
        return built[-1]

    monkeypatch.setattr(module, "build_trainer", build)
    return built


def states_of(optimizer: Any) -> list[dict[str, Any]]:
    return list(getattr(optimizer, "optimizer", optimizer).state.values())


@pytest.mark.parametrize("update", ["full", "lora", "adapter", "prefix", "ia3"])
def test_everything_is_on_the_gpu(on_gpu: Any, trainers: list[Any], update: str) -> None:
    """Weights, gradients' states and the measured memory are the GPU's."""
    result = trained(on_gpu(update=update))
    (trainer,) = trainers
    assert {one.device.type for one in trainer.model.parameters()} == {"cuda"}
    states = [value for state in states_of(trainer.optimizer) for value in state.values()]
    assert {value.device.type for value in states if getattr(value, "ndim", 0)} == {"cuda"}
    assert result["measured"]["counter"] == "allocated"
    assert 0 < result["measured"]["peak_bytes"] <= result["measured"]["reserved_bytes"]
    assert all(check["ok"] for check in result["checks"])


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_qlora_learns_with_each_optimizer_of_bitsandbytes(on_gpu: Any, optimizer: str) -> None:
    """A 4-bit base and the optimizers that need CUDA: the loss falls, the result reloads."""
    job = on_gpu(quantization="nf4", optimizer=optimizer, max_steps=6)
    result = trained(job)
    assert losses(job)[-1] < losses(job)[0]
    assert all(check["ok"] for check in result["checks"])


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_experts_are_packed_on_the_gpu(family: str, tmp_path: Path) -> None:
    """The same model as on the host, by CUDA's 4-bit product; never in 16 bits as a whole."""
    import torch

    from tests.trainers.test_packed_experts import IDS, packed_model, wide_mixture
    from trainers.job.machine import held_bytes

    wide_mixture(family, num_hidden_layers=8).save_pretrained(tmp_path)
    host = packed_model(tmp_path, dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    there = packed_model(tmp_path, dtype=torch.bfloat16, device="cuda:0")
    layer = 4 * 3 * 64 * 128 * 2
    assert torch.cuda.max_memory_allocated() - before < 1.1 * held_bytes(there) + 3 * layer
    found = there(IDS.cuda()).logits.float().cpu()
    torch.testing.assert_close(found, host(IDS).logits.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("update", ["full", "lora"])
def test_float16_trains_under_the_scaler_of_cuda(
    on_gpu: Any, trainers: list[Any], update: str
) -> None:
    """Before Ampere: float16 autocast with a scaled loss, and weights in float32 or a module."""
    dtype = "float32" if update == "full" else "float16"
    job = on_gpu(update=update, weights_dtype=dtype, max_steps=8)
    trained(job)
    (trainer,) = trainers
    assert dtype == "float32" or trainer.accelerator.scaler.get_scale() > 0
    assert losses(job)[-1] < losses(job)[0]


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("attention", "flash_attention_2"),
        ("attention", "kernels-community/flash-attn2"),
        ("attention", "flash_attention_3"),
        ("attention", "kernels-community/flash-attn3"),
        ("attention", "flex_attention"),
        ("kernels", "liger"),
        ("kernels", "hub"),
        ("compile", True),
    ],
)
def test_a_kernel_gives_the_losses_of_plain_torch(
    on_gpu: Any, tmp_path: Any, key: str, word: Any
) -> None:
    """Packed rows through each kernel cost nothing but time: the losses are those without it."""
    import torch

    one = kernel(word) if isinstance(word, str) else None
    if one is not None and not one.runs_on(torch.cuda.get_device_capability(0)):
        pytest.skip(f"{word} needs {one.needs}")
    if why := one.why_not_installed if one is not None else why_no_torch_compile("cuda"):
        pytest.skip(why)
    plain = on_gpu(packing=True, job_run=tmp_path / "plain")
    own = on_gpu(packing=True, job_run=tmp_path / "own", **{key: word})
    trained(plain)
    assert trained(own)["resolved"][key] == word
    assert losses(own) == pytest.approx(losses(plain), rel=0.02)


def test_auto_takes_what_there_is(on_gpu: Any) -> None:
    """Whatever is installed, a stage with the words of the rules trains, and records its choice."""
    resolved = trained(on_gpu(attention="auto", kernels="auto", packing=True))["resolved"]
    assert resolved["attention"] != "auto"
    assert resolved["kernels"] in ("liger", "none")


GPU_OPTIMIZERS = [
    name for name, one in OPTIMIZERS.items() if "cuda" in one.devices and name != "sgd"
]


@pytest.mark.parametrize("name", GPU_OPTIMIZERS)
def test_every_optimizer_trains_and_resumes(
    name: str, on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls, and a run that was stopped ends like one that was not."""
    whole, stopped = whole_and_broken(
        on_gpu, 3, monkeypatch, update="full", weights_dtype="bfloat16", precision="pure",
        optimizer=name, learning_rate=1e-3, max_steps=6, save_steps=1,
    )  # fmt: skip
    assert losses(whole)[-1] < losses(whole)[0]
    assert losses(stopped) == pytest.approx(losses(whole), rel=1e-3)


def test_paged_states_are_paged_again_after_a_resume(
    on_gpu: Any, trainers: list[Any], wide_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run ends like one that was not, with states in memory that can move to the host."""
    whole, stopped = whole_and_broken(
        on_gpu, 2, monkeypatch, model=wide_model, rank=256, optimizer="paged_adamw", max_steps=4,
        save_steps=1,
    )  # fmt: skip
    assert losses(stopped) == pytest.approx(losses(whole), rel=1e-3)
    states = [state["state1"] for state in states_of(trainers[-1].optimizer)]
    large = [getattr(one, "is_paged", False) for one in states if one.numel() >= 100_000]
    assert set(large) == {True}


def test_too_little_memory_is_explained(on_gpu: Any) -> None:
    """Out of memory is told as such, with the next smaller setting."""
    import torch

    from trainers import sft
    from trainers.__main__ import explain_error

    job = on_gpu(micro_batch_size=8)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**21 / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            sft.train(job)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = explain_error(raised.value, job)
    assert "out of memory" in str(found)
    assert "micro_batch_size" in found.faults[0].hint


VLLM = os.environ.get("ADVISE_VLLM_PYTHON", "")
PLAN = """\
version: 1
name: gpu
model: {model}
data: {{path: {data}, format: messages}}
stages:
  - {{name: x, micro_batch_size: 4, holdout: 0.0, precision: mixed, {stage}}}
launch: {{device: cuda, {launch}}}
"""
KEYS = {
    "full": "update: full, weights_dtype: float32",
    "lora": "update: lora, weights_dtype: bfloat16, rank: 16",
    "qlora": "update: lora, weights_dtype: bfloat16, rank: 16, quantization: nf4",
}
SFT = "objective: sft, learning_rate: 1.0e-4, max_steps: 4, seq_len: 128"


def run(folder: Path, model: Path, data: Path, stage: str, launch: str = "processes: 1") -> Any:
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.format(model=model, data=data, stage=stage, launch=launch))
    return run_plan(plan, Options(output=folder / "run", judge=False, say=lambda text: None)).record


@pytest.mark.parametrize("name", list(KEYS))
def test_measured_memory_is_what_was_expected(
    tmp_path: Path, smollm: Path, chats: Path, name: str
) -> None:
    """The peak that torch allocated is within a fifth of the estimate for it."""
    (stage,) = run(tmp_path, smollm, chats, f"{SFT}, {KEYS[name]}").stages
    assert stage.measured.peak_bytes == pytest.approx(stage.expected.counted_bytes, rel=0.2)


@pytest.mark.two_gpus
def test_two_gpus_train_like_one(tmp_path: Path, tiny_model: Path, chats: Path) -> None:
    """Two processes over NCCL train a stage to its end."""
    two = "processes: 2, strategy: ddp"
    record = run(tmp_path, tiny_model, chats, f"{SFT}, {KEYS['lora']}", two)
    assert (len(record.hardware.gpus), record.stages[0].status) == (2, "done")


@pytest.mark.two_gpus
@pytest.mark.parametrize("has_experts", [False, True])
def test_two_gpus_divide_a_4_bit_base_while_it_loads(
    tmp_path: Path, smollm: Path, chats: Path, has_experts: bool
) -> None:
    """No GPU holds more than was expected, which counts a part of the packed base on each."""
    if has_experts:
        from transformers import AutoTokenizer

        from tests.trainers.test_packed_experts import wide_mixture

        tokenizer, smollm = AutoTokenizer.from_pretrained(smollm), tmp_path / "mixture"
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
        wide_mixture("qwen3_moe", **sizes).save_pretrained(smollm)
        tokenizer.save_pretrained(smollm)
    two = "processes: 2, strategy: fsdp"
    (stage,) = run(tmp_path, smollm, chats, f"{SFT}, {KEYS['qlora']}", two).stages
    assert stage.status == "done"
    assert stage.measured.peak_bytes <= stage.expected.high_bytes


@pytest.mark.skipif(not VLLM, reason="ADVISE_VLLM_PYTHON names no environment with vLLM")
@pytest.mark.parametrize(
    ("objective", "update"),
    [("grpo", "lora"), ("grpo", "full"), ("rloo", "lora"), ("ppo", "lora"), ("ppo", "full")],
)
def test_a_stage_learns_from_the_answers_of_vllm(
    tmp_path: Path, smollm: Path, chats: Path, objective: str, update: str
) -> None:
    """A server on the same GPU gets each step's weights; its probabilities are nearly ours."""
    (tmp_path / "own.py").write_text(REWARD)
    own = (
        f"objective: {objective}, learning_rate: 1.0e-5, max_steps: 3, seq_len: 256,"
        " response_tokens: 64, reward: own.py:score, rollouts: vllm, scheduler: constant"
    )
    server = f"vllm: {{python: {VLLM}, gpus: 0, memory: 0.3}}"
    run(tmp_path, smollm, chats, f"{own}, {KEYS[update]}", server)
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert len(lines) == 3
    assert min(line["grad_norm"] for line in lines) > 0
    assert max(line["engine_mismatch"] for line in lines) < 0.1
