"""Rollouts by a real vLLM: ADVISE_VLLM_PYTHON names the interpreter of an environment that has one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from advisor.launch import Options, run_plan

VLLM = os.environ.get("ADVISE_VLLM_PYTHON", "")
PLAN = """\
version: 1
name: rollouts
model: {model}
data: {{path: {data}, format: messages}}
stages:
  - {{name: x, objective: {objective}, update: {update}, learning_rate: 1.0e-5, max_steps: 3,
     micro_batch_size: 4, seq_len: 256, holdout: 0.0, response_tokens: 64, reward: "own.py:score",
     weights_dtype: {dtype}, precision: mixed, rollouts: vllm, scheduler: constant}}
launch: {{device: cuda, vllm: {{python: {python}, gpus: 0, memory: 0.3}}}}
"""
REWARD = (
    "def score(prompts, completions, **_):\n    return [float(len(text)) for text in completions]\n"
)


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
    text = PLAN.format(
        model=smollm, data=chats, objective=objective, update=update, python=VLLM,
        dtype="float32" if update == "full" else "bfloat16",
    )  # fmt: skip
    if update == "lora":
        text = text.replace("update: lora,", "update: lora, rank: 16,")
    (tmp_path / "plan.yaml").write_text(text)
    run_plan(
        tmp_path / "plan.yaml", Options(output=tmp_path / "run", judge=False, say=lambda text: None)
    )
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 3
    assert all(line["grad_norm"] > 0 for line in lines)
    assert all(line["engine_mismatch"] < 0.1 for line in lines)
