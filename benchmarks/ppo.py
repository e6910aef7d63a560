"""PPO of one policy with all four roles on one base, and with a model for each role: peak memory, time of an update, reward.

Both take the same updates of the same prompts, so their rewards should be the same too. SFT with the same module stands beside,
since its memory is what PPO on one base is held against. `python -m benchmarks ppo`; PPO_BENCHMARK=tiny takes a random tiny model.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from advisor.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process

TITLE = "LoRA PPO on the CPU, float32: one base for four roles against four models; SFT with the same module beside"
UPDATES, REPEATS = 3, 1
STAGE = {"micro_batch_size": 4, "seq_len": 160, "rank": 16, "alpha": 32, "holdout": 0.0, "max_steps": UPDATES, "save_steps": UPDATES}

CHILD = """
import copy, json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace

way, model, data, folder = sys.argv[1:5]
folder = Path(folder)
import torch
from advisor.plan.model import Plan, PlanData, Stage
from trainers.job import make_job
from trainers.machine import MemoryMeter, quiet_libraries, use_cores

quiet_libraries()
use_cores()
own = json.loads(sys.argv[5])
rank = {"rank": own.pop("rank"), "alpha": own.pop("alpha")}
sft = way == "sft"
options = rank | ({} if sft else {"response_tokens": 32, "reward_model": "rm", "kl_limit": 100.0})
stage = Stage(name="x", objective="sft" if sft else "ppo", update="lora", learning_rate=1e-4, grad_accum=1 if sft else 4, options=options, **own)
job = make_job(Plan(model=model, data=PlanData(path=data), stages=(stage,)), stage="x", run=folder / way, folder=folder, judge=False)
if sft:
    from trainers.sft import train
    train(job)
    measured = json.loads((job.output / "result.json").read_text())["measured"]
    print(json.dumps({"peak": measured["peak_bytes"], "update_s": measured["step_s"], "reward": None}))
    sys.exit()

from trainers.loading import load_tokenizer
from trainers.ppo.build import build
from trainers.ppo.steps import prompts_of
from trainers.prepare.prompts import PROMPTS
from trainers.rows import read_prepared
from trainers.updates import update_named

device = torch.device("cpu")
tokenizer = load_tokenizer(job)
prompts = read_prepared(job, tokenizer, PROMPTS, seq_len=own["seq_len"] - 32)
memory = MemoryMeter(device)
ppo, _, _ = build(job, device, update_named("lora"), tokenizer, prompts, folder / "rm")
if way == "separate":  # a base of its own under each role
    for role in list(ppo.roles.parts)[1:]:
        part = ppo.roles.parts[role]
        part.model = copy.deepcopy(part.model)
    from trainers.ppo.rollout import add_hidden_states
    from trainers.ppo.roles import bare
    from trainers.ppo.steps import optimizer_of
    for part in ppo.roles.parts.values():
        vars(bare(part.model)).pop("forward", None)
        add_hidden_states(bare(part.model))
    ppo.optimizer = optimizer_of(stage, job.options, ppo.roles)
memory.reset()
seconds, rewards = [], []
for step in range(own["max_steps"]):
    began = time.perf_counter()
    rewards.append(ppo.update(prompts_of(step, prompts.train, size=stage.effective_batch_size, seed=0))["reward"])
    seconds.append(time.perf_counter() - began)
print(json.dumps({"peak": memory.peak_bytes(), "update_s": sorted(seconds)[len(seconds) // 2], "reward": rewards[-1]}))
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
    found = subprocess.run([sys.executable, "-P", "-m", "trainers.demo_model"], stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout.strip().splitlines()[-1]
    if os.environ.get("PPO_BENCHMARK") != "tiny":
        return found
    code = (
        "import sys, torch; from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer; torch.manual_seed(0); c = AutoConfig.from_pretrained(sys.argv[1]);"
        "c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim = 4, 96, 256, 3, 3, 32; c.layer_types = None;"
        "AutoModelForCausalLM.from_config(c).save_pretrained(sys.argv[2]); AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    run_process([sys.executable, "-c", code, found, str(folder / "tiny")])
    return str(folder / "tiny")


def measure() -> list[Row]:
    found: dict[str, list[dict[str, float]]] = {"separate": [], "one base": [], "sft": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(folder)
        (folder / "child.py").write_text(CHILD)
        run_process([sys.executable, "-c", REWARD_MODEL, model, str(folder / "rm")])
        for _ in range(REPEATS):
            for way, results in found.items():
                done = run_process(
                    [sys.executable, str(folder / "child.py"), way.replace(" ", "_"), model, str(PACKAGE / "demo" / "support.jsonl"), name, json.dumps(STAGE)],
                    env={"PYTHONPATH": str(trainers_root()), "HF_HUB_OFFLINE": "1"},
                )
                results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    names = {"separate": "PPO, a model for each role", "one base": "PPO, one base for four roles", "sft": "SFT with the same module"}
    rows = [Row(names[way], tuple(result["peak"] / 2**30 for result in found[way]), "GiB") for way in ("sft", "one base", "separate")]
    rows += [Row(names[way], tuple(result["update_s"] for result in found[way]), "s an update") for way in ("separate", "one base")]
    rows += [Row(names[way], tuple(result["reward"] for result in found[way]), f"reward after {UPDATES}", True) for way in ("separate", "one base")]
    return rows
