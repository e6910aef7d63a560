"""What a stage's optimizer cannot do: found out without torch, before anything is written, and once
more by a trainer that is started by hand.
"""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.methods import objective, update
from advisor.methods.installed import why_no_torch_compile
from advisor.methods.optimizers import OPTIMIZERS, Optimizer, optimizer, read_arguments
from advisor.plan.model import Stage


def optimizer_faults(stage: Stage, device: str) -> list[Fault]:
    """What the stage's optimizer cannot do: on this device, with these weights, with its keys.

    Args:
        stage: Names it.
        device: cuda, cpu or mps, as torch calls it; a ROCm GPU is cuda there.
    """
    entry = optimizer(stage.optimizer)
    at = f"stage {stage.name}: optimizer {entry.name}"
    return [
        *_device_faults(entry, stage, device, at),
        *_weight_faults(entry, stage, at),
        *_key_faults(entry, stage, at),
    ]


def _device_faults(entry: Optimizer, stage: Stage, device: str, at: str) -> list[Fault]:
    """Devices, and what compiles for them."""
    if device not in entry.devices:
        what = (
            f"{at} pages memory between GPU and host, this stage runs on {device}"
            if entry.is_paged
            else f"{at} runs on {' and '.join(entry.devices)}, this stage on {device}"
        )
        here = [one.name for one in OPTIMIZERS.values() if _could(one, stage, device)]
        return [Fault(where=at, what=what, allowed=f"optimizer: {' or '.join(_first(here))}")]
    why = why_no_torch_compile(device) if entry.compiles else ""
    if why:
        what, allowed = (
            f"{at} compiles its step, and {why}",
            "optimizer: adamw_8bit compiles nothing",
        )
        hint = "install gcc and g++, or set optimizer: adamw_8bit"
        return [Fault(where=at, what=what, allowed=allowed, hint=hint)]
    return []


def _could(entry: Optimizer, stage: Stage, device: str) -> bool:
    """Whether the optimizer needs nothing that these trainers do not bring, and fits the stage."""
    brought = entry.library is None or entry.library.name == "bitsandbytes"
    return brought and device in entry.devices and not _weight_faults(entry, stage, "")


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
        these = f"these are {stage.weights_dtype}"
        trained = "this update trains a module in float32" if how.is_module else these
        what = f"{at} keeps what bfloat16 weights would round away, and {trained}"
        allowed = "optimizer: adamw_fused, or update: full with weights_dtype: bfloat16"
        return [Fault(where=at, what=what, allowed=allowed)]
    if entry.trains == "every weight" and how.is_module:
        return [
            Fault(
                where=at,
                what=(
                    f"{at} projects the gradients of the model's own matrices, and update"
                    f" {how.id} trains a small module beside them"
                ),
                allowed="optimizer: adamw_fused, or update: full",
            )
        ]
    if entry.trains == "matrices" and how.is_module and not {"rank", "bottleneck"} & set(how.keys):
        what = f"{at} moves matrices, and update {how.id} trains vectors alone"
        allowed = "optimizer: adamw_fused, or update: full or lora"
        return [Fault(where=at, what=what, allowed=allowed)]
    return []


def _key_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    """Keys of the stage that do not go with it."""
    found, trl = [], f"stage {stage.name}: trl"
    if entry.scheduler is not None and stage.scheduler != entry.scheduler:
        what = f"{at} goes with no schedule, and scheduler is {stage.scheduler}"
        allowed = f"scheduler: {entry.scheduler} (warmup is done all the same)"
        found.append(Fault(where=at, what=what, allowed=allowed))
    if entry.averages and objective(stage.objective).generates:
        what = (
            f"{at} trains at other weights than those it ends with, and objective"
            f" {stage.objective} learns from answers that the weights write"
        )
        found.append(Fault(where=at, what=what, allowed="optimizer: adamw_fused"))
    for key, why in _idle_keys(entry).items():
        if key in stage.trl:
            what = f"'{key}' has no effect: optimizer {entry.name} {why}"
            found.append(Fault(where=trl, what=what, hint="remove it"))
    given = stage.trl.get("optim_args")
    try:
        read_arguments(entry.name, given if isinstance(given, str) else None)
    except ValueError as error:
        hint = "correct it, or remove it"
        found.append(Fault(where=trl, what=f"optim_args: {error}", hint=hint))
    if stage.trl.get("optim_target_modules") is not None and not entry.is_low_rank:
        why = f"optimizer {entry.name} projects no gradients"
        what = f"'optim_target_modules' would have no effect: {why}"
        found.append(Fault(where=trl, what=what, hint="remove it"))
    return found


def _idle_keys(entry: Optimizer) -> dict[str, str]:
    """Arguments of transformers that the optimizer does not read -> why."""
    if entry.betas is None:
        return dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "is no Adam")
    return {"adam_epsilon": "divides by nothing"} if "lion" in entry.name else {}
