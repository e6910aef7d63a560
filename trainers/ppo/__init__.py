"""PPO on one base: the model's own answers are scored, and made likelier or less likely.

math.py       the formulas, pure functions on tensors
rollout.py    answers and their log-probabilities
reward.py     what scores an answer
roles.py      policy, reference, reward and value: modules on one base, or four models
guards.py     when a run has gone wrong, and what to change
update.py     one update: answers, rewards, advantages, gradient steps
loop.py       the stage: updates, checkpoints, the comparison afterwards
"""
