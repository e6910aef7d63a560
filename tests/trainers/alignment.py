"""Preference data and stages on a tiny model, for the tests of alignment and of rewards."""

from typing import Any

from advisor.plan.model import Stage
from tests.trainers.runs import losses as losses
from tests.trainers.runs import result_of as result_of
from tests.trainers.runs import trained as trained

QUESTIONS = (
    "Where is my parcel",
    "How can I return a kettle",
    "Do you sell tea",
    "Is the red cup in the shop",
    "Can I pay today",
)
BETTER, WORSE = "Thank you for writing, order {}.", "Go away, order {}, we look at nothing."
REWARD = (
    "def score(prompts, completions, **columns):\n    return [text.count('e') / (1 + len(text)) for"
    " text in completions]\n"
)
SHORT = {
    "response_tokens": 6,
    "generations": 4,
    "micro_batch_size": 2,
    "reward": "own.py:score",
    "max_steps": 3,
}
FULL = {"update": "full", "learning_rate": 1e-3}
UPDATES = {
    "lora": {},
    "adapter": {"update": "adapter"},
    "prefix": {"update": "prefix", "prefix_tokens": 4},
    "full": FULL,
}


def keys_of(objective: str, update: str = "lora", **keys: Any) -> dict[str, Any]:
    """Keys of a short stage: those of the update, of a rewarded objective, and the given ones."""
    own = SHORT if objective in ("grpo", "rloo", "ppo") else {}
    own = {key: value for key, value in own.items() if (objective, key) != ("ppo", "generations")}
    return {**own, **UPDATES.get(update, {"update": update}), **keys}


def stage_of(objective: str, **keys: Any) -> Stage:
    """A stage on the pairs with these keys."""
    small = {"max_steps": 6, "micro_batch_size": 4, "seq_len": 128, "holdout": 0.25}
    own = {"name": objective, "objective": objective, "update": "lora", "learning_rate": 1e-2}
    return stage_with({**own, **small, **keys})


def stage_with(keys: dict[str, Any]) -> Stage:
    """A stage of keys of all stages and of options of its own; options that are None are none."""
    common = {key: value for key, value in keys.items() if key in Stage.__struct_fields__}
    options = {key: keys[key] for key in keys if key not in common and keys[key] is not None}
    return Stage(**common, options=options)
