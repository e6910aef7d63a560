"""How a stage of a plan is trained: one recipe for each objective.

    python -P -m trainers OBJECTIVE PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
    [--max-steps N] [--no-judge]

A recipe is a module of this package that has a function `train`: a file, or a package if one file
would be too long (ppo). OBJECTIVE is its name. The folder is all that is searched, so a new
objective needs its own file here, rules/objectives/<name>.yaml and no registration. It holds

    train(job)       Train the stage, or measure two steps of it, and write the result into the
                     stage's folder.

Recipes describe themselves as a subclass of `trainers.stage.objective.Objective` (rows, model,
trainer, evaluation), and end in `train = trains(...)` of `trainers.stage.run`, whose stages are
checked before those in front of them train; so is every task's data before the first is trained.

docs/architecture.md says what the rooms hold, and which may import which.
"""

from __future__ import annotations

from advisor.ground.resources import method_roots

# Folders in ADVISE_METHODS bring recipes of their own, found in the same way.
__path__ += [str(root / "trainers") for root in method_roots()[1:]]
