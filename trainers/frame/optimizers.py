"""What a stage's optimizer cannot do, told before the model loads, and what bfloat16 weights lose
under it. make_optimizer.py builds it.
"""

from __future__ import annotations

import math

from advisor.ground.errors import Fault
from advisor.ground.installed import why_no_torch_compile
from advisor.methods import objective, update
from advisor.methods.optimizers import OPTIMIZERS, Optimizer, optimizer, read_arguments
from advisor.plan.model import Stage
from trainers.frame.machine import process_count
from trainers.frame.types import Device

# The standard deviation of weights that the warning supposes: usual for models of 1B to 10B, and
# what most are initialised with.
USUAL_WEIGHT = 0.02
BFLOAT16_BITS = 8  # of a weight's size, the leading one among them
WORTH_SAYING = 0.1
WAYS_OUT = (
    "set optimizer: adamw_split (2 bytes a weight more) or adamw_stochastic (no more, with noise),"
    " or weights_dtype: float32 with precision: mixed"
)


def optimizer_faults(stage: Stage, device: Device) -> list[Fault]:
    """What the stage's optimizer cannot do: on this device, with these weights, with its keys."""
    entry = optimizer(stage.optimizer)
    at = f"stage {stage.name}: optimizer {entry.name}"
    return [
        *_device_faults(entry, stage, device, at),
        *_weight_faults(entry, stage, at),
        *_key_faults(entry, stage, at),
    ]


def _device_faults(entry: Optimizer, stage: Stage, device: Device, at: str) -> list[Fault]:
    """Devices, and what compiles for them."""
    if device.type not in entry.devices:
        what = (
            f"{at} pages memory between GPU and host, this stage runs on {device.type}"
            if entry.is_paged
            else f"{at} runs on {' and '.join(entry.devices)}, this stage on {device.type}"
        )
        here = [one.name for one in OPTIMIZERS.values() if _could(one, stage, device)]
        return [Fault(what=what, allowed=f"optimizer: {' or '.join(_first(here))}")]
    why = why_no_torch_compile(device.type) if entry.compiles else ""
    if why:
        return [
            Fault(
                what=f"{at} compiles its step, and {why}",
                allowed="optimizer: adamw_8bit compiles nothing",
                hint="install gcc and g++, or set optimizer: adamw_8bit",
            )
        ]
    return []


def _could(entry: Optimizer, stage: Stage, device: Device) -> bool:
    """Whether the optimizer needs nothing that these trainers do not bring, and fits the stage."""
    brought = entry.library is None or entry.library.name == "bitsandbytes"
    return brought and device.type in entry.devices and not _weight_faults(entry, stage, "")


def _first(names: list[str]) -> list[str]:
    """The names that are offered in the place of one: AdamW first, without its rarer kinds."""
    usual = ["adamw_fused", "adamw", "adamw_8bit", "lion_8bit", "muon", "adafactor", "sgd"]
    return [name for name in usual if name in names]


def _weight_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    """Weights that it cannot train."""
    how = update(stage.update)
    if entry.name in ("adamw_split", "adamw_stochastic"):
        if stage.weights_dtype == "bfloat16" and not how.is_module:
            return []
        trained = (
            "this update trains a module in float32"
            if how.is_module
            else f"these are {stage.weights_dtype}"
        )
        return [
            Fault(
                what=(f"{at} keeps what bfloat16 weights would round away, and {trained}"),
                allowed="optimizer: adamw_fused, or update: full with weights_dtype: bfloat16",
            )
        ]
    if entry.trains == "every weight" and how.is_module:
        return [
            Fault(
                what=(
                    f"{at} projects the gradients of the model's own matrices, and update"
                    f" {how.id} trains a small module beside them"
                ),
                allowed="optimizer: adamw_fused, or update: full",
            )
        ]
    if entry.trains == "matrices" and how.is_module and not {"rank", "bottleneck"} & set(how.keys):
        return [
            Fault(
                what=f"{at} moves matrices, and update {how.id} trains vectors alone",
                allowed="optimizer: adamw_fused, or update: full or lora",
            )
        ]
    return []


def _key_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    """Keys of the stage that do not go with it."""
    found = []
    if entry.scheduler is not None and stage.scheduler != entry.scheduler:
        found.append(
            Fault(
                what=f"{at} goes with no schedule, and scheduler is {stage.scheduler}",
                allowed=f"scheduler: {entry.scheduler} (warmup is done all the same)",
            )
        )
    if entry.averages and objective(stage.objective).generates:
        found.append(
            Fault(
                what=(
                    f"{at} trains at other weights than those it ends with, and objective"
                    f" {stage.objective} learns from answers that the weights write"
                ),
                allowed="optimizer: adamw_fused",
            )
        )
    idle = _idle_keys(entry)
    found += [
        Fault(
            what=f"stage {stage.name}: trl: '{key}' has no effect: optimizer {entry.name} {why}",
            hint="remove it",
        )
        for key, why in idle.items()
        if key in stage.trl
    ]
    given = stage.trl.get("optim_args")
    try:
        read_arguments(entry.name, given if isinstance(given, str) else None)
    except ValueError as error:
        found.append(
            Fault(
                what=f"stage {stage.name}: trl: optim_args: {error}",
                hint="correct it, or remove it",
            )
        )
    if stage.trl.get("optim_target_modules") is not None and not entry.is_low_rank:
        found.append(
            Fault(
                what=(
                    f"stage {stage.name}: trl: 'optim_target_modules' would have no effect:"
                    f" optimizer {entry.name} projects no gradients"
                ),
                hint="remove it",
            )
        )
    return found


def _idle_keys(entry: Optimizer) -> dict[str, str]:
    """Arguments of transformers that the optimizer does not read -> why."""
    if entry.betas is None:
        return dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "is no Adam")
    return {"adam_epsilon": "divides by nothing"} if "lion" in entry.name else {}


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
