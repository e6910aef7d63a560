"""Which layers of a model LoRA corrects.

On a mixture of experts PEFT's own `all-linear` takes the router and all routed experts, too. Here
it means attention and shared layers, `with-experts` adds the routed experts, and the router is
never corrected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from advisor.ground.errors import Fault, InputError, did_you_mean
from advisor.plan.model import Stage
from trainers.job.types import AdaptedModel, Model
from trainers.updates.experts import Experts, ends_with, find_experts

ALL_LINEAR, SHARED, WITH_EXPERTS = "all-linear", "attention-and-shared", "with-experts"
NAMED = (ALL_LINEAR, SHARED, WITH_EXPERTS)
EMBEDDINGS = "embed_tokens"  # not linear, and PEFT can correct them
INSIDE_LORA = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")
HEADS = ("score", "classifier")  # of models that score, as PEFT knows them
# PEFT 0.21, tuners_utils.py: what it refuses to correct, and in which families.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
READ_BY_KERNELS = ("out_proj", "conv1d")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What LoRA corrects, as fields of PEFT's LoraConfig."""

    modules: str | list[str]
    parameters: tuple[str, ...] = ()

    def fields(self, passed: Mapping[str, Any]) -> dict[str, Any]:
        """The fields, with the parameters that the stage's `peft:` names."""
        parameters = [*self.parameters, *(passed.get("target_parameters") or ())]
        return {"target_modules": self.modules} | (
            {"target_parameters": list(dict.fromkeys(parameters))} if parameters else {}
        )


def target_faults(stage: Stage) -> list[Fault]:
    """What corrections of routed experts cannot be combined with."""
    if stage.options.get("target_modules") != WITH_EXPERTS:
        return []
    at = f"stage {stage.name}: target_modules: {WITH_EXPERTS}"
    # PEFT multiplies the correction out and adds it to the tensor of all experts.
    why = "corrections of routed experts are added to the weights themselves"
    found = []
    if stage.options.get("dropout"):
        what = f"{at} cannot have dropout: {why}, so that no input is left to drop"
        found.append(Fault(where=at, what=what, hint=f"dropout: 0, or target_modules: {SHARED}"))
    for key in ("use_dora", "lora_bias"):
        if stage.peft.get(key):
            what = f"{at} cannot have peft: {{{key}: true}}: {why}"
            found.append(Fault(where=at, what=what, hint=f"remove it, or target_modules: {SHARED}"))
    if decomposes(stage):
        what = (
            f"{at} cannot have peft: {{init_lora_weights: orthogonal}}, made for one matrix:"
            " experts are many in one tensor"
        )
        found.append(Fault(where=at, what=what, hint=f"remove it, or target_modules: {SHARED}"))
    return found


def decomposes(stage: Stage) -> bool:
    """True if LoRA starts from the shape of a linear layer's matrix."""
    return stage.peft.get("init_lora_weights") == "orthogonal"


def choose_targets(stage: Stage, options: Mapping[str, Any], model: Model) -> Targets:
    """The layers that the stage's `target_modules` names in this model.

    Raises InputError if it names none, a router, or the output layer.
    """
    wanted = options["target_modules"]
    wanted = wanted if isinstance(wanted, str) else list(wanted)
    experts = find_experts(model)
    layers = linear_layers(model)
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
            return Targets(modules=wanted)
        allowed = [name for name in layers if not is_refused(name, model)]
        if allowed == layers:
            return Targets(modules=ALL_LINEAR)
        return Targets(
            modules=shortest_endings(allowed, [name for name, _ in model.named_modules()])
        )
    shared = [name for name in layers if not experts.owns(name) and not is_refused(name, model)]
    chosen = shared if wanted in NAMED else matching_layers(wanted, layers, stage, experts)
    everything = [name for name, _ in model.named_modules()]
    taken = taken_for_experts(shortest_endings(chosen, everything), model)
    apart = [name for name in chosen if ends_with(name, taken)]
    modules = shortest_endings([name for name in chosen if name not in apart], everything)
    if not isinstance(wanted, str):
        modules += [name for name in wanted if name.rsplit(".", 1)[-1] == EMBEDDINGS]
    can_be_parameters = (
        stage.quantization is None
        and not options["dropout"]
        and not any(stage.peft.get(key) for key in ("use_dora", "lora_bias"))
        and not decomposes(stage)
    )
    parameters = [f"{name}.weight" for name in apart] if can_be_parameters else []
    if wanted == WITH_EXPERTS:
        parameters += experts.parameters
    return Targets(
        modules=modules, parameters=tuple(dict.fromkeys(after_layer(name) for name in parameters))
    )


def describe_targets(stage: Stage, options: Mapping[str, Any], model: Model) -> str | None:
    """What is corrected in a mixture of experts, in words; None for a dense model.

    Args:
        model: With the module on it.
    """
    experts = find_experts(model)
    if experts is None:
        return None
    config = cast(AdaptedModel, model).peft_config["default"]
    wanted = options["target_modules"]
    parameters = sorted(config.target_parameters or ())
    routed = [
        name for name in parameters if any(ends_with(one, [name]) for one in experts.parameters)
    ]
    others = [name.removesuffix(".weight") for name in parameters if name not in routed]
    listed = ", ".join(sorted({after_layer(name) for name in config.target_modules} | {*others}))
    text = (
        f"mixture of experts: target_modules"
        f" {wanted if isinstance(wanted, str) else ', '.join(wanted)} corrects {listed}"
    )
    text += (
        f" and the routed experts ({', '.join(map(after_layer, routed))})"
        if routed
        else ", not the routed experts"
    )
    untouched = sorted(
        {
            after_layer(name)
            for name in linear_layers(model)
            if wanted in NAMED and not experts.owns(name) and not INSIDE_LORA.search(name)
        }
    )
    if untouched:
        text += (
            f"; PEFT takes the names of {', '.join(untouched)} for those of routed experts, so they"
            f" stay as they are (without quantization and dropout they can be corrected)"
        )
    return text


def linear_layers(model: Model) -> list[str]:
    """The names of all linear layers but the output layer."""
    import torch

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and name.rsplit(".", 1)[-1] not in HEADS
    ]


def matching_layers(
    wanted: str | list[str], layers: Sequence[str], stage: Stage, experts: Experts | None
) -> list[str]:
    """The layers of the list that `target_modules` names.

    Raises InputError if a name is no layer, is the output layer, or is a router.
    """
    at = f"stage {stage.name}: target_modules names"
    ends = sorted({name.rsplit(".", 1)[-1] for name in layers})
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
            and target.rsplit(".", 1)[-1] != EMBEDDINGS
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
    return model.config.model_type in MAMBA and name.rsplit(".", 1)[-1] in READ_BY_KERNELS


def taken_for_experts(names: Sequence[str], model: Model) -> list[str]:
    """Those of the names that PEFT would take for routed experts or the router.

    PEFT 0.21 renames what transformers 4 called them, also where a shared layer has that name.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = []
    for name in names:
        # Both halves of a fused matrix, because one alone is refused.
        twins = {
            name,
            *(re.sub(r"(gate|up)_proj$", f"{half}_proj", name) for half in ("gate", "up")),
        }
        config = LoraConfig(target_modules=sorted(twins))
        convert_peft_config_for_transformers(config, model, None)
        if not set(config.target_modules or ()) >= {name}:
            taken.append(name)
    return taken


def shortest_endings(names: Sequence[str], everything: Iterable[str]) -> list[str]:
    """Endings that match these modules and no other: the last part, the part after the number of
    the layer, or the whole name.
    """
    wanted = set(names)
    others = [name for name in everything if name not in wanted]
    found = []
    for name in names:
        for ending in (name.rsplit(".", 1)[-1], after_layer(name), name):
            if not any(ends_with(other, [ending]) for other in others):
                break
        found.append(ending)
    return sorted(set(found))


def after_layer(name: str) -> str:
    """The name without everything up to the number of the layer: mlp.experts.down_proj."""
    return re.sub(r"^.*?\.\d+\.", "", name)
