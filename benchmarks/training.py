"""The same model, rows, steps and settings through `advise run` and through a minimal TRL script, in turn."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from advisor.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process

TITLE = "LoRA of SmolLM2-135M-Instruct on the bundled data, CPU: training loop alone, launch counted apart"
STEPS, PAIRS = 12, 3

PLAN = """version: 1
name: benchmark
model: {model}
data: {{path: {data}, format: messages}}
stages:
  - {{name: sft, objective: sft, update: lora, rank: 16, alpha: 32, target_modules: all-linear, weights_dtype: float32, learning_rate: 3.0e-4, max_steps: {steps},
     warmup: 0.1, scheduler: cosine, optimizer: adamw_fused, micro_batch_size: 4, grad_accum: 1, seq_len: 256, holdout: 0.0, seed: 42, save_steps: {steps}}}
launch: {{device: cpu}}
"""

PLAIN = """
import json, resource, sys, time
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

model, data, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [json.loads(line)["messages"] for line in open(data)]
dataset = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])

class Clock(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.start = time.perf_counter()
    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.start

clock = Clock()
config = SFTConfig(output_dir=sys.argv[4], max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-4, lr_scheduler_type="cosine", warmup_steps=0.1, max_length=256,
                   gradient_checkpointing=False, bf16=False, use_cpu=True, optim="adamw_torch_fused",
                   logging_steps=1, save_steps=steps, report_to="none", seed=42, disable_tqdm=True)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=config, train_dataset=dataset, peft_config=lora, callbacks=[clock])
trainer.train()
tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry][-1]
print(json.dumps({"seconds": clock.seconds, "tokens": tokens, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def demo_model() -> str:
    """The folder of the model, fetched once."""
    environment = {**os.environ, "PYTHONPATH": str(trainers_root()), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, "-P", "-m", "trainers.demo_model"], stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout.strip().splitlines()[-1]


def measure() -> list[Row]:
    model, data = demo_model(), str(PACKAGE / "demo" / "support.jsonl")
    ours: dict[str, list[float]] = {"step": [], "speed": [], "peak": [], "launch": []}
    plain: dict[str, list[float]] = {"step": [], "speed": [], "peak": [], "launch": []}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.yaml").write_text(PLAN.format(model=model, data=data, steps=STEPS))
        (Path(folder) / "plain.py").write_text(PLAIN)
        for turn in range(PAIRS):
            out = Path(folder) / f"ours{turn}"
            done = run_process(
                [sys.executable, "-m", "advisor", "run", "plan.yaml", "--no-judge", "--json", "--output", str(out)], cwd=folder, env={"PYTHONPATH": str(trainers_root())}
            )
            measured = json.loads(done.stdout)["stages"][0]["measured"]
            ours["step"].append(measured["train_s"] / STEPS)
            ours["speed"].append(measured["tokens_per_s"])
            ours["peak"].append(measured["peak_bytes"] / 2**30)
            ours["launch"].append(done.wall_s - measured["train_s"])
            done = run_process([sys.executable, "plain.py", model, data, str(STEPS), str(Path(folder) / f"plain{turn}")], cwd=folder)
            said = json.loads(done.stdout.strip().splitlines()[-1])
            plain["step"].append(said["seconds"] / STEPS)
            plain["speed"].append(said["tokens"] / said["seconds"])
            plain["peak"].append(said["peak"] / 2**30)
            plain["launch"].append(done.wall_s - said["seconds"])
    rows = []
    for key, unit in (("speed", "tokens/s"), ("step", "s a step"), ("peak", "GiB"), ("launch", "s launch")):
        rows += [Row("plain TRL script", tuple(plain[key]), unit), Row("advise run", tuple(ours[key]), unit)]
    return rows
