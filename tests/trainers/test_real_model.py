"""The real 135M model through the real command: full, LoRA and QLoRA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "advisor" / "demo" / "support.jsonl"


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {"update": "lora", "learning_rate": 1e-3, "weights_dtype": "bfloat16"},
            marks=pytest.mark.slow,
            id="lora",
        ),
        # Three and two minutes: the short tests train both updates, on a tiny model.
        pytest.param(
            {"update": "lora", "learning_rate": 1e-3, "quantization": "nf4"},
            marks=pytest.mark.long,
            id="qlora",
        ),
        pytest.param({"update": "full", "learning_rate": 1e-4}, marks=pytest.mark.long, id="full"),
    ],
)
def test_it_learns_the_house_style(keys, tmp_path, smollm):
    """Eight steps lower the loss on held-out rows, and what was saved loads in plain PEFT or
    transformers.
    """
    stage = {
        "name": "sft",
        "objective": "sft",
        "max_steps": 8,
        "micro_batch_size": 2,
        "seq_len": 208,
        "holdout": 0.02,  # four rows, which answer in one batch: answers take most of the time
        "scheduler": "constant",
        "warmup": 0.0,
        **keys,
    }
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "version": 1,
                "name": "real",
                "model": str(smollm),
                "data": {"path": str(DATA)},
                "stages": [stage],
            }
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "trainers",
            "sft",
            str(plan),
            "--stage",
            "sft",
            "--run",
            str(tmp_path / "run"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "stages" / "sft" / "result.json").read_text())
    assert (
        result["evaluation"]["holdout_loss_after"]
        < result["evaluation"]["holdout_loss_before"] - 0.3
    )
    assert all(check["ok"] for check in result["checks"])
