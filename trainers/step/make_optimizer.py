"""The plan's optimizer, on a trainer of transformers or over groups of one's own; and what to know
of it.

transformers makes most of them, from the name that `settings` gives it; the others are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from advisor.methods import update
from advisor.methods.kernels import TRITON_NEEDS, why_no_triton
from advisor.methods.optimizers import optimizer, read_arguments
from advisor.plan.model import Stage
from trainers.job import Model

OVER_BFLOAT16 = ("adamw_split", "adamw_stochastic")
# The standard deviation of weights that the warning supposes: usual for models of 1B to 10B, and
# what most are initialised with.
USUAL_WEIGHT = 0.02
BFLOAT16_BITS = 8  # of a weight's size, the leading one among them
WORTH_SAYING = 0.1
WAYS_OUT = (
    "set optimizer: adamw_split (2 bytes a weight more) or adamw_stochastic (no more, with noise),"
    " or weights_dtype: float32 with precision: mixed"
)


def put_own(trainer: Any, stage: Stage) -> str | None:
    """Let transformers' trainer step with the plan's optimizer where it does not make it itself;
    what a person should know of it.
    """
    given = trainer.args
    adam = {"betas": (given.adam_beta1, given.adam_beta2), "eps": given.adam_epsilon}
    found = _own(stage, [trainer.model], adam)
    if found is None:
        return None
    trainer.optimizer_cls_and_kwargs = found
    stacks = [one for one in trainer.model.parameters() if one.requires_grad and one.ndim > 2]
    if stage.optimizer != "muon" or not stacks:
        return None
    return (
        f"muon moves matrices: the weights of experts, {len(stacks)} tensors of three dimensions,"
        " are moved by AdamW"
    )


def make(
    stage: Stage,
    groups: Sequence[dict[str, Any]],
    models: Sequence[Model],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Any:
    """The stage's optimizer over groups of the models' parameters, each with its lr and
    weight_decay; betas and eps are Adam's.
    """
    import torch

    found = _own(stage, models, {"betas": betas, "eps": eps})
    if found is None:
        from transformers import Trainer
        from transformers.training_args import OptimizerNames

        asked: Any = SimpleNamespace(
            optim=OptimizerNames(optimizer(stage.optimizer).transformers),
            learning_rate=stage.learning_rate, adam_beta1=betas[0], adam_beta2=betas[1],
            adam_epsilon=eps, optim_args=stage.trl.get("optim_args"),
        )  # fmt: skip
        found = Trainer.get_optimizer_cls_and_kwargs(asked)
    kind, arguments = found
    made = kind([group for group in groups if group["params"]], **arguments)
    if arguments.get("optim_bits") == 8:  # as transformers' Trainer does
        import bitsandbytes

        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in (module for model in models for module in model.modules()):
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return made


def _own(
    stage: Stage, models: Sequence[Model], adam: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    """(the class of an optimizer of ours, its arguments), as transformers' Trainer takes them; None
    for one that transformers has.
    """
    adam = {"lr": stage.learning_rate, **adam}
    if stage.optimizer in OVER_BFLOAT16:
        from trainers.step.own_optimizers import BFloat16AdamW

        keeps = stage.optimizer.removeprefix("adamw_")
        return BFloat16AdamW, {"keeps": keeps, "seed": stage.seed, **adam}
    if stage.optimizer != "muon":
        return None
    from trainers.step.own_optimizers import MuonWithAdamW

    own = read_arguments("muon", stage.trl.get("optim_args"))
    return MuonWithAdamW, {"matrices": hidden_matrices(models), **adam, **own}


def hidden_matrices(models: Sequence[Model]) -> list[Any]:
    """The trained matrices that are neither embeddings nor what makes the output: words, classes or
    a score. A tensor that holds the matrices of several experts is none.
    """
    import torch

    found: list[Any] = []
    for model in models:
        ends = [getattr(model, name, None) for name in ("score", "classifier", "lm_head")]
        for name in ("get_input_embeddings", "get_output_embeddings"):
            ends.append(getattr(model, name)() if hasattr(model, name) else None)
        apart = {id(one) for module in ends if module is not None for one in module.parameters()}
        found += [
            one
            for module in model.modules()
            if not isinstance(module, torch.nn.Embedding)
            for one in module.parameters(recurse=False)
            if one.requires_grad and one.ndim == 2 and id(one) not in apart
        ]
    return found


# --------------------------------------------------------------------------- what to know of it


def optimizer_note(stage: Stage, device_type: str) -> str | None:
    """What to know of this optimizer before the model loads: that AdamW's learning rates do not
    apply to it, or that its steps are not compiled on this GPU; None of most.
    """
    if stage.optimizer in OVER_BFLOAT16 and device_type == "cuda" and (why := why_no_triton()):
        return f"{stage.optimizer} is not compiled, because {why}: slower steps; {TRITON_NEEDS}"
    why = optimizer(stage.optimizer).own_rate
    return f"learning rate {stage.learning_rate:g} under {stage.optimizer}: {why}" if why else None


def rounded_away(stage: Stage) -> float:
    """The share of normally distributed weights that a step of the full learning rate leaves as
    they are, because half the distance to the next bfloat16 number is more; 0 where weights are
    not in bfloat16 or the optimizer keeps small updates.

    AdamW moves a weight by about the learning rate (Kingma & Ba 2015, section 2.1), and so do the
    others.
    """
    if (
        stage.weights_dtype != "bfloat16"
        or update(stage.update).is_module
        or optimizer(stage.optimizer).keeps_small_updates
        or stage.optimizer == "sgd"  # its steps have the size of the gradient
    ):
        return 0.0
    # Numbers of [2^k, 2^(k+1)) are 2^(k-7) apart: those below this power of two move.
    smallest_kept = 2.0 ** math.ceil(math.log2(stage.learning_rate) + BFLOAT16_BITS)
    return 1 - math.erf(smallest_kept / USUAL_WEIGHT / math.sqrt(2))


def rounding_warning(stage: Stage) -> str | None:
    """What to say of a stage that rounds many of its updates away; None if it does not."""
    share = rounded_away(stage)
    if share < WORTH_SAYING:
        return None
    return (
        f"bfloat16 weights with {stage.optimizer} at learning rate {stage.learning_rate:g}: steps"
        f" too small for about {share:.0%} of the weights are rounded away; {WAYS_OUT}"
    )
