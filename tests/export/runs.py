"""Run folders as a finished run leaves them, small enough to write in a test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Kit.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(folder: Path, template: str | None = CHATML, *, ends: Any = 2) -> None:
    """Tokenizer files, the chat template and generation_config.json of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {text: number for number, text in enumerate(SPECIAL)}
    added = [{"id": ids[text], "content": text, "special": True} for text in SPECIAL]
    model = {"type": "BPE", "vocab": {**ids, "a": 3}, "merges": []}
    files = {
        "tokenizer.json": json.dumps({"added_tokens": added, "model": model}),
        "tokenizer_config.json": json.dumps({"bos_token": None, "eos_token": "<|im_end|>"}),
        "chat_template.jinja": template,
        "generation_config.json": None if ends is None else json.dumps({"eos_token_id": ends}),
    }
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)


def write_adapter(folder: Path, *, rank: int = 4, **config: Any) -> None:
    """A LoRA on two layers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config})
    )
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    save_file(
        {
            name.format(layer, side): np.zeros(shape, np.float32)
            for layer in (0, 1)
            for side, shape in (("A", (rank, 6)), ("B", (6, rank)))
        },
        folder / "adapter_model.safetensors",
    )


def write_run(
    folder: Path,
    *,
    tasks: tuple[str, ...] = (),
    update: str = "lora",
    objective: str = "sft",
    template: str | None = CHATML,
    settings: dict[str, Any] | None = None,
    rank: int = 4,
) -> Path:
    """A run folder with finished stages, one for each task."""
    names = [f"sft-{task}" for task in tasks] or ["sft"]
    stages, resolved = [], {}
    for task, name in zip(tasks or [None], names, strict=True):
        place = folder / "stages" / name
        write_tokenizer(place, template)
        if update == "lora":
            write_adapter(place, rank=rank)
        stages.append(
            {
                "name": name, "task": task, "objective": objective, "update": update,
                "status": "done", "folder": f"stages/{name}", "quantization": None,
            }
        )  # fmt: skip
        resolved[name] = {"model": "org/base", "options": {"rank": rank}, **(settings or {})}
    record = {
        "schema_version": 1, "name": "shop", "status": "done", "model": "org/base",
        "max_steps": None, "stages": stages, "resolved": resolved, "finished_at": "2026-01-02",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder
