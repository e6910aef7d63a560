"""Steps of GRPO and PPO on the CPU with answers generated as they were before trainers/rollouts/
and as they are now.

Before: GRPO made one call for each micro-batch of prompts and PPO one for 32 answers, with the LoRA
beside its base. The old way stands here alone. Both ways take the same updates of the same prompts.
`python -m benchmarks rollouts`; PPO_BENCHMARK=tiny takes a random tiny model. Seconds of CPU stand
beside those of the clock, because they depend less on what else the machine does;
ROLLOUTS_STEPS is how many steps each way takes.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process
from benchmarks.ppo import model_folder

TITLE = (
    "GRPO and PPO with LoRA on the CPU, float32: generating as before, and through one interface"
)
STEPS = int(os.environ.get("ROLLOUTS_STEPS", "2"))
RESPONSE_TOKENS, PROMPT_TOKENS, GENERATIONS = 24, 48, 4
STAGES = {
    # 6 prompts with 4 answers each a step, one prompt in a micro-batch
    "grpo": {"micro_batch_size": 1, "grad_accum": 6, "old_at_once": GENERATIONS},
    # 48 prompts a step, learned from once
    "ppo": {"micro_batch_size": 4, "grad_accum": 12, "old_at_once": 32},
}
REWARD = "def score(prompts, completions, **_):\n    return [t.count('e') for t in completions]\n"
CHILD = """
import json, sys, time
from pathlib import Path

way, objective, model, data, folder = sys.argv[1:6]
own, folder = json.loads(sys.argv[6]), Path(sys.argv[5])
import torch
from contextlib import nullcontext
from importlib import import_module
from advisor.plan.model import Plan, PlanData, Stage
from trainers.say.progress import Parts
from trainers.stage.load import build_trainer
from trainers.stage.load import load_stage
from trainers.job.job import make_job
from trainers.job.libraries import quiet_libraries
from trainers.job.machine import use_cores
from trainers.rollouts import transformers_engine

quiet_libraries()
use_cores()
old_at_once, steps, tokens = own.pop("old_at_once"), own.pop("steps"), own.pop("response_tokens")
if way == "before":
    transformers_engine.merged = lambda model: nullcontext()
    transformers_engine.rows_at_once = lambda models, *, most, **_: min(most, old_at_once)
spent = {"wall": 0.0, "cpu": 0.0, "calls": 0}
real = transformers_engine.TransformersEngine.generate

def generate(self, *arguments, **keys):
    began, cpu = time.perf_counter(), time.process_time()
    try:
        return real(self, *arguments, **keys)
    finally:
        spent["wall"] += time.perf_counter() - began
        spent["cpu"] += time.process_time() - cpu

transformers_engine.TransformersEngine.generate = generate
batch = transformers_engine.generate_batch

def counted(*arguments, **keys):
    spent["calls"] += 1
    return batch(*arguments, **keys)

transformers_engine.generate_batch = counted
options = {"response_tokens": tokens, "reward": "own.py:score", "rank": 16, "alpha": 32}
options |= {"generations": own.pop("generations")} if objective == "grpo" else {"kl_limit": 100.0, "missing_end_penalty": 0.0, "ppo_epochs": 1}
own.pop("generations", None)
stage = Stage(name="x", objective=objective, update="lora", learning_rate=1e-4, scheduler="constant", warmup=0.0, max_steps=steps, save_steps=1000,
              holdout=0.0, truncation="drop", weights_dtype="float32", options=options, **own)
(folder / "own.py").write_text(sys.argv[7])
job = make_job(Plan(model=model, data=PlanData(path=data), stages=(stage,)), stage="x", run=folder / way, folder=folder, judge=False)
norms = []
if objective == "ppo":
    from trainers.ppo.loop import shuffled
    from trainers.ppo.objective import PPO
    from trainers.stage.load import build_stage

    with Parts("ppo", shown=False) as parts:
        loaded = load_stage(job, PPO(), parts)
        ppo = build_stage(loaded, processes=1).trainer
    size = stage.effective_batch_size
    began, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        prompts = shuffled(loaded.data.train, range(step * size, (step + 1) * size), seed=0)
        norms.append(ppo.update(prompts)["grad_norm"])
else:
    from transformers import TrainerCallback

    class Norms(TrainerCallback):
        store = None  # no checkpoints

        def on_log(self, args, state, control, logs=None, **_):
            norms.extend([logs["grad_norm"]] if "grad_norm" in logs else [])

    objective = import_module("trainers.grpo").GRPO()
    stage_ = load_stage(job, objective, Parts("grpo", shown=False))
    trainer = build_trainer(stage_, stage_.sequences, steps=steps, callback=Norms())
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
print(json.dumps({
    "step_s": (time.perf_counter() - began) / steps, "step_cpu_s": (time.process_time() - cpu) / steps,
    "generate_s": spent["wall"] / steps, "generate_cpu_s": spent["cpu"] / steps, "calls": spent["calls"] / steps, "norms": norms,
}))
"""
SHOWN = {
    "step_s": "s a step",
    "step_cpu_s": "CPU s a step",
    "generate_s": "s generating",
    "generate_cpu_s": "CPU s generating",
    "calls": "calls a step",
}


def measure() -> list[Row]:
    rows = []
    data = str(PACKAGE / "demo" / "support.jsonl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(folder)
        (folder / "child.py").write_text(CHILD)
        for objective, keys in STAGES.items():
            for way in ("before", "now"):
                own = {
                    **keys, "steps": STEPS, "response_tokens": RESPONSE_TOKENS,
                    "generations": GENERATIONS, "seq_len": PROMPT_TOKENS + RESPONSE_TOKENS,
                }  # fmt: skip
                done = run_process(
                    [
                        sys.executable, str(folder / "child.py"), way, objective, model, data, name,
                        json.dumps(own), REWARD,
                    ],
                    env={"PYTHONPATH": str(trainers_root()), "HF_HUB_OFFLINE": "1"},
                )  # fmt: skip
                found = json.loads(done.stdout.strip().splitlines()[-1])
                # Without a gradient nothing was learned, and nothing was measured.
                assert len(found["norms"]) == STEPS
                assert all(norm > 0 for norm in found["norms"]), found["norms"]
                rows += [
                    Row(f"{objective.upper()} {way}", (found[key],), f"{objective} {unit}")
                    for key, unit in SHOWN.items()
                ]
    return sorted(
        rows,
        key=lambda row: (
            row.unit.split()[0],
            list(SHOWN.values()).index(row.unit.split(" ", 1)[1]),
        ),
    )
