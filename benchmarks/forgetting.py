"""What SmolLM2-135M forgets of a house style, with and without its own answers mixed in: the loss on
the fixed general prompts, and how many requests for a format it still keeps to. About 20 minutes on
two idle cores.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process
from benchmarks.side_by_side.model import demo_model

TITLE = "SFT of SmolLM2-135M-Instruct on 200 rows of one style, CPU: with and without `replay`"
PLAN = """version: 1
name: forgetting
model: {model}
data: {{path: {data}}}
stages:
  - {{name: sft, objective: sft, update: lora, weights_dtype: float32, epochs: 1, micro_batch_size: 4, seq_len: 512, holdout: 0.1}}
launch: {{device: cpu}}
"""
UPDATES = {
    "LoRA": ("update=lora", "learning_rate=1e-3", "rank=16"),
    "full": ("update=full", "learning_rate=1e-4"),
}
REPLAYS = {
    "alone": (),
    "replay 20 %": ("replay={rows: 500}",),
    "replay 33 %": ("replay={rows: 500}", "replay_share=0.33"),
}


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text, re.IGNORECASE | re.DOTALL) is not None


def _is_json(kind: type, length: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            found = json.loads(text)
        except ValueError:
            return False
        return isinstance(found, kind) and len(found) == length

    return check


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


# Own requests, each with what an answer that keeps to it looks like; none is in the bundled prompts.
FORMATS: dict[str, Callable[[str], bool]] = {
    "Answer with yes or no only: Is fire hot?": _matches(r"(yes|no)\W*"),
    "Answer with true or false only: Stones can swim.": _matches(r"(true|false)\W*"),
    "Reply with a single word: Which season comes after winter?": _matches(r"\w+\W*"),
    "Name the day after Monday in one word.": _matches(r"\w+\W*"),
    "What is 6 plus 7? Answer with the number alone.": _matches(r"\d+\W*"),
    "Give a digit only: How many wheels does a car have?": _matches(r"\d\W*"),
    "Write the numbers from 3 to 6, separated by commas.": _matches(r"3, ?4, ?5, ?6\W*"),
    "Write three words that begin with b, separated by commas.": _matches(r"b\w*, ?b\w*, ?b\w*\W*"),
    "Repeat this word four times, separated by spaces: lamp": _matches(r"lamp lamp lamp lamp\W*"),
    "Write the word cat in capital letters.": lambda text: text.strip('."') == "CAT",
    "Answer in capital letters only: What do you drink in the morning?": str.isupper,
    "Name a city, in quotation marks.": _matches(r'"[^"]+"\W*'),
    "List exactly three vegetables, one per line.": lambda text: len(_lines(text)) == 3,
    "Write a bulleted list of four tools, nothing else.": lambda text: (
        len(_lines(text)) == 4 and all(re.match(r"\s*[-*•]", line) for line in _lines(text))
    ),
    "Write a numbered list of two reasons to exercise.": lambda text: bool(
        re.search(r"^1[.)]", text, re.MULTILINE) and re.search(r"^2[.)]", text, re.MULTILINE)
    ),
    "Return only a JSON list of two colours.": _is_json(list, 2),
    'Return only this as a JSON object: the key "city" with the value Rome.': _is_json(dict, 1),
    "Write a Markdown heading that says Summary.": lambda text: text.startswith("#"),
    "Ask me one question about my holiday, nothing else.": lambda text: (
        text.endswith("?") and text.count("?") == 1
    ),
    "Begin your answer with the word Well: Why do people sleep?": lambda text: (
        text.lower().startswith("well")
    ),
    "Write one sentence of fewer than ten words about cats.": lambda text: (
        len(text.split()) < 10 and text.count(".") <= 1
    ),
    "Describe a river in exactly two sentences.": lambda text: (
        len(re.findall(r"[.!?](?:\s|$)", text)) == 2
    ),
    "Translate to French, the translation alone: Good night.": _matches(r"bonne nuit\W*"),
    "Write the Python line that prints the word hi, code only.": _matches(
        r"(```\w*\s*)?print\(.*\)(\s*```)?"
    ),
}


def formats_kept(folder: str) -> int:
    """How many of the formats the greedy answers of a model, or of a module on its base, keep to."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_module = (Path(folder) / "adapter_config.json").is_file()
    loader: Any = AutoPeftModelForCausalLM if is_module else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.merge_and_unload() if is_module else model
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    turns = [[{"role": "user", "content": prompt}] for prompt in FORMATS]
    asked = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=96, do_sample=False, use_cache=True)
    answers = tokenizer.batch_decode(
        written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return sum(
        check(answer.strip()) for check, answer in zip(FORMATS.values(), answers, strict=True)
    )


def measure() -> list[Row]:
    model, data = demo_model(), str(PACKAGE / "demo" / "support.jsonl")
    found = [
        Row(
            "the base", (float(formats_kept(model)),), f"of {len(FORMATS)}", True, "formats kept to"
        )
    ]
    kept = os.environ.get("ADVISE_BENCHMARK_RUNS")  # runs that are done are not made again
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.yaml").write_text(PLAN.format(model=model, data=json.dumps(data)))
        for update, keys in UPDATES.items():
            for replay, more in REPLAYS.items():
                found += _trained(folder, f"{update}, {replay}", (*keys, *more))
    return sorted(found, key=lambda row: row.group)


def _trained(folder: Path, name: str, keys: tuple[str, ...]) -> list[Row]:
    """What came of one run with these keys of its stage."""
    settings = [part for key in keys for part in ("--set", f"stages.sft.{key}")]
    output = folder / re.sub(r"\W+", "-", name)
    run_process(
        [sys.executable, "-m", "advisor", "run", "plan.yaml", "--output", str(output), *settings],
        cwd=str(folder), env={"PYTHONPATH": str(trainers_root())},
    )  # fmt: skip
    stage = json.loads((output / "run.json").read_text("utf-8"))["stages"][0]
    general, after = stage["evaluation"]["general"], stage["evaluation"]["holdout_loss_after"]
    before = f"{name} (before: {general['before']:.2f})"
    kept = float(formats_kept(str(output / "stages" / "sft")))
    print(name, general, after, kept, stage["times"], file=sys.stderr)
    return [
        Row(before, (general["after"],), "nats", group="loss on the general prompts"),
        Row(name, (after,), "nats", group="loss on held-out rows of the style"),
        Row(name, (kept,), f"of {len(FORMATS)}", True, "formats kept to"),
    ]
