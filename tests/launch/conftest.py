"""A plan, a machine and the stand-in trainer for tests of the launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advisor.ground.types import Hardware
from advisor.launch import Options, run_plan
from advisor.launch.call import Call
from advisor.launch.prepare import prepare_plan
from tests.fake_model import write_fake_model

STAND_IN = Path(__file__).parent / "standin"
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
MACHINE = Hardware(
    kind="cpu",
    origin="probed",
    cpu_cores=2,
    ram_total_bytes=8 * 2**30,
    ram_free_bytes=6 * 2**30,
    software=dict.fromkeys(PACKAGES, "1"),
)
PLAN = """\
name: shop
model: model
data: {path: train.jsonl}
stages:
  - name: sft
    objective: sft
    update: lora
    rank: 8                # few rows (lora/rank)
    learning_rate: 2e-4
    micro_batch_size: 4
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with a model, data and plan.yaml; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAND_IN", raising=False)
    write_fake_model(tmp_path / "model", CONFIG)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"It is number {n} of five."},
            ]
        }
        for n in range(5)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def run(plan="plan.yaml", **options):
    """run_plan with the stand-in trainer on a machine without a GPU."""
    return run_plan(plan, Options(**{"hardware": MACHINE, "trainers": STAND_IN, **options}))


def call_of(plan="plan.yaml", **options):
    """What `run` would do with these options, before anything is looked up."""
    options = Options(**{"hardware": MACHINE, "trainers": STAND_IN, "output": "out", **options})
    planned = prepare_plan(plan, options)
    return Call(run=planned, options=options, selected=planned.entries)


def start(shop, mode, *, extra_env=None, **options):
    """`run` in a process of its own, as a Popen."""
    code = (
        "import sys\nfrom advisor.ground.errors import AdviseError\nfrom tests.launch.conftest"
        " import run\ntry:\n run(**OPTIONS)\nexcept AdviseError as e:\n print(e.text(),"
        " file=sys.stderr); sys.exit(e.exit_code)"
    )
    env = {
        **os.environ,
        "STAND_IN": mode,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **(extra_env or {}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code.replace("OPTIONS", repr(options))],
        cwd=shop,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=20.0):
    """Wait until the condition holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    """True while the process runs (a zombie counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid):
    """End a process for certain, if it still exists."""
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def running(shop):
    """Process numbers of trainers at work below the folder, and of their launcher."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"\0trainers\0sft\0" in words and str(shop).encode() in words:
                found.append(int(entry.name))
    return found
