"""Adapter and prefix on the real 135M model: sixty rows teach it the house style, and the style
survives a new process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "advisor" / "demo" / "support.jsonl"
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
QUESTIONS = ["Where is my parcel?", "Can I send the kettle back?", "Do you ship to Norway?"]
ANSWER = """
import sys
import advisor.peft_adapter
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder, *questions = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoPeftModelForCausalLM.from_pretrained(folder).eval()
for question in questions:
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).replace("\\n", " "))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "gain"),
    [
        pytest.param(
            {"update": "adapter", "learning_rate": 2e-3, "epochs": 1, "grad_accum": 1},
            1.0,
            id="adapter",
        ),
        pytest.param(
            {"update": "prefix", "learning_rate": 5e-3}, 1.0, id="prefix", marks=pytest.mark.long
        ),
    ],
)
def test_the_trained_style_survives_reload_in_a_new_process(keys, gain, tmp_path, smollm):
    """A pass or two over sixty rows lower the held-out loss, every check passes, and plain PEFT in a
    new process answers as the shop does.
    """
    (tmp_path / "train.jsonl").write_text("".join(DATA.read_text().splitlines(keepends=True)[:60]))
    stage = {
        "name": "sft",
        "objective": "sft",
        "epochs": 2,
        "micro_batch_size": 2,
        "grad_accum": 2,
        "seq_len": 256,
        "holdout": 0.1,
        **keys,
    }
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "version": 1,
                "name": "real",
                "model": str(smollm),
                "data": {"path": "train.jsonl"},
                "stages": [stage],
            }
        )
    )
    command = [
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
    ]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "stages" / "sft"
    result = json.loads((folder / "result.json").read_text())
    assert (
        result["evaluation"]["holdout_loss_after"]
        < result["evaluation"]["holdout_loss_before"] - gain
    )
    assert all(check["ok"] for check in result["checks"])
    said = subprocess.run(
        [sys.executable, "-c", ANSWER, str(folder), *QUESTIONS],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = said.stdout.strip().splitlines()
    assert len(answers) == len(QUESTIONS), said.stderr
    assert all(answer.startswith("Hello, and thank you for writing to") for answer in answers), (
        answers
    )
