"""LoRA: a low-rank correction beside each frozen weight matrix.

On a 4-bit base (quantization: nf4) this is QLoRA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.plan.model import Stage
from trainers.frame.lora_targets import ALL_LINEAR, choose_targets, describe_targets, target_faults
from trainers.frame.starts import begin_with, moves_base
from trainers.frame.types import Model, Tokenizer
from trainers.prepare.prepared import PreparedRow
from trainers.updates import task_type

PLAN_KEYS: Mapping[str, str] = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "use_rslora": "rslora",
    "task_type": "objective",
    "peft_type": "update",
    "inference_mode": "objective",
    "base_model_name_or_path": "model",
    "revision": "revision",
}
# Values of PEFT's init_lora_weights that need only the base, and those that also need a pass over
# data or another base.
STARTS = ("gaussian", "olora", "orthogonal", "mica", "pissa", "pissa_niter_16")
COMPONENTS = ("pissa", "olora", "mica")  # starts made of that many components of each matrix
NEEDS_DATA = ("eva", "corda", "lora_ga", "loftq")


def config_class() -> type | None:
    """PEFT's LoraConfig."""
    from peft import LoraConfig

    return LoraConfig


def faults(stage: Stage) -> list[Fault]:
    """Targets and values of init_lora_weights that this stage cannot have."""
    return [*target_faults(stage), *_start_faults(stage)]


def _start_faults(stage: Stage) -> list[Fault]:
    value = stage.peft.get("init_lora_weights", True)
    given = value.lower() if isinstance(value, str) else ""
    at = f"stage {stage.name}: peft: init_lora_weights: {given}"
    if given in NEEDS_DATA:
        return [
            Fault(
                where=at,
                what=(
                    f"{at} needs a pass over the data before training, which this trainer does not"
                    " make"
                ),
                allowed=f"true, {', '.join(STARTS)}",
            )
        ]
    if (
        not isinstance(value, bool)
        and given not in STARTS
        and not re.fullmatch(r"pissa_niter_\d+", given)
    ):
        return [
            Fault(
                where=f"stage {stage.name}: peft",
                what=(f"unknown init_lora_weights {value!r}"),
                allowed=f"true, {', '.join(STARTS)}",
            )
        ]
    found = []
    if given.startswith(("pissa", "mica", "orthogonal")) and stage.quantization is not None:
        found.append(
            Fault(
                where=at,
                what=(
                    f"{at} decomposes the base's weights, which quantization {stage.quantization}"
                    " has replaced"
                    if given != "orthogonal"
                    else f"{at} cannot be had with quantization {stage.quantization}: PEFT makes it"
                    " in the dtype of the base"
                ),
                allowed="quantization: null with it",
            )
        )
    rank = stage.options.get("rank")
    if given == "orthogonal" and rank is not None and rank % 2:
        found.append(Fault(where=at, what=f"{at} needs an even rank, and rank is {rank}"))
    if not moves_base(value):
        return found
    if stage.objective == "ppo":
        what = (
            f"{at} cannot be had in a PPO stage: the value model starts as a copy of the policy's"
            " module, without what the module began with"
        )
        found.append(Fault(where=at, what=what, allowed="true, gaussian, orthogonal, mica"))
    if stage.peft.get("use_dora"):
        what = f"{at} cannot be had with use_dora: the two together are no plain LoRA when saved"
        found.append(Fault(where=at, what=what, hint="remove one of the two"))
    return found


def peft_config(stage: Stage, options: Mapping[str, Any], model: Model) -> Any:
    """The LoraConfig of the stage.

    Raises InputError if `target_modules` names no layer of the model.
    """
    from peft import LoraConfig

    extra = _embeddings(model, stage) if options["train_embeddings"] else {}
    # PEFT would change the base for such a start; `start` makes it without.
    passed = {
        key: value
        for key, value in stage.peft.items()
        if key != "init_lora_weights" or not moves_base(value)
    }
    config = LoraConfig(
        r=options["rank"],
        lora_alpha=options["alpha"] if options["alpha"] is not None else 2 * options["rank"],
        lora_dropout=options["dropout"],
        use_rslora=options["rslora"],
        task_type=task_type(model),
        **{**passed, **choose_targets(stage, options, model).fields(passed), **extra},
    )
    _check_rank(options["rank"], config, model, stage)
    return config


def start(
    stage: Stage,
    options: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[PreparedRow],
) -> str | None:
    """Give the module the first weights that the stage asks for, where PEFT would change the base
    for them; what was done, and a note on layers that are narrower than the rank.
    """
    from peft.tuners.lora import LoraLayer

    notes = []
    targets = describe_targets(stage, options, model)
    if targets:
        notes.append(targets)
    value = stage.peft.get("init_lora_weights", True)
    if isinstance(value, str) and moves_base(value):
        begin_with(model, value)
        notes.append(
            f"the LoRA starts from {value}; the base stays as it is, and the result is saved as a"
            f" plain LoRA of twice the rank, which loads everywhere"
        )
    rank = options["rank"]
    layers = {
        name.rsplit(".", 1)[-1]: min(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    narrow = {name: width for name, width in sorted(layers.items()) if width < rank}
    if narrow:
        listed = ", ".join(f"{name} {width}" for name, width in narrow.items())
        notes.append(
            f"note: rank {rank} is larger than the width of some layers ({listed}), where it has no"
            " more effect than a rank of that width"
        )
    return "; ".join(notes) or None


def _embeddings(model: Model, stage: Stage) -> dict[str, Any]:
    """The fields of LoraConfig that train the embeddings and the output layer whole: one matrix if
    the model ties them.
    """
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embeddings.weight
    wanted = [names[id(embeddings)]] if tied else [names[id(embeddings)], names[id(head)]]
    return {
        "modules_to_save": list(
            dict.fromkeys([*(stage.peft.get("modules_to_save") or []), *wanted])
        )
    } | ({"ensure_weight_tying": True} if tied else {})


def _check_rank(rank: int, config: Any, model: Model, stage: Stage) -> None:
    """Raise InputError if the rank is larger than every layer that is corrected."""
    import torch
    from peft.tuners.tuners_utils import check_target_module_exists

    everything = config.target_modules == ALL_LINEAR
    head = model.get_output_embeddings()
    widths = {
        name: min(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module is not head if everything else bool(check_target_module_exists(config, name)))
    }
    value = stage.peft.get("init_lora_weights")
    if isinstance(value, str) and value.lower().startswith(COMPONENTS) and widths:
        name = min(widths, key=lambda key: widths[key])
        if rank > widths[name]:
            raise InputError(
                f"rank {rank} with init_lora_weights {value} is larger than"
                f" the {widths[name]} components that {name.rsplit('.', 1)[-1]} has",
                where=f"stage {stage.name}",
                allowed=f"rank: 1 to {widths[name]} with it",
            )
    if widths and rank > max(widths.values()):
        name = max(widths, key=lambda key: widths[key])
        raise InputError(
            f"rank {rank} is larger than every layer it would correct: the"
            f" widest is {widths[name]} ({name.rsplit('.', 1)[-1]})",
            where=f"stage {stage.name}",
            allowed=f"rank: 1 to {widths[name]}",
            hint="8 to 64 is usual; update: full trains the whole matrices",
        )
