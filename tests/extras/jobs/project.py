"""Plans to be written for a scheduler, small enough for a test."""

import json
import random
from pathlib import Path

from tests.fake_model import write_fake_model

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
}  # fmt: skip
DATA = "the shop's data.jsonl"  # names are people's own
WORDS = [
    "time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "eye",
]  # fmt: skip
PLAN = """\
version: 1
name: shop
model: {model}
{data}
stages:
  - {{name: sft, objective: sft, update: lora}}
launch: {launch}
origin: {{answers: {{gpu: {{name: H100 SXM, count: 8}}}}}}
"""
TASKS = """\
tasks:
  - name: legal
    data: {path: "the shop's data.jsonl"}
  - name: hr
    data: {path: hr.jsonl}"""


TWO_MACHINES = "{device: cuda, processes: 8, nodes: 2, strategy: fsdp}"


def write_rows(path: Path, count: int = 200) -> None:
    """Questions and answers, all different."""
    rng = random.Random(count)
    path.write_text(
        "".join(
            json.dumps(
                {key: " ".join(rng.choices(WORDS, k=size)) for key, size in
                 (("question", 30), ("answer", 60))}
            ) + "\n"
            for _ in range(count)
        )
    )  # fmt: skip


def write_project(
    folder: Path,
    *,
    model: str = "Qwen/Qwen3-8B",
    launch: str = "{device: cuda}",
    data: str | None = None,
) -> Path:
    """A plan with its data; returns the plan file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / DATA)
    write_rows(folder / "hr.jsonl", 400)
    write_fake_model(folder / "base", CONFIG)
    data = data or f"data: {json.dumps({'path': DATA})}"
    path = folder / "plan.yaml"
    path.write_text(PLAN.format(model=model, launch=launch, data=data))
    return path
