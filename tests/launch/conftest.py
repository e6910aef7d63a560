"""A plan, a machine and the stand-in trainer for tests of the launcher."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.types import Gpu, Hardware
from advisor.launch import Options, run_plan
from advisor.launch.call import Call
from advisor.launch.prepare import prepare_plan
from tests.fake_model import write_fake_model

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "standin"
GIB = 2**30
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
MACHINE = Hardware(
    kind="cpu", origin="probed", cpu_cores=2, ram_total_bytes=8 * 2**30, ram_free_bytes=6 * 2**30,
    software=dict.fromkeys(PACKAGES, "1"),
)  # fmt: skip
RANK = "    rank: 8                # few rows (lora/rank)\n"
PLAN = f"""\
name: shop
model: model
data: {{path: train.jsonl}}
stages:
  - name: sft
    objective: sft
    update: lora
{RANK}    learning_rate: 2e-4
    micro_batch_size: 4
"""
FULL = PLAN.replace("update: lora", "update: full").replace(RANK, "")
SECOND = "  - {name: second, objective: sft, update: lora, learning_rate: 1e-4}\n"
TASKS = PLAN.replace(
    "data: {path: train.jsonl}",
    "tasks: [{name: legal, data: {path: train.jsonl}}, {name: hr, data: {path: hr.jsonl}}]",
)
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 256, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with a model, data and plan.yaml; it is the current folder. Commands to paste have
    to quote its name.
    """
    folder = tmp_path / "my shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("STAND_IN", raising=False)
    write_fake_model(folder / "model", CONFIG)
    for name, what in (("train", "number"), ("hr", "form")):
        rows = (chat(f"What is {n}?", f"It is {what} {n} of five.") for n in range(5))
        write_rows(folder / f"{name}.jsonl", rows)
    (folder / "plan.yaml").write_text(PLAN)
    return folder


def chat(question, answer):
    asked, said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": [asked, said]}


def write_rows(path, rows):
    """A file of one JSON document a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gpu(index=0, free=24.0, *, total=24, uuid=True, **more):
    """An RTX 4090, or another GPU; memory in GiB, of which `free` may be None: not known."""
    return Gpu(
        memory_total_bytes=round(total * GIB),
        memory_free_bytes=None if free is None else round(free * GIB),
        uuid=f"GPU-{index}" if uuid else None,
        index=index,
        **{"bf16": True, "compute_capability": (8, 9), "name": "RTX 4090", **more},
    )


def machine(*gpus, kind="cuda", **more):
    return replace(MACHINE, **{"kind": kind, "origin": "stated", "gpus": gpus, **more})


def run(plan="plan.yaml", *, text=None, mode=None, **options):
    """run_plan with the stand-in trainer in this mode, without a GPU, of `plan` or of this text."""
    if text is not None:
        Path(plan).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        if mode is not None:
            patch.setenv("STAND_IN", mode)
        return run_plan(plan, Options(**{"hardware": MACHINE, "trainers": STAND_IN, **options}))


def fails(mode, kind=TrainingFailed, **options):
    """The text of the error with which a run ends whose stand-in trainer behaves so."""
    with pytest.raises(kind) as caught:
        run(mode=mode, **options)
    return caught.value.text()


def refused(kind=InputError, **options):
    """The same of a run that is refused before its trainer starts."""
    return fails("ok", kind, **options)


def call_of(plan="plan.yaml", **options):
    """What `run` would do with these options, before anything is looked up."""
    options = Options(**{"hardware": MACHINE, "trainers": STAND_IN, "output": "out", **options})
    planned = prepare_plan(plan, options)
    return Call(run=planned, options=options, selected=planned.entries)


SCRIPT = """\
import sys
from pathlib import PosixPath
from advisor.ground.errors import AdviseError
from advisor.ground.signals import ignore_further_stops
from tests.launch.conftest import run
PRELUDE
code = 0
try:
    print("done as node", run(**OPTIONS).node, file=sys.stderr)
except AdviseError as error:
    print(error.text(), file=sys.stderr)
    code = error.exit_code
if code == 130:
    ignore_further_stops()
sys.exit(code)
"""


def command(mode, *, prelude="", extra_env=None, **options):
    """(words, environment) of a process that calls `run`, after a prelude of its own."""
    code = SCRIPT.replace("PRELUDE", prelude).replace("OPTIONS", repr(options))
    env = {**os.environ, "STAND_IN": mode, "PYTHONPATH": str(ROOT), **(extra_env or {})}
    return [sys.executable, "-c", code], env


def start(shop, mode, **options):
    """That process, as a Popen."""
    words, env = command(mode, **options)
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=shop, env=env, stdout=pipe, stderr=pipe, text=True)


def child_of(shop, name="sft"):
    """Wait until the stand-in trainer is at work, and give its process number."""
    folder = shop / "out" / "stages" / name
    wait_for((folder / "ready").exists)
    return int((folder / "pid").read_text())


@pytest.fixture
def at_work(shop):
    """`at_work(mode, ...)`: a run in `out` at work, as its process and its trainer's number."""
    started = []

    def begin(mode="wait", **options):
        started.append(start(shop, mode, output="out", **options))
        return started[-1], child_of(shop)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def record_of(folder="out"):
    """What run.json says."""
    return json.loads(Path(folder, "run.json").read_text())


def flip(path):
    """Turn a bit of the last byte: the file has other content and the same size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def wait_for(condition, seconds=60.0):
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
