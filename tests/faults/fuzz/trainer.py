"""The trainer with odd values in each field of TRL's and PEFT's configurations, for one step.

    python -m tests.faults.fuzz.trainer SEED COUNT

Needs torch, which is loaded once; each input is trained in a fork.
"""

import dataclasses
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.run import Case, fuzz
from tests.faults.fuzz.seeds import Target
from tests.faults.kills import DATA, fill, write_rows
from tests.faults.table import print_rows

STAGE = {
    "update": "lora", "rank": 4, "learning_rate": 1e-3, "micro_batch_size": 2, "seq_len": 64,
    "holdout": 0,
}  # fmt: skip
ROWS = {"sft": "chats", "dpo": "pairs", "rm": "pairs"}
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
    "learning_rate", "seq_len", "rank", "max_steps", "micro_batch_size", "template", "weight_decay",
)  # fmt: skip
Field = tuple[dataclasses.Field[Any], Any]  # with its type


def train() -> None:
    from trainers.__main__ import main

    raise SystemExit(main(sys.argv[1:]))


TARGET = Target(
    "trl and peft values", (), (), "plan.yaml", (), codes=(0, 2, 4, 5), run=train,
    program="python -m trainers", most_cpu_s=60, most_wall_s=240.0, most_bytes=24 * 2**30,
    cpu_s=40.0,  # the fork, a model, a step and the checks of its result
    usual=USUAL,
)  # fmt: skip


def cases(project: Path, dice: random.Random, count: int) -> Iterator[Case]:
    """Plans with odd values of one to three keys each, for one step."""
    mutator = Mutator(dice)
    for _ in range(count):
        name = dice.choice(list(ROWS))
        stage: dict[str, Any] = {"name": name, "objective": name, **STAGE}
        for _ in range(dice.choice((1, 1, 2, 3))):
            kind = dice.choice(("trl",) * 5 + ("peft",) * 3 + ("own",))
            if kind == "own":
                stage[dice.choice(OWN)] = mutator.value(dice.choice((1, 0.5, "a", [1])), [1, "x"])
                continue
            field, hint = dice.choice(fields_of(name if kind == "trl" else kind))
            stage.setdefault(kind, {})[field.name] = fitting(field, hint, mutator)
        data = {"path": str(project / f"{ROWS[name]}.jsonl")}
        plan = {"name": "shop", "model": str(project / "model"), "data": data, "stages": [stage]}
        words = f"{name} plan.yaml --stage {name} --run out --max-steps 1 --no-judge"
        yield Case(TARGET, {"plan.yaml": mutator.as_yaml(plan)}, words.split())


@cache
def fields_of(name: str) -> Sequence[Field]:
    """The fields of a configuration that a plan may set: refusing the others is tested elsewhere."""
    import peft
    import trl

    from trainers.step.settings import PLAN_KEYS, fields_of, passed

    kind = {
        "sft": trl.SFTConfig, "dpo": trl.DPOConfig, "rm": trl.RewardConfig, "peft": peft.LoraConfig,
    }[name]  # fmt: skip
    hints = passed(fields_of(kind), PLAN_KEYS)
    return [
        (field, hints[field.name])
        for field in dataclasses.fields(kind)
        if field.name in hints and field.name not in LEFT_OUT
    ]


def fitting(field: dataclasses.Field[Any], hint: Any, mutator: Mutator) -> Any:
    """A value, four times of five one of the right type."""
    from trainers.step.settings import fits

    drawn = [odd_value(field, mutator) for _ in range(40 if mutator.dice.random() < 0.8 else 1)]
    return next((value for value in drawn if fits(value, hint)), drawn[-1])


def odd_value(field: dataclasses.Field[Any], mutator: Mutator) -> Any:
    """A value that somebody might try: one that other keys take, one near to the default, or any."""
    default, dice = field.default, mutator.dice
    kind = dice.random()
    if kind < 0.5 or default in (dataclasses.MISSING, None):
        return dice.choice(PLAUSIBLE)
    is_plain = isinstance(default, bool | int | float | str)
    if kind < 0.8 and is_plain:
        return mutator.near(default)
    return mutator.value(default if is_plain else 1, [1, "x"])


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home").mkdir()
        os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": f"{name}/home", "OMP_NUM_THREADS": "1"}
        fill(folder / "project")
        for rows in ("chats", "pairs"):
            write_rows(folder / "project" / f"{rows}.jsonl", map(DATA[rows], range(8)))
        for needed in (
            "peft",
            "trl",
            "trainers.keep.progress",
            *(f"trainers.{one}" for one in ROWS),
        ):
            import_module(needed)
        drawn = cases(folder / "project", random.Random(seed), count)
        print_rows(fuzz(drawn, folder, f"trainer-{seed}"))


if __name__ == "__main__":
    main()
