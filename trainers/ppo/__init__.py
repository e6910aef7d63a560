"""Proximal policy optimisation (arXiv:1707.06347) under any update scheme, on one base: the model's
own answers are scored, and made likelier or less likely.

math.py       the formulas, pure functions on tensors
rollout.py    answers and their log-probabilities
roles.py      policy, reference, reward and value: modules on one base, or four models
guards.py     when a run has gone wrong, and what to change
update.py     one update: answers, rewards, advantages, gradient steps
steps.py      which prompts an update takes, how fast it learns, with which optimizer
run.py        the updates of a stage: recorded, shown, saved, guarded
saving.py     checkpoints
heldout.py    held-out prompts before and after
build.py      what the plan says, as the things above
loop.py       the stage from data to result.json
"""

from __future__ import annotations

from trainers.job.job import Job


def train(job: Job) -> None:
    """Train the stage, or measure two updates of it, and write the result into its folder."""
    from trainers.ppo import loop  # whoever wants the formulas alone need not import the rest

    loop.train(job)
