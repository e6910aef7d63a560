"""`advise run` on a real GPU: what the estimate expected is what was measured, the row for docs/gpu.md,
and rollouts by a real vLLM: ADVISE_VLLM_PYTHON names the interpreter of an environment that has one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from advisor.launch import Options, run_plan
from tests.trainers.alignment import REWARD

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
    done = run_plan(plan, Options(output=folder / "run", judge=False, say=lambda text: None))
    return done.record


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
    assert len(record.hardware.gpus) == 2
    assert record.stages[0].status == "done"


@pytest.mark.skipif(not VLLM, reason="ADVISE_VLLM_PYTHON names no environment with vLLM")
@pytest.mark.parametrize(
    ("objective", "update"),
    [("grpo", "lora"), ("grpo", "full"), ("rloo", "lora"), ("ppo", "lora"), ("ppo", "full")],
)
def test_a_stage_learns_from_the_answers_of_vllm(
    tmp_path: Path, smollm: Path, chats: Path, objective: str, update: str
) -> None:
    """The server starts on the same GPU, gets the weights of each step, and computes nearly the
    same probabilities as the trainer.
    """
    (tmp_path / "own.py").write_text(REWARD)
    own = (
        f"objective: {objective}, learning_rate: 1.0e-5, max_steps: 3, seq_len: 256,"
        " response_tokens: 64, reward: own.py:score, rollouts: vllm, scheduler: constant"
    )
    server = f"vllm: {{python: {VLLM}, gpus: 0, memory: 0.3}}"
    run(tmp_path, smollm, chats, f"{own}, {KEYS[update]}", server)
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert len(lines) == 3
    assert all(line["grad_norm"] > 0 for line in lines)
    assert all(line["engine_mismatch"] < 0.1 for line in lines)
