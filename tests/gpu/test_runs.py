"""`advise run` on a real GPU: what the estimate expected is what was measured, and the row for
docs/gpu.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advisor.launch import Options, run_plan

PLAN = """\
version: 1
name: gpu
model: {model}
data: {{path: {data}, format: messages}}
stages:
  - name: sft
    objective: sft
    update: {update}
    {keys}
    learning_rate: 1.0e-4
    max_steps: 4
    micro_batch_size: 4
    seq_len: 128
    holdout: 0.0
launch: {{device: cuda, processes: {processes}{strategy}}}
"""
KEYS = {
    "full": "precision: mixed\n    weights_dtype: float32",
    "lora": "precision: mixed\n    weights_dtype: bfloat16\n    rank: 16",
    "qlora": "precision: mixed\n    weights_dtype: bfloat16\n    rank: 16\n    quantization: nf4",
}


def run(folder: Path, model: Path, data: Path, name: str, processes: int = 1) -> Any:
    plan = folder / "plan.yaml"
    update = "full" if name == "full" else "lora"
    strategy = ", strategy: ddp" if processes > 1 else ""
    text = PLAN.format(model=model, data=data, update=update, keys=KEYS[name],
                       processes=processes, strategy=strategy)  # fmt: skip
    plan.write_text(text)
    return run_plan(plan, Options(output=folder / "run", judge=False, say=lambda text: None))


@pytest.mark.parametrize("name", list(KEYS))
def test_measured_memory_is_what_was_expected(
    tmp_path: Path, smollm: Path, chats: Path, name: str
) -> None:
    """The peak that torch allocated is within a fifth of the estimate for it."""
    record = run(tmp_path, smollm, chats, name).record
    stage = record.stages[0]
    assert stage.measured.peak_bytes == pytest.approx(stage.expected.counted_bytes, rel=0.2)


@pytest.mark.two_gpus
def test_two_gpus_train_like_one(tmp_path: Path, tiny_model: Path, chats: Path) -> None:
    """Two processes over NCCL train a stage to its end."""
    record = run(tmp_path, tiny_model, chats, "lora", processes=2).record
    assert len(record.hardware.gpus) == 2
    assert record.stages[0].status == "done"
