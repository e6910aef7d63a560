"""PPO of one policy with all four roles on one base, and with a model for each role: peak memory,
time of an update, reward.

Both take the same updates of the same prompts, so their rewards should be the same too. SFT with
the same module stands beside, since its memory is what PPO on one base is held against. `python -m
benchmarks ppo`; PPO_BENCHMARK=tiny takes a random tiny model. PPO_BENCHMARK_TRL=/path/to/python
adds TRL's PPO, where that environment has a TRL that still holds it (1.12 does).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process

TITLE = (
    "LoRA PPO on the CPU, float32: one base for four roles against four models; SFT with the same"
    " module beside"
)
UPDATES, REPEATS = 3, 1
MICRO_BATCH, ACCUMULATED, RESPONSE_TOKENS = (
    4,
    2,
    48,
)  # an update is 8 answers, learned from four times
# at most; the few longer prompts would make one side pad more than the other, as chance shuffles
# them
PROMPT_TOKENS = 48
STAGE = {
    "micro_batch_size": MICRO_BATCH,
    "seq_len": PROMPT_TOKENS + RESPONSE_TOKENS,
    "rank": 16,
    "alpha": 32,
    "holdout": 0.0,
    "truncation": "drop",
    "max_steps": UPDATES,
    "save_steps": UPDATES,
    "response_tokens": RESPONSE_TOKENS,
    "grad_accum": ACCUMULATED,
}

CHILD = """
import copy, json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace

way, model, data, folder = sys.argv[1:5]
folder = Path(folder)
import torch
from advisor.plan.model import Plan, PlanData, Stage
from trainers.job.job import make_job
from trainers.job.libraries import quiet_libraries
from trainers.job.machine import use_cores

quiet_libraries()
use_cores()
own = json.loads(sys.argv[5])
answers = {key: own.pop(key) for key in ("response_tokens", "grad_accum")}
rank = {"rank": own.pop("rank"), "alpha": own.pop("alpha")}
sft = way == "sft"
options = rank | ({} if sft else {"response_tokens": answers["response_tokens"], "reward_model": "rm", "kl_limit": 100.0, "missing_end_penalty": 0.0})
stage = Stage(name="x", objective="sft" if sft else "ppo", update="lora", learning_rate=1e-4, grad_accum=1 if sft else answers["grad_accum"], options=options, **own)
job = make_job(Plan(model=model, data=PlanData(path=data), stages=(stage,)), stage="x", run=folder / way, folder=folder, judge=False)
if sft:
    from trainers.sft import train
    train(job)
    measured = json.loads((job.output / "result.json").read_text())["measured"]
    print(json.dumps({"peak": measured["peak_bytes"], "update_s": measured["step_s"], "reward": None}))
    sys.exit()

from trainers.ppo.loop import shuffled
from trainers.ppo.objective import PPO
from trainers.say.progress import Parts
from trainers.stage.load import build_stage
from trainers.stage.load import load_stage

with Parts("ppo", shown=False) as parts:
    loaded = load_stage(job, PPO(), parts)
    ppo = build_stage(loaded, processes=1).trainer
memory, prompts = loaded.memory, loaded.data.train
if way == "separate":  # a base of its own under each role
    for role in list(ppo.roles.parts)[1:]:
        part = ppo.roles.parts[role]
        part.model = copy.deepcopy(part.model)
    from trainers.ppo.learning import PPOArguments, make_optimizer
    from trainers.updates.experts import unwrapped
    from trainers.step.answer_loss import add_hidden_call
    for part in ppo.roles.parts.values():
        vars(unwrapped(part.model)).pop("forward", None)
        add_hidden_call(unwrapped(part.model))
    ppo.learner.optimizer = ppo.optimizer = make_optimizer(stage, job.options, ppo.roles, PPOArguments())
memory.reset()
seconds, rewards = [], []
for step in range(own["max_steps"]):
    began = time.perf_counter()
    size = stage.effective_batch_size
    rewards.append(ppo.update(shuffled(prompts, range(step * size, (step + 1) * size), seed=0))["reward"])
    seconds.append(time.perf_counter() - began)
print(json.dumps({"peak": memory.peak_bytes(), "update_s": sorted(seconds)[len(seconds) // 2], "reward": rewards[-1]}))
"""

TRL = """
import json, resource, sys, time

model, data, rm, out = sys.argv[1:5]
steps, micro, accumulated, longest, response = map(int, sys.argv[5:10])
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))


tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
rows = [json.loads(line)["messages"][:-1] for line in open(data)]
ids = [tokenizer.apply_chat_template(row, add_generation_prompt=True, tokenize=True, return_dict=False) for row in rows]
dataset = Dataset.from_dict({"input_ids": [row for row in ids if len(row) <= longest]})
before = resident("VmRSS")
policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
score, value = (AutoPeftModelForSequenceClassification.from_pretrained(rm, num_labels=1, dtype=torch.float32).merge_and_unload() for _ in range(2))
for part in (score, value):
    part.config.pad_token_id = tokenizer.pad_token_id
    part.requires_grad_(part is value)


class Clock(TrainerCallback):
    seconds = []
    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        Clock.seconds.append(now - Clock.last)
        Clock.last = now


config = PPOConfig(output_dir=out, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulated, num_ppo_epochs=4, num_mini_batches=1,
                   total_episodes=micro * accumulated * steps,
                   local_rollout_forward_batch_size=micro, response_length=response, stop_token="eos", temperature=1.0, kl_coef=0.05, learning_rate=1e-4,
                   gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", save_strategy="no", num_sample_generations=0, logging_steps=1, disable_tqdm=True)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = PPOTrainer(args=config, processing_class=tokenizer, model=policy, ref_model=None, reward_model=score, value_model=value,
                     train_dataset=dataset, eval_dataset=dataset.select(range(4)),
                     peft_config=lora, callbacks=[Clock()])
Clock.last = time.perf_counter()
trainer.train()
rewards = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
seconds = sorted(Clock.seconds)
print(json.dumps({"peak": resident("VmHWM") - before, "update_s": seconds[len(seconds) // 2], "reward": rewards[-1]}))
"""

REWARD_MODEL = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=1, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"))
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def model_folder(folder: Path) -> str:
    """SmolLM2-135M-Instruct, or a random model of its tokenizer where PPO_BENCHMARK says tiny."""
    environment = {**os.environ, "PYTHONPATH": str(trainers_root()), "PYTHONSAFEPATH": "1"}
    found = (
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
    if os.environ.get("PPO_BENCHMARK") != "tiny":
        return found
    code = (
        "import sys, torch; from transformers import AutoConfig, AutoModelForCausalLM,"
        " AutoTokenizer; torch.manual_seed(0); c ="
        " AutoConfig.from_pretrained(sys.argv[1]);c.num_hidden_layers, c.hidden_size,"
        " c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim = 4, 96,"
        " 256, 3, 3, 32; c.layer_types ="
        " None;AutoModelForCausalLM.from_config(c).save_pretrained(sys.argv[2]);"
        " AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    run_process([sys.executable, "-c", code, found, str(folder / "tiny")])
    return str(folder / "tiny")


def measure() -> list[Row]:
    trl = os.environ.get("PPO_BENCHMARK_TRL")
    found: dict[str, list[dict[str, float]]] = {"separate": [], "one_base": [], "sft": []} | (
        {"trl": []} if trl else {}
    )
    data = str(PACKAGE / "demo" / "support.jsonl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(folder)
        (folder / "child.py").write_text(CHILD)
        (folder / "trl_ppo.py").write_text(TRL)
        run_process([sys.executable, "-c", REWARD_MODEL, model, str(folder / "rm")])
        for _ in range(REPEATS):
            for way, results in found.items():
                if way == "trl":
                    sizes = map(
                        str, (UPDATES, MICRO_BATCH, ACCUMULATED, PROMPT_TOKENS, RESPONSE_TOKENS)
                    )
                    command = [
                        str(trl),
                        str(folder / "trl_ppo.py"),
                        model,
                        data,
                        str(folder / "rm"),
                        str(folder / "trl"),
                        *sizes,
                    ]
                else:
                    command = [
                        sys.executable,
                        str(folder / "child.py"),
                        way,
                        model,
                        data,
                        name,
                        json.dumps(STAGE),
                    ]
                done = run_process(
                    command,
                    env={
                        "PYTHONPATH": "" if way == "trl" else str(trainers_root()),
                        "HF_HUB_OFFLINE": "1",
                    },
                )
                results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    names = {
        "sft": "SFT with the same module",
        "one_base": "PPO, one base for four roles",
        "separate": "PPO, a model for each role",
        "trl": "PPO of TRL",
    }
    rows = [
        Row(names[way], tuple(result["peak"] / 2**30 for result in found[way]), "GiB")
        for way in names
        if way in found
    ]
    ppo = [way for way in ("trl", "separate", "one_base") if way in found]
    rows += [
        Row(names[way], tuple(result["update_s"] for result in found[way]), "s an update")
        for way in ppo
    ]
    rows += [
        Row(
            names[way],
            tuple(result["reward"] for result in found[way]),
            f"reward after {UPDATES}",
            True,
        )
        for way in ppo
    ]
    return rows
