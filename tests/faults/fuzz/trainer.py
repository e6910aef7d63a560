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
from tests.faults.kills import fill
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
    # A training may keep what was compiled, share memory, leave its own folder, and cache the
    # log-probabilities of the reference under a progress bar of TRL's.
    usual=r"changed|.*\\rComputing|outside: \S+ (/dev/shm|.*/torchinductor_|.*/hf_datasets-)",
)  # fmt: skip


def cases(project: Path, dice: random.Random, count: int) -> Iterator[Case]:
    """Plans with odd values of one to three keys each, for one step."""
    for _ in range(count):
        mutator, name = Mutator(dice), dice.choice(list(ROWS))
        stage: dict[str, Any] = {"name": name, "objective": name, **STAGE}
        for kind in dice.choices(("trl", "peft", "own"), (5, 3, 1), k=dice.choice((1, 1, 2, 3))):
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

    kinds = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "rm": trl.RewardConfig}
    kind = kinds.get(name, peft.LoraConfig)
    hints = passed(fields_of(kind), PLAN_KEYS)
    fields = [one for one in dataclasses.fields(kind) if one.name in hints]
    return [(one, hints[one.name]) for one in fields if one.name not in LEFT_OUT]


def fitting(field: dataclasses.Field[Any], hint: Any, mutator: Mutator) -> Any:
    """A value that somebody might try, four times of five one of the right type: one that other
    keys take, or one near to the default.
    """
    from trainers.step.settings import fits

    default, dice = field.default, mutator.dice
    is_plain = isinstance(default, bool | int | float | str)
    drawn = [
        mutator.near(default) if is_plain and dice.random() < 0.4 else dice.choice(PLAUSIBLE)
        for _ in range(40 if dice.random() < 0.8 else 1)
    ]
    return next((value for value in drawn if fits(value, hint)), drawn[-1])


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home").mkdir()
        os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": f"{name}/home", "OMP_NUM_THREADS": "1"}
        fill(folder / "project")
        own = (f"trainers.{one}" for one in (*ROWS, "keep.progress"))
        for needed in ("peft", "trl", *own):
            import_module(needed)
        drawn = cases(folder / "project", random.Random(seed), count)
        print_rows(fuzz(drawn, folder, f"trainer-{seed}"))


if __name__ == "__main__":
    main()
