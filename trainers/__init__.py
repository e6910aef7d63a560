"""How a stage of a plan is trained: one recipe for each objective.

    python -P -m trainers OBJECTIVE PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
    [--max-steps N] [--no-judge]

A recipe is a module of this package that has a function `train`: a file, or a package if one file
would be too long (ppo). OBJECTIVE is its name. The folder is all that is searched, so a new
objective needs its own file here, rules/objectives/<name>.yaml and no registration. It holds

    train(job)       Train the stage, or measure two steps of it, and write the result into the
                     stage's folder.
    check_rows(job)  Optional: raise InputError for data that cannot be trained on. If one call
                     trains several tasks, each is checked before the first is trained.

Recipes describe themselves as a subclass of `trainers.stage.objective.Objective` (rows, model,
trainer, evaluation), and end in `train = trains(...)` of `trainers.stage.run`, whose stages are
checked before those in front of them train.

| room | what is in it, from the bottom up: a room imports those above it in this table |
| --- | --- |
| job | the job of a stage, the process that trains it, this machine, files |
| say | progress said while a stage runs; waiting for other processes |
| rows | examples as token ids and labels |
| updates | which weights are trained: one module for each update scheme |
| step | one optimizer step: losses, precision, optimizers, division, memory |
| start | the model as it is loaded: weights, attention, kernels |
| rewards | where the reward of an answer comes from |
| evaluation | the model before and after training |
| keep | checkpoints, the best weights, records |
| rollouts | answers that a policy writes to learn from |
| teachers | distillation: the teacher, its answers, the distance to it |
| stage | a stage from its first check to its judged result |
| ppo | PPO, which has its own training loop |
| tools | what is done with results |
"""

from __future__ import annotations

from advisor.ground.resources import method_roots

# Folders in ADVISE_METHODS bring recipes of their own, found in the same way.
__path__ += [str(root / "trainers") for root in method_roots()[1:]]
