"""Every update teaches the real 135M model a style, and `advise run` goes to an answer."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.estimate.spec import run_of_spec
from advisor.launch import Options, run_plan
from advisor.render.report import write_report
from advisor.render.result_commands import ask_command, served_stages
from advisor.situation.models import model_shape
from tests.trainers.runs import chat, write_rows

ROOT = Path(__file__).resolve().parents[2]
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


def learned(folder, model, gain, *, rows=None, **keys):
    """The result of a stage on so many `rows`, whose loss has fallen by `gain` and checks pass."""
    (folder / "train.jsonl").write_text("".join(DATA.read_text().splitlines(keepends=True)[:rows]))
    stage = {"name": "sft", "objective": "sft", "micro_batch_size": 2, **keys}
    plan = folder / "plan.json"
    about = {"model": str(model), "data": {"path": "train.jsonl"}, "stages": [stage]}
    plan.write_text(json.dumps({"version": 1, "name": "real", **about}))
    command = [sys.executable, "-P", "-m", "trainers", "sft", str(plan), "--stage", "sft"]
    done = subprocess.run(
        [*command, "--run", str(folder / "run")],
        env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output = folder / "run" / "stages" / "sft"
    result = json.loads((output / "result.json").read_text())
    found = result["evaluation"]
    assert found["holdout_loss_after"] < found["holdout_loss_before"] - gain
    assert all(check["ok"] for check in result["checks"])
    return output


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
    """Eight steps lower the loss on held-out rows, and every check of what was saved passes."""
    # Four held-out rows, which answer in one batch: answers take most of the time.
    steps = {"max_steps": 8, "seq_len": 208, "holdout": 0.02, "scheduler": "constant", "warmup": 0}
    learned(tmp_path, smollm, 0.3, **steps, **keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {"update": "adapter", "learning_rate": 2e-3, "epochs": 1, "grad_accum": 1}, id="adapter"
        ),
        pytest.param(
            {"update": "prefix", "learning_rate": 5e-3, "epochs": 3, "grad_accum": 1},
            id="prefix",
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_trained_style_survives_reload_in_a_new_process(keys, tmp_path, smollm):
    """Sixty rows lower the held-out loss, and plain PEFT answers as the shop does."""
    folder = learned(tmp_path, smollm, 1.0, rows=60, seq_len=256, holdout=0.1, **keys)
    said = subprocess.run(
        [sys.executable, "-c", ANSWER, str(folder), *QUESTIONS],
        env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = said.stdout.strip().splitlines()
    assert len(answers) == len(QUESTIONS), said.stderr
    for answer in answers:
        assert answer.startswith("Hello, and thank you for writing to")


PLAN = """\
name: shop
model: MODEL
data: {path: train.jsonl}
stages:
  - {name: sft, objective: sft, update: UPDATE, learning_rate: 2e-2, max_steps: 10, micro_batch_size: 2, seq_len: 128, holdout: 0.1}
"""
KEYS = {
    "adapter": {"bottleneck": 64, "placement": "pfeiffer"},
    "prefix": {"prefix_tokens": 30},
}  # the defaults


@pytest.mark.slow
@pytest.mark.parametrize("update", KEYS)
def test_a_real_run_from_plan_to_an_answer(update, tmp_path, tiny_model, monkeypatch):
    """The printed line answers, and the estimate counts the parameters that were trained."""
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = (chat(f"Where is {n}?", f"Your parcel {n} is in the red van.") for n in range(40))
    write_rows(tmp_path / "train.jsonl", rows)
    plan = PLAN.replace("MODEL", str(tiny_model)).replace("UPDATE", update)
    (tmp_path / "plan.yaml").write_text(plan)
    done = run_plan("plan.yaml", Options(on_end=write_report))
    stage = done.record.stages[0]
    assert done.status == "done"
    assert stage.loss_last < stage.loss_first
    shape, _ = model_shape(str(tiny_model))
    assert shape is not None
    run = run_of_spec({"update": update, **KEYS[update]}, shape)
    assert done.record.resolved["sft"].trainable_parameters == run.trainable
    assert not served_stages(done.record)
    ask = ask_command(str(done.folder / stage.folder), stage.update)
    answer = subprocess.run(shlex.split(ask), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    report = (done.folder / "report.html").read_text()
    assert "cannot be merged, and vLLM and Ollama cannot load it" in report
    card = (done.folder / "stages" / "sft" / "README.md").read_text()
    assert "import advisor.peft_adapter" in card
