"""A run with two rewards, and what it has to leave, for the tests of every trainer that has them."""

from typing import Any

import pytest

from tests.trainers.runs import lines_of as lines_of
from trainers.job.job import Job

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
    for line in lines:
        assert line["rewards/some/missing"] == 0.5
        assert 0 <= line["rewards/has-e/mean"] <= 1
        assert line["rewards/some/std"] > 0
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
