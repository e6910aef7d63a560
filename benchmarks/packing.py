"""LoRA on the CPU with rows at random, with rows grouped by length, and with packed rows: the same
rows, and as many of them in an optimizer step.

On conversations with alpaca's lengths (ADVISE_BENCHMARK_DATA: an alpaca file instead) and on
conversations of several turns. Every training must have gradients above zero and a falling loss.
ADVISE_BENCHMARK_ROWS, ADVISE_BENCHMARK_PAIRS and ADVISE_BENCHMARK_LAYERS (the first layers of the
model alone) make it longer or shorter.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from advisor.advice.search.packing import packing_of
from advisor.data import profile
from advisor.data.measure import Depth
from advisor.data.templates.tokenizer import model_tokenizer
from advisor.ground.resources import trainers_root
from benchmarks.measuring import Process, Row, run_process
from benchmarks.side_by_side.model import demo_model
from benchmarks.side_by_side.rows import conversations, spread

ROWS = int(os.environ.get("ADVISE_BENCHMARK_ROWS", "160"))
PAIRS = int(os.environ.get("ADVISE_BENCHMARK_PAIRS", "1"))
LAYERS = int(os.environ.get("ADVISE_BENCHMARK_LAYERS", "0"))  # 0: all
TITLE = (
    f"LoRA of {f'the first {LAYERS} layers of ' if LAYERS else ''}SmolLM2-135M-Instruct on {ROWS}"
    " rows, read once, CPU: what is not padding"
)
PER_STEP, MICRO, TURNS = 16, 4, 6
PLAN: dict[str, Any] = {
    "name": "sft", "objective": "sft", "update": "lora", "rank": 16, "alpha": 32,
    "target_modules": "all-linear", "weights_dtype": "float32", "precision": "pure",
    "learning_rate": 3e-4, "epochs": 1, "warmup": 0.1, "scheduler": "cosine",
    "holdout": 0.1, "keep": "best", "seed": 42,
}  # fmt: skip


def chats(count: int) -> list[list[dict[str, str]]]:
    """Conversations of one to six turns, each as long as a row of alpaca."""
    turns = conversations(TURNS * count)
    draw, found = random.Random(3), []
    for _ in range(count):
        wanted = min(TURNS, 1 + int(draw.expovariate(0.5)))
        found.append([message for _ in range(wanted) for message in turns.pop()])
    return found


def shortened(model: str, folder: Path) -> str:
    """The folder of the model with its first LAYERS layers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.model.layers = loaded.model.layers[:LAYERS]
    loaded.config.num_hidden_layers = LAYERS
    if getattr(loaded.config, "layer_types", None):
        loaded.config.layer_types = loaded.config.layer_types[:LAYERS]
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def ways(path: Path, model: str) -> dict[str, dict[str, Any]]:
    """The keys of each way of batching: sixteen rows a step, packed as advice packs on a GPU."""
    tokens = profile(str(path), Depth(full=True), count_tokens=model_tokenizer(model, {})[0]).tokens
    assert tokens is not None
    seq_len = -(-tokens.longest // 64) * 64 + 64
    packing = packing_of(tokens, rows=PER_STEP, cards=1, longest=seq_len, most=4096)
    assert packing is not None, "no number of sequences holds the rows of a step"
    rows = {"micro_batch_size": MICRO, "grad_accum": PER_STEP // MICRO, "seq_len": seq_len}
    return {
        "rows at random": rows,
        "group_by_length": {**rows, "group_by_length": True},
        "packing": {
            "packing": True, "micro_batch_size": 1, "grad_accum": packing.sequences,
            "seq_len": packing.seq_len,
        },
    }  # fmt: skip


def trained(folder: Path, data: Path, model: str, keys: dict[str, Any]) -> tuple[Process, Any]:
    """(the process of `advise run`, the record of its stage)."""
    plan = {
        "version": 1, "name": "benchmark", "model": model,
        "data": {"path": str(data), "format": "messages"},
        "stages": [{**PLAN, **keys}], "launch": {"device": "cpu"},
    }  # fmt: skip
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "advisor", "run", "plan.yaml", "--no-judge", "--json"]
    done = run_process(
        [*command, "--output", "run"],
        cwd=str(folder),
        env={"PYTHONPATH": str(trainers_root()), "HF_HUB_OFFLINE": "1"},
    )
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    assert min(line["grad_norm"] for line in metrics) > 0
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    return done, json.loads(done.stdout)["stages"][0]


UNITS = (
    "% of computed tokens are padding",
    "s of training",
    "CPU s of the command",
    "learned tokens/s",
    "GiB peak memory",
    "optimizer steps",
    "held-out loss after",
)


def numbers(done: Process, stage: Any) -> list[float]:
    """What one training came to, in the order of UNITS."""
    measured = stage["measured"]
    return [
        100 * (1 - measured["tokens"] / measured["computed_tokens"]),
        measured["train_s"],
        done.cpu_s,
        measured["learned_tokens"] / measured["train_s"],
        measured["peak_bytes"] / 2**30,
        stage["steps"],
        stage["held_out"]["last_loss"],
    ]


def measure() -> list[Row]:
    model = demo_model()
    found: dict[tuple[str, str], list[list[float]]] = {}
    files = {
        "conversations with alpaca's lengths": spread(conversations(1000), ROWS),
        "conversations of several turns": chats(ROWS),
    }
    with tempfile.TemporaryDirectory() as temporary:
        if LAYERS:
            model = shortened(model, Path(temporary) / "model")
        for turn in range(PAIRS):
            for number, (name, rows) in enumerate(files.items()):
                data = Path(temporary) / f"{number}.jsonl"
                data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
                for way, keys in ways(data, model).items():
                    folder = Path(temporary) / f"{turn}-{number}-{way.replace(' ', '-')}"
                    one = numbers(*trained(folder, data, model, keys))
                    found.setdefault((name, way), []).append(one)
                    shown = ", ".join(
                        f"{value:.4g} {unit}" for value, unit in zip(one, UNITS, strict=True)
                    )
                    print(f"  {name}: {way}: {shown}", file=sys.stderr, flush=True)
    return [
        Row(way, tuple(run[place] for run in runs), unit, group=f"{name}: {unit}")
        for name in files
        for place, unit in enumerate(UNITS)
        for (group, way), runs in found.items()
        if group == name
    ]
