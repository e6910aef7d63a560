"""The same model, rows, steps and settings through `advise run` and through a minimal TRL script,
in turn.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process

TITLE = (
    "LoRA of SmolLM2-135M-Instruct on the bundled data, CPU: training loop alone, launch counted"
    " apart"
)
STEPS, PAIRS = 12, 3

PLAN = """version: 1
name: benchmark
model: {model}
data: {{path: {data}, format: messages}}
stages:
  - {{name: sft, objective: sft, update: {update}, weights_dtype: float32, learning_rate: 3.0e-4, max_steps: {steps}, {keys},
     warmup: 0.1, scheduler: cosine, optimizer: adamw_fused, micro_batch_size: 4, grad_accum: 1, seq_len: 256, holdout: 0.0, seed: 42, save_steps: {steps}}}
launch: {{device: cpu}}
"""

PLAIN = """
import json, resource, sys, time
import peft
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

model, data, steps, module = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[5])
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
config_of_module = getattr(peft, module.pop("class"))(task_type="CAUSAL_LM", **module) if module else None
trainer = SFTTrainer(model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=config, train_dataset=dataset, peft_config=config_of_module, callbacks=[clock])
trainer.train()
tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry][-1]
print(json.dumps({"seconds": clock.seconds, "tokens": tokens, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def demo_model() -> str:
    """The folder of the model, fetched once."""
    environment = {**os.environ, "PYTHONPATH": str(trainers_root()), "PYTHONSAFEPATH": "1"}
    return (
        subprocess.run(
            [sys.executable, "-P", "-m", "trainers.tools.demo_model"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            check=True,
        )
        .stdout.strip()
        .splitlines()[-1]
    )


@dataclass(frozen=True)
class Setting:
    """An update as a plan states it (`keys`, flow YAML) and as a plain script does (`module`:
    PEFT's class and its arguments; empty for full).
    """

    update: str
    keys: str
    module: Mapping[str, object]


LORA = Setting(
    "lora",
    "rank: 16, alpha: 32, target_modules: all-linear",
    {"class": "LoraConfig", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
)
UNITS = {"speed": "tokens/s", "step": "s a step", "peak": "GiB", "launch": "s launch"}


def ours(folder: Path, name: str, setting: Setting, model: str, data: str) -> dict[str, float]:
    """One training by `advise run`: keys of UNITS."""
    (folder / "plan.yaml").write_text(
        PLAN.format(model=model, data=data, steps=STEPS, update=setting.update, keys=setting.keys)
    )
    command = [
        sys.executable,
        "-m",
        "advisor",
        "run",
        "plan.yaml",
        "--no-judge",
        "--json",
        "--output",
        str(folder / name),
    ]
    done = run_process(command, cwd=str(folder), env={"PYTHONPATH": str(trainers_root())})
    measured = json.loads(done.stdout)["stages"][0]["measured"]
    seconds = measured["train_s"]
    return {
        "step": seconds / STEPS,
        "speed": measured["tokens_per_s"],
        "peak": measured["peak_bytes"] / 2**30,
        "launch": done.wall_s - seconds,
    }


def plain(folder: Path, name: str, setting: Setting, model: str, data: str) -> dict[str, float]:
    """The same training by a minimal script over TRL and PEFT: keys of UNITS."""
    (folder / "plain.py").write_text(PLAIN)
    done = run_process(
        [
            sys.executable,
            "plain.py",
            model,
            data,
            str(STEPS),
            str(folder / name),
            json.dumps(setting.module),
        ],
        cwd=str(folder),
    )
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "step": said["seconds"] / STEPS,
        "speed": said["tokens"] / said["seconds"],
        "peak": said["peak"] / 2**30,
        "launch": done.wall_s - said["seconds"],
    }


def measure() -> list[Row]:
    model, data = demo_model(), str(PACKAGE / "demo" / "support.jsonl")
    sides = {"plain TRL script": plain, "advise run": ours}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(PAIRS):
            for name, side in sides.items():
                seen[name].append(side(Path(folder), f"{side.__name__}{turn}", LORA, model, data))
    return [
        Row(name, tuple(values[key] for values in seen[name]), unit)
        for key, unit in UNITS.items()
        for name in sides
    ]
