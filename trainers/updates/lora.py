"""LoRA: a low-rank correction beside each frozen weight matrix. On a 4-bit base (quantization: nf4)
this is QLoRA.

On a mixture of experts PEFT's own `all-linear` takes the router and all routed experts, too. Here
it means attention and shared layers, `with-experts` adds the routed experts, and the router is
never corrected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from advisor.ground.errors import Fault, InputError, did_you_mean
from advisor.plan.model import Stage
from trainers.job import AdaptedModel, Model, Tokenizer
from trainers.rows.row import PreparedRow
from trainers.updates import COMMON_KEYS
from trainers.updates.experts import Experts, ends_with, find_experts

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
ALL_LINEAR, SHARED, WITH_EXPERTS = "all-linear", "attention-and-shared", "with-experts"
NAMED = (ALL_LINEAR, SHARED, WITH_EXPERTS)
EMBEDDINGS = "embed_tokens"  # not linear, and PEFT can correct them
INSIDE_LORA = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")
HEADS = ("score", "classifier")  # of models that score, as PEFT knows them
# PEFT 0.21, tuners_utils.py: what it refuses to correct, and in which families.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
READ_BY_KERNELS = ("out_proj", "conv1d")


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


# --------------------------------------------------------------------------- which layers


def target_faults(stage: Stage) -> list[Fault]:
    """What corrections of routed experts cannot be combined with."""
    if stage.options.get("target_modules") != WITH_EXPERTS:
        return []
    at = f"stage {stage.name}: target_modules: {WITH_EXPERTS}"
    # PEFT multiplies the correction out and adds it to the tensor of all experts.
    why = "corrections of routed experts are added to one tensor of all of them"
    hint = f"remove it, or target_modules: {SHARED}"
    return [
        Fault(where=at, what=f"{at} cannot have {key}: {why}", hint=hint)
        for key in for_matrices(stage)
    ]


def for_matrices(stage: Stage) -> list[str]:
    """The stage's keys that act on the input or the matrix of a layer, which a correction added to
    a tensor leaves alone.
    """
    start = stage.peft.get("init_lora_weights")
    return [
        *(["dropout"] if stage.options.get("dropout") else []),
        *(f"peft: {{{key}: true}}" for key in ("use_dora", "lora_bias") if stage.peft.get(key)),
        *(["peft: {init_lora_weights: orthogonal}"] if start == "orthogonal" else []),
    ]


def choose_targets(stage: Stage, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig for the layers that the stage's `target_modules` names in
    this model.

    Raises InputError if it names none, a router, or the output layer.
    """
    wanted = options["target_modules"]
    wanted = wanted if isinstance(wanted, str) else list(wanted)
    experts = find_experts(model)
    layers = linear_layers(model)
    check_parameters(stage, model, experts)
    if experts is None:
        if wanted == WITH_EXPERTS:
            raise InputError(
                f"target_modules: {WITH_EXPERTS} needs a mixture of experts,"
                f" and {type(model).__name__} has no routed experts",
                where=f"stage {stage.name}",
                hint=f"target_modules: {ALL_LINEAR}",
            )
        if wanted not in NAMED:
            matching_layers(wanted, layers, stage, experts)
            return {"target_modules": wanted}
        allowed = [name for name in layers if not is_refused(name, model)]
        return {"target_modules": ALL_LINEAR if allowed == layers else allowed}
    shared = [name for name in layers if not experts.owns(name) and not is_refused(name, model)]
    chosen = shared if wanted in NAMED else matching_layers(wanted, layers, stage, experts)
    taken = taken_for_experts({last_part(name) for name in chosen}, model)
    modules = [name for name in chosen if last_part(name) not in taken]
    if not isinstance(wanted, str):
        modules += [name for name in wanted if last_part(name) == EMBEDDINGS]
    parameters = list(stage.peft.get("target_parameters") or ())
    if stage.quantization is None and not for_matrices(stage):
        apart = [name for name in chosen if last_part(name) in taken]
        parameters += [after_layer(f"{name}.weight") for name in apart]
    if wanted == WITH_EXPERTS:
        parameters += map(after_layer, experts.parameters)
    return {"target_modules": modules} | (
        {"target_parameters": list(dict.fromkeys(parameters))} if parameters else {}
    )


def check_parameters(stage: Stage, model: Model, experts: Experts | None) -> None:
    """Raise InputError if the stage's own `target_parameters` names none of the model: PEFT only
    warns, and trains nothing there.
    """
    names = [name for name, _ in model.named_parameters()]
    given = stage.peft.get("target_parameters") or ()
    if missing := [one for one in given if not any(ends_with(name, [one]) for name in names)]:
        at = f"stage {stage.name}: peft: target_parameters"
        routed = sorted({after_layer(name) for name in experts.parameters}) if experts else []
        raise InputError(
            f"{at} names no parameter of this model: {', '.join(missing)}",
            where=at,
            allowed=f"the experts' are {', '.join(routed)}" if routed else "",
            hint=f"target_modules: {WITH_EXPERTS} corrects them all" if routed else "",
        )


def describe_targets(stage: Stage, options: Mapping[str, Any], model: Model) -> str | None:
    """What the module on a mixture of experts corrects, in words; None for a dense model."""
    experts = find_experts(model)
    if experts is None:
        return None
    config = cast(AdaptedModel, model).peft_config["default"]
    wanted, tensors = options["target_modules"], config.target_parameters or ()
    routed = sorted(one for one in tensors if any(ends_with(e, [one]) for e in experts.parameters))
    others = [one.removesuffix(".weight") for one in tensors if one not in routed]
    listed = ", ".join(sorted({after_layer(one) for one in (*config.target_modules, *others)}))
    untouched = sorted(
        {
            after_layer(name)
            for name in linear_layers(model)
            if wanted in NAMED and not experts.owns(name) and not INSIDE_LORA.search(name)
        }
    )
    return (
        f"mixture of experts: target_modules"
        f" {wanted if isinstance(wanted, str) else ', '.join(wanted)} corrects {listed}"
        + (
            f" and the routed experts ({', '.join(map(after_layer, routed))})"
            if routed
            else ", not the routed experts"
        )
        + (
            f"; PEFT takes the names of {', '.join(untouched)} for those of routed experts, so they"
            f" stay as they are (without quantization and dropout they can be corrected)"
            if untouched
            else ""
        )
    )


def linear_layers(model: Model) -> list[str]:
    """The names of all linear layers but the output layer."""
    import torch

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and last_part(name) not in HEADS
    ]


def matching_layers(
    wanted: str | list[str], layers: Sequence[str], stage: Stage, experts: Experts | None
) -> list[str]:
    """The layers of the list that `target_modules` names.

    Raises InputError if a name is no layer, is the output layer, or is a router.
    """
    at = f"stage {stage.name}: target_modules names"
    ends = sorted({last_part(name) for name in layers})
    allowed = f"{', '.join(NAMED if experts else NAMED[:1])}, or some of: {', '.join(ends)}"
    if "lm_head" in wanted:
        raise InputError(
            f"{at} lm_head, whose correction would have no effect on the loss",
            where=at,
            allowed=f"{ALL_LINEAR} leaves it out",
        )
    if isinstance(wanted, str):
        # PEFT takes a single text as a regular expression for whole names.
        found = [name for name in layers if re.fullmatch(wanted, name)]
        if not found:
            raise InputError(
                f"{at} no layer of this model: {wanted} is read as a regular expression and matches"
                " none",
                where=at,
                allowed=allowed,
                hint=did_you_mean(wanted, NAMED),
            )
        missing: list[str] = []
    else:
        # A list holds names or their endings.
        found = [name for name in layers if ends_with(name, wanted)]
        missing = [
            target
            for target in wanted
            if not any(ends_with(name, [target]) for name in layers)
            and last_part(target) != EMBEDDINGS
        ]
    if missing:
        raise InputError(
            f"{at} no layer of this model: {', '.join(missing)}",
            where=at,
            allowed=allowed,
            hint=f"target_modules: {WITH_EXPERTS} corrects routed experts" if experts else "",
        )
    routed = [name for name in found if experts is not None and experts.owns(name)]
    if routed:
        raise InputError(
            f"{at} a router or routed experts: {', '.join(sorted(map(after_layer, routed))[:3])}",
            where=at,
            allowed=allowed,
            hint="a corrected router sends tokens to experts that were never trained on them",
        )
    return found


def is_refused(name: str, model: Model) -> bool:
    """True for a layer that PEFT refuses to correct in this architecture: those of Mamba whose
    kernel reads the weight itself.
    """
    return model.config.model_type in MAMBA and last_part(name) in READ_BY_KERNELS


def taken_for_experts(names: Iterable[str], model: Model) -> set[str]:
    """Those of the names that PEFT would take for routed experts or the router.

    PEFT 0.21 renames what transformers 4 called them, also where a shared layer has that name.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for name in names:
        # Both halves of a fused matrix, because one alone is refused.
        halves = (re.sub("^(gate|up)_proj$", f"{half}_proj", name) for half in ("gate", "up"))
        twins = {name, *halves}
        config = LoraConfig(target_modules=sorted(twins))
        convert_peft_config_for_transformers(config, model, None)
        if name not in (config.target_modules or ()):
            taken.add(name)
    return taken


def last_part(name: str) -> str:
    """The layer's own name: q_proj."""
    return name.rsplit(".", 1)[-1]


def after_layer(name: str) -> str:
    """The name without everything up to the number of the layer: mlp.experts.down_proj."""
    return re.sub(r"^.*?\.\d+\.", "", name)
