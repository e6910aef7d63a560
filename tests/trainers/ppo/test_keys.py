"""No key of a PPO stage is dead: another value gives other numbers."""

import pytest

pytest.importorskip("torch")

from advisor.plan.keys import key_specs
from tests.trainers.ppo.modules import metrics
from trainers.ppo import train

BASE = {
    "max_steps": 3,
    "kl_coef": 0.5,
    "kl_target": 5.0,
    "missing_end_penalty": 1.0,
    "step_kl_limit": 1.0,
    "value_clip_range": 0.05,
    "clip_range": 0.1,
    "job_judge": False,
}
BASE |= {"micro_batch_size": 4, "grad_accum": 2, "learning_rate": 5e-3}
OTHER = {
    "kl_coef": 0.1,
    "kl_target": 0.5,
    "kl_horizon": 100,
    "response_tokens": 6,
    "temperature": 0.5,
    "missing_end_penalty": 0.0,
    "whiten_rewards": True,
    "gamma": 0.5,
    "lam": 0.2,
    "ppo_epochs": 2,
    "minibatches": 2,
    "clip_range": 0.02,
    "value_clip_range": 5.0,
    "value_learning_rate": 1e-4,
    "step_kl_limit": 1e-3,
    "verifier": "exact",
    "reward": "scores.py:length",
}
ELSEWHERE = {
    "kl_limit",
    "reward_model",
    "pattern",
    "schema",
    "overlong_tokens",
    "ngram",
    "rewards",
    "rollouts",
}  # tested where they act: the guard, the roles, the verifiers, the engines


def test_every_declared_key_is_tried():
    """A new key has to be tried here, or where it acts."""
    assert set(key_specs().objectives["ppo"].keys) == set(OTHER) | ELSEWHERE


@pytest.mark.slow
def test_every_key_changes_the_run(make, tmp_path):
    """Three updates with one key changed differ from three without, for every key."""

    def numbers(name, **keys):
        job = make(**{**BASE, **keys}, job_run=tmp_path / name)
        (tmp_path / "scores.py").open("a").write(
            "\n\ndef length(prompts, completions):\n    return [len(text) / 10 for text in"
            " completions]\n"
        )
        train(job)
        return metrics(job.run)

    plain = numbers("plain")
    assert numbers("again") == plain
    same = [
        key
        for key, value in OTHER.items()
        if numbers(key, **{key: value, **({"reward": None} if key == "verifier" else {})}) == plain
    ]
    assert same == []
