"""Plans that train a tiny random model in about a second, one for each objective that is killed, and
what an uninterrupted run of each leaves.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.conftest import save_tiny_model
from tests.faults.kills.inotify import Watch
from tests.faults.kills.processes import Command, advise

TIMEOUT_S = 240
CLOCK = ("tokens_per_s", "memory_bytes")  # of metrics.jsonl, and *_s: never twice the same
REWARD = (
    "def score(prompts, completions, **columns):\n"
    "    return [text.count('e') / (1 + len(text)) for text in completions]\n"
)
SHORT = "micro_batch_size: 2, seq_len: 96, holdout: 0.1"
LORA = f"update: lora, rank: 4, learning_rate: 1e-2, {SHORT}"
ANSWERS = "response_tokens: 6, generations: 4, reward: 'own.py:score'"
# Objective -> what stands in its plan after the model.
PLANS = {
    "sft": f"""\
data: {{path: chats.jsonl}}
stages:
  - {{name: sft, objective: sft, {LORA}, max_steps: 12, save_steps: 2}}
""",
    "cpt": """\
data: {path: texts.txt}
stages:
  - {name: cpt, objective: cpt, update: full, learning_rate: 1e-3, micro_batch_size: 2, seq_len: 64, holdout: 0.1, max_steps: 9, save_steps: 3}
""",
    "dpo": f"""\
data: {{path: pairs.jsonl}}
stages:
  - {{name: dpo, objective: dpo, {LORA}, max_steps: 8, save_steps: 2}}
""",
    "kto": f"""\
data: {{path: votes.jsonl}}
stages:
  - {{name: kto, objective: kto, {LORA.replace("micro_batch_size: 2", "micro_batch_size: 4")}, max_steps: 6, save_steps: 2}}
""",
    "rm": f"""\
data: {{path: pairs.jsonl}}
stages:
  - {{name: rm, objective: rm, {LORA}, max_steps: 9, save_steps: 3}}
""",
    "rloo": f"""\
data: {{path: pairs.jsonl}}
stages:
  - {{name: rloo, objective: rloo, {LORA}, {ANSWERS}, max_steps: 6, save_steps: 2}}
""",
    "ppo": f"""\
data: {{path: pairs.jsonl}}
stages:
  - {{name: ppo, objective: ppo, {LORA.replace("1e-2", "1e-3")}, reward: 'own.py:score', grad_accum: 2, response_tokens: 6, kl_limit: 100, max_steps: 10, save_steps: 2}}
""",
    "sft>rm>ppo": f"""\
data: {{path: pairs.jsonl}}
stages:
  - {{name: sft, objective: sft, {LORA}, max_steps: 4, save_steps: 2}}
  - {{name: rm, objective: rm, {LORA}, max_steps: 4, save_steps: 2}}
  - {{name: ppo, objective: ppo, {LORA.replace("1e-2", "1e-3")}, grad_accum: 2, response_tokens: 6, kl_limit: 100, max_steps: 6, save_steps: 2}}
""",
    "departments": f"""\
tasks:
  - {{name: legal, data: {{path: legal.jsonl}}}}
  - {{name: hr, data: {{path: hr.jsonl}}}}
  - {{name: sales, data: {{path: sales.jsonl}}}}
stages:
  - {{name: sft, objective: sft, {LORA}, max_steps: 6, save_steps: 2}}
""",
    "two processes": f"""\
data: {{path: chats.jsonl}}
launch: {{processes: 2, strategy: ddp}}
stages:
  - {{name: sft, objective: sft, {LORA}, max_steps: 8, save_steps: 2}}
""",
    "two processes, fsdp": f"""\
data: {{path: chats.jsonl}}
launch: {{processes: 2, strategy: fsdp}}
stages:
  - {{name: sft, objective: sft, update: full,
     learning_rate: 1e-3, {SHORT}, max_steps: 8, save_steps: 2}}
""",
}
SEVERAL = ("two processes", "two processes, fsdp")  # plans that several processes train
SAID = {
    "legal": "See clause {} of the contract.",
    "hr": "Ask for form {}, please.",
    "sales": "That is {} euros, today only!",
}


def fill(folder: Path) -> None:
    """Write the model, the data and the plans into a folder."""
    (folder / "model").mkdir(parents=True)
    save_tiny_model(folder / "model")
    (folder / "own.py").write_text(REWARD)
    write_rows(folder / "chats.jsonl", [chat(n) for n in range(40)])
    write_rows(folder / "pairs.jsonl", [pair(n) for n in range(40)])
    write_rows(folder / "votes.jsonl", [vote(n) for n in range(40)])
    for task, said in SAID.items():
        rows = [{"question": f"What about {n}?", "answer": said.format(n)} for n in range(24)]
        write_rows(folder / f"{task}.jsonl", rows)
    texts = [
        f"The shop sells tea number {n}, cups and kettles in red and green.\n" for n in range(90)
    ]
    (folder / "texts.txt").write_text("\n".join(texts))
    for name, text in PLANS.items():
        (folder / plan_of(name)).write_text(f"name: shop\nmodel: ./model\n{text}")


def plan_of(objective: str) -> str:
    """The file of its plan."""
    return re.sub(r"\W+", "-", objective) + ".yaml"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chat(n: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"Where is parcel {n}?"},
            {"role": "assistant", "content": f"Your parcel {n} is in the red van."},
        ]
    }


def pair(n: int) -> dict[str, Any]:
    good, bad = f"Thank you for writing, order {n}.", f"Go away, order {n}."
    return {"prompt": f"Where is order {n}?", "chosen": good, "rejected": bad}


def vote(n: int) -> dict[str, Any]:
    good, bad = f"Thank you for writing, order {n}.", f"Go away, order {n}."
    return {
        "prompt": f"Where is order {n}?",
        "completion": bad if n % 2 else good,
        "label": n % 2 == 0,
    }


@dataclass(frozen=True)
class Scene:
    """One objective's plan in a folder, its uninterrupted run, and what happened in that."""

    folder: Path
    objective: str
    events: tuple[str, ...]  # paths in the run folder, in the order in which they changed
    result: Mapping[str, Any]
    seconds: float

    @property
    def plan(self) -> str:
        return plan_of(self.objective)

    @property
    def whole(self) -> str:
        """The run folder of the uninterrupted run."""
        return f"whole-{self.plan.removesuffix('.yaml')}"

    @property
    def save_steps(self) -> int:
        """Steps between two checkpoints."""
        return max(int(steps) for steps in re.findall(r"save_steps: (\d+)", PLANS[self.objective]))

    def start(self, output: str, *extra: str, folder: Path | None = None) -> Command:
        """`advise run` on its plan, in a run folder."""
        place = folder or self.folder
        log = place / f"{output}.log"
        return advise("run", self.plan, "--output", output, *extra, folder=place, log=log)


def make_scene(folder: Path, objective: str) -> Scene:
    """The scene, once the plan has trained without interruption.

    Raises RuntimeError if it does not train.
    """
    scene = Scene(folder, objective, (), {}, 0.0)
    (folder / scene.whole).mkdir(exist_ok=True)
    events: list[str] = []
    with Watch(folder / scene.whole) as watch:
        command = scene.start(scene.whole)
        while command.process.poll() is None:
            events += watch.events(0.05)
        events += watch.events(0)
    if command.process.returncode != 0:
        raise RuntimeError(f"{objective} does not train: {command.output}")
    seconds = time.monotonic() - command.began_s
    return Scene(folder, objective, tuple(events), result_of(folder / scene.whole), seconds)


def result_of(run: Path) -> dict[str, Any]:
    """What must be equal in a run that was interrupted: the bytes of the weights, every number of
    metrics.jsonl but those of the clock, and what run.json says of losses and evaluations.
    """
    record = json.loads((run / "run.json").read_text("utf-8"))
    weights = {
        path.relative_to(run).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("stages/*/*.safetensors"))
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    kept = [
        {key: line[key] for key in line if key not in CLOCK and not key.endswith("_s")}
        for line in lines
    ]
    stages = [
        {
            "evaluation": without_clock(stage.get("evaluation")),
            **{
                key: stage.get(key)
                for key in ("name", "status", "steps", "loss_first", "loss_last")
            },
        }
        for stage in record["stages"]
    ]
    order = [stage["name"] for stage in record["stages"]]
    kept.sort(key=lambda line: (order.index(stage_name(line)), line["step"]))
    return {
        "status": record["status"],
        "weights": weights,
        "metrics": kept,
        "stages": stages,
        "cross_evaluation": record.get("cross_evaluation"),
        "left behind": left_behind(run),
    }


def stage_name(line: Mapping[str, Any]) -> str:
    return f"{line['stage']}-{line['task']}" if line.get("task") else str(line["stage"])


def without_clock(value: Any) -> Any:
    """A record without its seconds."""
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if key != "seconds" and not key.endswith("_s")
        }
    return value


def left_behind(run: Path) -> list[str]:
    """Names that only something half done would have."""
    return sorted(
        path.relative_to(run).as_posix() for path in run.rglob(".*") if path.name != ".lock"
    )


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two results differ; empty if in nothing."""
    told = []
    for key in one:
        if one[key] != other[key]:
            told.append(f"{key}: {first_difference(one[key], other[key])}")
    return "; ".join(told)


def first_difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return f"{keys[0]}: {first_difference(one.get(keys[0]), other.get(keys[0]))}"
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            extra = [str(item)[:60] for item in other if item not in one][:2]
            return f"{len(other)} entries instead of {len(one)}; more: {extra}"
        at = next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        return f"[{at}] {first_difference(one[at], other[at])}"
    return f"{str(one)[:80]}, not {str(other)[:80]}"
