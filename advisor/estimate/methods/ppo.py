"""PPO: four roles, answers written together, several passes over each batch of answers."""

from __future__ import annotations

from advisor.estimate import sources as src
from advisor.estimate.memory.optimizer_states import state_size
from advisor.estimate.run import Run
from advisor.estimate.types import Term, term_of
from advisor.methods import objective
from advisor.methods.rewards import models_that_score

ANSWERS_AT_ONCE = 32  # that the trainers generate together at least (trainers/rollouts/)


def answers_at_once(run: Run) -> int:
    """How many answers are written together: micro-batches of one step, up to a useful number."""
    at_least = max(ANSWERS_AT_ONCE, run.stage.micro_batch_size)
    return min(at_least, run.stage.micro_batch_size * run.stage.grad_accum)


def flop_factor(run: Run, factor: float) -> float:
    """Policy and value learn in every inner epoch, after each role looked at the answers once."""
    epochs = run.options.get("ppo_epochs") or objective("ppo").keys["ppo_epochs"].default
    return 2 * int(epochs) * factor + 2.0 * (3 + models_that_score(run.options))


def other_roles(run: Run, base_bytes: float) -> list[Term]:
    """Reference, reward and value: whole models, or adapters on the one frozen base."""
    share = run.sharing("weights")
    if run.is_module and run.is_ours:
        adapters = run.trainable * run.train_bytes
        return [
            term_of(
                "reward and value adapters",
                (2 * adapters + 3 * adapters) / share,
                "all four roles share one frozen base; the value adapter trains too",
                src.PPO,
            )
        ]
    # Others load reward and value whole beside a policy of adapters, whose base is the reference.
    copy = 0.0 if run.is_module else base_bytes / share
    return [
        term_of("reference model", copy, "a frozen copy of the policy", src.PPO),
        term_of("reward model", base_bytes / share, "a frozen model of the policy's size", src.PPO),
        term_of(
            "value model",
            (2 * base_bytes + state_size(run)) / share,
            "a second model that trains: weights, gradients and optimizer state",
            src.PPO,
        ),
    ]
