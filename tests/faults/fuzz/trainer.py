"""The trainer with values of TRL's and PEFT's own keys that nobody expects: each field of their
configurations, with odd values, for one step on a tiny model.

    python -m tests.faults.fuzz.trainer SEED COUNT

Needs torch, which is loaded once; each input is trained in a fork.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.fuzz import forks
from tests.faults.fuzz.judge import faults
from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.run import keep
from tests.faults.kills.scenes import chat, fill, pair, write_rows

CODES = (0, 2, 4, 5)
CPU_S = 40.0  # the fork, a model, a step and the checks of its result
LIMITS = forks.Limits(cpu_s=60, wall_s=240.0, memory_bytes=24 * 2**30)
STAGE = {
    "update": "lora",
    "rank": 4,
    "learning_rate": 1e-3,
    "micro_batch_size": 2,
    "seq_len": 64,
    "holdout": 0,
}
DATA = {"sft": "chats.jsonl", "dpo": "pairs.jsonl", "rm": "pairs.jsonl"}
PLAUSIBLE = (
    0, 1, 2, -1, 0.5, 1e-8, 3.0, True, False, None, "x", "no", "steps", "linear", "all", "true", "cpu",
    [], {}, ["q_proj"], ["norm"], [0], [99], {"q_proj": 2}, {"q_proj": -1}, {"a": "b"}, ".*", "(a+)+$", "../x",
)  # fmt: skip
# What a training may do: keep what was compiled, share memory, leave its own folder, and cache the
# log-probabilities of the reference under a progress bar of TRL's.
USUAL = r"changed|.*\\rComputing|outside: \S+ (/dev/shm|.*/torchinductor_|.*/hf_datasets-)"
# What would end the fork or the machine rather than be refused: too much of what is allowed.
LEFT_OUT = ("dataset_num_proc", "dataloader_num_workers", "ddp_timeout")
OWN = (
    "learning_rate",
    "seq_len",
    "rank",
    "max_steps",
    "micro_batch_size",
    "template",
    "weight_decay",
)


class TrainerFuzzer:
    """Torch, TRL and PEFT loaded, and a folder with a tiny model."""

    def __init__(self, folder: Path) -> None:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        (folder / "home").mkdir()
        self.folder = folder
        fill(folder / "project")
        write_rows(folder / "project" / "chats.jsonl", [chat(n) for n in range(8)])
        write_rows(folder / "project" / "pairs.jsonl", [pair(n) for n in range(8)])
        self.fields = {name: fields_of(name) for name in DATA}
        from peft import LoraConfig

        self.peft = reaching(LoraConfig)
        self.codes: Counter[int] = Counter()
        forks.settle()

    def draw(self, dice: random.Random) -> tuple[str, dict[str, Any]]:
        """(objective, plan) with odd values of one to three keys."""
        mutator = Mutator(dice)
        name = dice.choice(list(DATA))
        stage: dict[str, Any] = {"name": name, "objective": name, **STAGE}
        for _ in range(dice.choice((1, 1, 2, 3))):
            kind = dice.choice(("trl",) * 5 + ("peft",) * 3 + ("own",))
            if kind == "own":
                stage[dice.choice(OWN)] = mutator.value(dice.choice((1, 0.5, "a", [1])), [1, "x"])
                continue
            field, hint = dice.choice(self.fields[name] if kind == "trl" else self.peft)
            stage.setdefault(kind, {})[field.name] = fitting(field, hint, mutator)
        model = str(self.folder / "project" / "model")
        data = str(self.folder / "project" / DATA[name])
        return name, {"name": "shop", "model": model, "data": {"path": data}, "stages": [stage]}

    def run(self, seed: int, count: int) -> list[dict[str, Any]]:
        """Findings of so many inputs."""
        dice = random.Random(seed)
        found = []
        for number in range(count):
            name, plan = self.draw(dice)
            text = Mutator(dice).as_yaml(plan)
            words = [
                name,
                "plan.yaml",
                "--stage",
                name,
                "--run",
                "out",
                "--max-steps",
                "1",
                "--no-judge",
            ]
            place = self.folder / "case"
            forks.fill(place, {"plan.yaml": text})
            outcome = forks.call(
                lambda words=words: trainer_main(words),
                place,
                arguments=words,
                env={},
                limits=LIMITS,
            )
            self.codes[outcome.code] += 1
            told = faults(outcome, [], CODES, cpu_s=CPU_S)
            told = [one for one in told if not re.match(USUAL, one)]
            if told:
                files = {"plan.yaml": text}
                one = keep(
                    f"trainer-{seed}-{number}", files, words, outcome, program="python -m trainers"
                )
                found.append({"target": "trl and peft values", "faults": told, **one})
        return found


def fields_of(objective: str) -> Sequence[tuple[dataclasses.Field[Any], Any]]:
    """The fields of TRL's configuration for this objective."""
    import trl

    kind = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "rm": trl.RewardConfig}[objective]
    return reaching(kind)


def reaching(kind: type) -> Sequence[tuple[dataclasses.Field[Any], Any]]:
    """The fields that a plan may set, each with its type: refusing the others is tested elsewhere."""
    from trainers.step.settings import PLAN_KEYS, fields_of, passed

    hints = passed(fields_of(kind), PLAN_KEYS)
    return [
        (field, hints[field.name])
        for field in dataclasses.fields(kind)
        if field.name in hints and field.name not in LEFT_OUT
    ]


def fitting(field: dataclasses.Field[Any], hint: Any, mutator: Mutator) -> Any:
    """A value, four times of five one of the right type."""
    from trainers.step.settings import fits

    value = odd_value(field, mutator)
    for _ in range(40 if mutator.dice.random() < 0.8 else 0):
        if fits(value, hint):
            break
        value = odd_value(field, mutator)
    return value


def odd_value(field: dataclasses.Field[Any], mutator: Mutator) -> Any:
    """A value that somebody might try: one that other keys take, one near to the default, or any."""
    default, dice = field.default, mutator.dice
    kind = dice.random()
    if kind < 0.5 or default in (dataclasses.MISSING, None):
        return dice.choice(PLAUSIBLE)
    if kind < 0.8 and isinstance(default, bool | int | float | str):
        holder = [default]
        mutator._near(holder, 0, [])
        return holder[0]
    return mutator.value(default if isinstance(default, bool | int | float | str) else 1, [1, "x"])


def trainer_main(words: Sequence[str]) -> None:
    from trainers.__main__ import main

    raise SystemExit(main(words))


def load_everything() -> None:
    """What a training needs, loaded before the first fork."""
    from importlib import import_module

    for name in (
        "peft",
        "trl",
        "trainers.sft",
        "trainers.dpo",
        "trainers.rm",
        "trainers.keep.progress",
    ):
        import_module(name)


def main() -> int:
    seed, count = map(int, sys.argv[1:])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        load_everything()
        fuzzer = TrainerFuzzer(Path(name))
        found = fuzzer.run(seed, count)
    for one in found:
        print(json.dumps(one))
    tried = {"trl and peft values": count}
    wall_s = round(time.monotonic() - began)
    print(json.dumps({"tried": tried, "codes": dict(fuzzer.codes), "wall_s": wall_s}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
