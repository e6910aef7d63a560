"""LoRA: a low-rank correction beside each frozen weight matrix.

On a 4-bit base (quantization: nf4) this is QLoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.plan.model import Stage
from trainers.job import Model, Tokenizer
from trainers.rows.row import PreparedRow
from trainers.updates import COMMON_KEYS
from trainers.updates.lora_targets import choose_targets, describe_targets, last_part, target_faults

PLAN_KEYS: Mapping[str, str] = {
    **COMMON_KEYS,
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "use_rslora": "rslora",
}
CONFIG = "peft:LoraConfig"
# Values of PEFT's init_lora_weights that leave the base as it is and need nothing but the base.
STARTS = ("gaussian", "orthogonal")


def faults(stage: Stage) -> list[Fault]:
    """Targets and values of init_lora_weights that this stage cannot have."""
    return [*target_faults(stage), *_start_faults(stage)]


def _start_faults(stage: Stage) -> list[Fault]:
    value = stage.peft.get("init_lora_weights", True)
    if isinstance(value, bool):
        return []
    at = f"stage {stage.name}: peft: init_lora_weights: {value}"
    if value not in STARTS:
        # A part taken out of 16-bit weights cannot be put back to the bit, so that the module which
        # was trained and the one that is saved differ: by 0.9 in a log-probability for PiSSA on
        # SmolLM2-135M in bfloat16. A decomposition by data needs a pass before training.
        what = (
            f"{at} is no start that these trainers make: it changes the base or needs a pass over"
            " the data"
        )
        return [Fault(where=at, what=what, allowed=f"true, {', '.join(STARTS)}")]
    found = []
    rank = stage.options.get("rank")
    if value == "orthogonal" and rank is not None and rank % 2:
        found.append(Fault(where=at, what=f"{at} needs an even rank, and rank is {rank}"))
    if value == "orthogonal" and stage.quantization is not None:
        what = (
            f"{at} cannot be had with quantization {stage.quantization}: PEFT makes it in the dtype"
            " of the base"
        )
        found.append(Fault(where=at, what=what, allowed="quantization: null with it"))
    return found


def arguments(stage: Stage, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Size and places of the corrections.

    Raises InputError if `target_modules` names no layer of the model.
    """
    return {
        "r": options["rank"],
        "lora_alpha": options["alpha"] if options["alpha"] is not None else 2 * options["rank"],
        "lora_dropout": options["dropout"],
        "use_rslora": options["rslora"],
        **choose_targets(stage, options, model),
        **(_embeddings(model, stage) if options["train_embeddings"] else {}),
    }


def start(
    stage: Stage,
    options: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[PreparedRow],
) -> str | None:
    """Which layers are corrected, and a note on those that are narrower than the rank.

    Raises InputError if all of them are.
    """
    from peft.tuners.lora import LoraLayer

    notes = []
    targets = describe_targets(stage, options, model)
    if targets:
        notes.append(targets)
    rank = options["rank"]
    layers = {
        last_part(name): min(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    narrow = {name: width for name, width in sorted(layers.items()) if width < rank}
    if narrow and len(narrow) == len(layers):
        widest = max(narrow, key=lambda name: narrow[name])
        raise InputError(
            f"rank {rank} is larger than every layer it would correct: the"
            f" widest is {narrow[widest]} ({widest})",
            where=f"stage {stage.name}",
            allowed=f"rank: 1 to {narrow[widest]}",
            hint="8 to 64 is usual; update: full trains the whole matrices",
        )
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
    names = {id(module): last_part(name) for name, module in model.named_modules()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embeddings.weight
    wanted = [names[id(embeddings)]] if tied else [names[id(embeddings)], names[id(head)]]
    return {
        "modules_to_save": list(
            dict.fromkeys([*(stage.peft.get("modules_to_save") or []), *wanted])
        )
    } | ({"ensure_weight_tying": True} if tied else {})
