"""Preference data and stages on a tiny model, and what a run with two rewards has to leave."""

from typing import Any

import pytest

from advisor.plan.model import Stage
from tests.trainers.runs import lines_of
from trainers.job.job import Job

QUESTIONS = (
    "Where is my parcel", "How can I return a kettle", "Do you sell tea",
    "Is the red cup in the shop", "Can I pay today",
)  # fmt: skip
BETTER, WORSE = "Thank you for writing, order {}.", "Go away, order {}, we look at nothing."
REWARD = (
    "def score(prompts, completions, **columns):\n    return [text.count('e') / (1 + len(text)) for"
    " text in completions]\n"
)
SHORT = {
    "response_tokens": 6, "generations": 4, "micro_batch_size": 2, "reward": "own.py:score",
    "max_steps": 3,
}  # fmt: skip
FULL = {"update": "full", "learning_rate": 1e-3}
UPDATES = {
    "lora": {}, "adapter": {"update": "adapter"},
    "prefix": {"update": "prefix", "prefix_tokens": 4}, "full": FULL,
}  # fmt: skip


def keys_of(objective: str, update: str = "lora", **keys: Any) -> dict[str, Any]:
    """Keys of a short stage: those of the update, of a rewarded objective, and the given ones."""
    own = SHORT if objective in ("grpo", "rloo", "ppo") else {}
    own = {key: value for key, value in own.items() if (objective, key) != ("ppo", "generations")}
    return {**own, **UPDATES.get(update, {"update": update}), **keys}


def stage_of(objective: str, **keys: Any) -> Stage:
    """A stage on the pairs with these keys."""
    small = {
        "name": objective, "objective": objective, "update": "lora", "learning_rate": 1e-2,
        "max_steps": 6, "micro_batch_size": 4, "seq_len": 128, "holdout": 0.25,
    }  # fmt: skip
    return stage_with({**small, **keys})


def stage_with(keys: dict[str, Any]) -> Stage:
    """A stage of keys of all stages and of options of its own; options that are None are none."""
    common = {key: value for key, value in keys.items() if key in Stage.__struct_fields__}
    options = {key: keys[key] for key in keys if key not in common and keys[key] is not None}
    return Stage(**common, options=options)


OWN = (
    "def some(prompts, completions, **columns):\n"
    "    return [None if i % 2 else len(text) / 10 for i, text in enumerate(completions)]\n"
)
TWO = [
    {"verifier": "regex", "pattern": "e", "name": "has-e"},
    {"reward": "own.py:some", "weight": -0.5},
]


def check_two_rewards(job: Job, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run with these rewards leaves: metrics, rollouts and the record of each."""
    lines = lines_of(job.run / "metrics.jsonl")
    assert {line["rewards/some/missing"] for line in lines} == {0.5}
    assert all(0 <= line["rewards/has-e/mean"] <= 1 for line in lines)
    assert all(line["rewards/some/std"] > 0 for line in lines)
    records = {one["name"]: one for one in result["rewards"]}
    assert {name: one["weight"] for name, one in records.items()} == {"has-e": 1.0, "some": -0.5}
    assert records["some"]["missing"] == 0.5
    assert records["some"]["first"] == lines[0]["rewards/some/mean"]
    assert any("no score to 50.0% of the answers" in check["text"] for check in result["checks"])
    assert any(
        "a weighted sum: 1 x the verifier regex (has-e)" in note for note in notes_of(result)
    )
    rollouts = lines_of(job.output / "rollouts.jsonl")
    assert {line["step"] for line in rollouts} == {1, 2, 3}
    for line in rollouts:
        own, has = line["rewards"]["some"], line["rewards"]["has-e"]
        assert has == float("e" in line["answer"])
        assert line["reward"] == pytest.approx(has - 0.5 * (own or 0.0), abs=1e-5)
        assert line["prompt"]
    assert {line["rewards"]["some"] is None for line in rollouts} == {True, False}
    return rollouts


def notes_of(result: dict[str, Any]) -> list[str]:
    """What it says of the reward."""
    return [*result["data"]["notes"], str(result["resolved"].get("reward"))]
