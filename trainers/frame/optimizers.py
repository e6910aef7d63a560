"""The plan's optimizers that no library has, and what bfloat16 weights lose under the others."""

from __future__ import annotations

import math
from typing import Any

from advisor.ground.errors import Fault
from advisor.methods import update
from advisor.plan.model import Stage

# The plan's `optimizer` -> how BFloat16AdamW keeps small updates.
OWN = {"adamw_split": "split", "adamw_stochastic": "stochastic"}
# The standard deviation of weights that the warning supposes: usual for models of 1B to 10B, and
# what most are initialised with.
USUAL_WEIGHT = 0.02
BFLOAT16_BITS = 8  # of a weight's size, the leading one among them
WORTH_SAYING = 0.1
WAYS_OUT = (
    "set optimizer: adamw_split (2 bytes a weight more) or adamw_stochastic (no more, with noise),"
    " or weights_dtype: float32 with precision: mixed"
)


def optimizer_faults(stage: Stage) -> list[Fault]:
    """What the stage's optimizer cannot do."""
    if stage.optimizer not in OWN:
        return []
    if stage.weights_dtype == "bfloat16" and not update(stage.update).is_module:
        return []
    trained = (
        "this update trains a module in float32"
        if update(stage.update).is_module
        else f"these are {stage.weights_dtype}"
    )
    return [
        Fault(
            what=(
                f"stage {stage.name}: optimizer {stage.optimizer} keeps what bfloat16 weights would"
                f" round away, and {trained}"
            ),
            allowed="optimizer: adamw_fused, or update: full with weights_dtype: bfloat16",
        )
    ]


def make_own(stage: Stage, parameters: Any, **keys: Any) -> Any:
    """Our optimizer over parameters, or groups of them.

    Args:
        stage: Names an optimizer of `OWN`.
        parameters: As every optimizer of torch takes them.
        keys: lr, betas, eps.
    """
    from trainers.frame.bf16_adamw import BFloat16AdamW

    keeps: Any = OWN[stage.optimizer]
    return BFloat16AdamW(parameters, keeps=keeps, seed=stage.seed, **keys)


def put_own(trainer: Any, stage: Stage) -> None:
    """Let transformers' trainer step with the plan's optimizer where it is one of ours."""
    if stage.optimizer not in OWN:
        return
    from trainers.frame.bf16_adamw import BFloat16AdamW

    arguments = trainer.args
    trainer.optimizer_cls_and_kwargs = (
        BFloat16AdamW,
        {
            "keeps": OWN[stage.optimizer],
            "seed": stage.seed,
            "lr": arguments.learning_rate,
            "betas": (arguments.adam_beta1, arguments.adam_beta2),
            "eps": arguments.adam_epsilon,
        },
    )


def rounded_away(stage: Stage) -> float:
    """The share of normally distributed weights that a step of the full learning rate leaves as
    they are, because half the distance to the next bfloat16 number is more; 0 where weights are
    not in bfloat16 or the optimizer keeps small updates.

    AdamW moves a weight by about the learning rate (Kingma & Ba 2015, section 2.1).
    """
    if (
        stage.weights_dtype != "bfloat16"
        or update(stage.update).is_module
        or stage.optimizer in OWN
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
