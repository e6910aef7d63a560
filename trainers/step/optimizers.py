"""What to know of a stage's optimizer: its learning rate, and what bfloat16 weights lose under it.
make_optimizer.py builds it, advisor/plan/checks.py says what it cannot do.
"""

from __future__ import annotations

import math

from advisor.methods import update
from advisor.methods.optimizers import optimizer
from advisor.plan.model import Stage
from trainers.job.machine import process_count

# The standard deviation of weights that the warning supposes: usual for models of 1B to 10B, and
# what most are initialised with.
USUAL_WEIGHT = 0.02
BFLOAT16_BITS = 8  # of a weight's size, the leading one among them
WORTH_SAYING = 0.1
WAYS_OUT = (
    "set optimizer: adamw_split (2 bytes a weight more) or adamw_stochastic (no more, with noise),"
    " or weights_dtype: float32 with precision: mixed"
)


def rate_note(stage: Stage) -> str | None:
    """What to know of the learning rate under this optimizer; None where it is AdamW's."""
    entry = optimizer(stage.optimizer)
    if entry.rate.factor == 1.0:
        return None
    return f"learning rate {stage.learning_rate:g} under {entry.name}: {entry.rate.because}" + (
        f" ({entry.rate.source})" if entry.rate.source else ""
    )


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
        or _keeps_small_updates(stage)
        or optimizer(stage.optimizer).name == "sgd"  # its steps have the size of the gradient
    ):
        return 0.0
    # Numbers of [2^k, 2^(k+1)) are 2^(k-7) apart: those below this power of two move.
    smallest_kept = 2.0 ** math.ceil(math.log2(stage.learning_rate) + BFLOAT16_BITS)
    return 1 - math.erf(smallest_kept / USUAL_WEIGHT / math.sqrt(2))


def _keeps_small_updates(stage: Stage) -> bool:
    """Whether the optimizer loses nothing to bfloat16: one that rounds at random only where one
    process alone does.
    """
    entry = optimizer(stage.optimizer)
    return entry.keeps_small_updates and (entry.processes or process_count() == 1)


def rounding_warning(stage: Stage) -> str | None:
    """What to say of a stage that rounds many of its updates away; None if it does not."""
    share = rounded_away(stage)
    if share < WORTH_SAYING:
        return None
    return (
        f"bfloat16 weights with {stage.optimizer} at learning rate {stage.learning_rate:g}: steps"
        f" too small for about {share:.0%} of the weights are rounded away; {WAYS_OUT}"
    )
