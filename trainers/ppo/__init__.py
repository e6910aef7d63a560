"""Proximal policy optimisation (arXiv:1707.06347) under any update scheme, on one base: the model's
own answers are scored, and made likelier or less likely.

loop.py       the algorithm: rollouts, rewards, advantages, update, again
learning.py   the gradient steps of an update, what steps, and how fast
math.py       the formulas, pure functions on tensors
rollout.py    answers in batches, and their log-probabilities
roles.py      policy, reference, reward and value: modules on one base, or four models
objective.py  what the plan says, as the things above; trainers/stage does all else of a stage
"""

from __future__ import annotations

from trainers.stage.run import trains

# Whoever wants the formulas alone need not import the rest.
train = trains("trainers.ppo.objective:PPO")
