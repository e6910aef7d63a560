"""Mixtures of experts: where a model keeps its experts and routers, and the loss that balances
them.

transformers adds that loss to a model's output if `output_router_logits` is set in its config. The
flag breaks generation with a cache (the loss is computed from all positions of the attention mask
and the router's choices for one token), so it is off here from loading to saving: training asks for
the loss in the call, and what is saved has the base's own values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

FLAG, WEIGHT = "output_router_logits", "router_aux_loss_coef"
ROUTER_CLASS = re.compile(r"(Router|Gating|Gate)$")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The routed part of a model, by the names of its modules and parameters."""

    parameters: tuple[str, ...]  # that hold the weights of all experts of a layer in one tensor
    modules: tuple[str, ...]  # everything below them belongs to experts
    routers: tuple[str, ...]  # what chooses between experts or weighs them
    size: int  # parameters of all experts

    def owns(self, name: str) -> bool:
        """True for a module of an expert or of a router."""
        return any(
            name == part or name.startswith(f"{part}.") for part in (*self.modules, *self.routers)
        )


def find_experts(model: Any) -> Experts | None:
    """The routed experts of a model, with or without PEFT's wrapping; None for a dense one.

    transformers keeps the experts of a layer in tensors of three dimensions, models with code of
    their own in a list of modules.
    """
    import torch

    convolutions = torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d
    lists = torch.nn.ModuleList | torch.nn.ModuleDict
    counts: dict[str, int] = {}  # what holds experts: how many
    parameters: list[str] = []
    size = 0
    for wrapped_name, module in model.named_modules():
        # PEFT wraps what holds experts once for each of its parameters.
        name = re.sub(r"(\.base_layer)+$", "", wrapped_name)
        if isinstance(module, lists) and name.endswith("experts") and len(module) > 1:
            counts[name] = len(module)
            size += sum(parameter.numel() for parameter in module.parameters())
        elif "expert" in f"{name}{type(module).__name__}".lower() and not isinstance(
            module, convolutions
        ):
            for part, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    parameters.append(f"{name}.{part}")
                    counts[name] = int(parameter.shape[0])
                    size += parameter.numel()
    if not counts:
        return None
    modules = dict(model.named_modules())
    routers = set()
    for name, count in counts.items():
        block = name.rpartition(".")[0]
        for child, module in modules[block].named_children():
            linear = isinstance(module, torch.nn.Linear) and module.out_features in (1, count)
            if linear or ROUTER_CLASS.search(type(module).__name__):
                routers.add(f"{block}.{child}")
    return Experts(
        parameters=tuple(parameters),
        modules=tuple(counts),
        routers=tuple(sorted(routers - set(counts))),
        size=size,
    )


def is_mixture(config: Any) -> bool:
    """Whether a model of this config has routed experts, by the names that transformers uses."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return any(getattr(config.get_text_config(), name, None) for name in names)


def packed_size(model: Any) -> int:
    """Parameters of experts that are held in 4 bits (trainers/start/packed_experts.py)."""
    return sum(
        getattr(module, part).numel()
        for module in model.modules()
        for part in getattr(module, "nf4_states", ())
    )


# --------------------------------------------------------------------------- the flag


def silence_routers(model: Any) -> Any:
    """The model, which no longer returns its routers' choices unless a call asks for them.

    Also puts the weight of the loss back to the base's own, which TRL changes.
    """
    base = unwrapped(model)
    config = base.config.get_text_config()
    if hasattr(config, FLAG):
        if "router_settings" not in vars(base):
            base.router_settings = {
                key: getattr(config, key) for key in (FLAG, WEIGHT) if hasattr(config, key)
            }
        for key, value in {**base.router_settings, FLAG: False}.items():
            setattr(config, key, value)
    return model


@contextmanager
def returning_routers(model: Any, on: bool | None = None) -> Iterator[None]:
    """Inside, the config asks for the balancing loss, or does not, or (None) has the values that
    the base came with; afterwards it is silent.
    """
    base = unwrapped(model)
    config = base.config.get_text_config()
    asked = vars(base).get("router_settings", {}) if on is None else {FLAG: on}
    for key, value in asked.items():
        if hasattr(config, key):
            setattr(config, key, value)
    try:
        yield
    finally:
        silence_routers(model)


def unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# --------------------------------------------------------------------------- the loss


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Whether a stage trains with the loss that balances experts."""

    on: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)  # for TRL's config
    said: str | None = None  # in words; None for a dense model


def choose_balance(
    model: Any,
    peft_config: Any,
    config_class: type,
    passed: Mapping[str, Any],
    *,
    writes: bool = True,
) -> Balance:
    """Whether to train with the balancing loss: with the base's weight for it if experts or routers
    are trained, else without.

    A frozen router cannot be balanced: the loss would move the layers before it instead.

    Args:
        model: Before the trainer is built.
        peft_config: Of a new module; None if the weights are trained, or the model has its module.
        config_class: TRL's.
        passed: The stage's `trl:`; a weight given there decides.
        writes: The model generates text; transformers' models that score have no such loss.
    """
    config = unwrapped(model).config.get_text_config()
    experts = find_experts(model)
    if experts is None and not hasattr(config, FLAG):
        return Balance()
    if not hasattr(config, FLAG) or not writes:
        owner = "this architecture" if writes else "a model that scores"
        return Balance(said=f"mixture of experts: {owner} has no load-balancing loss")
    known = WEIGHT in {item.name for item in fields(config_class)}
    weight = passed.get(WEIGHT)
    own = vars(unwrapped(model)).get("router_settings", {}).get(WEIGHT) or 0.0
    trained = trains_experts(model, peft_config, experts)
    if weight is None and not trained:
        said = "trained without the load-balancing loss, because experts and routers are frozen"
        arguments = {WEIGHT: 0.0} if known else {}
        return Balance(arguments=arguments, said=f"mixture of experts: {said}")
    effective = own if weight is None else float(weight)
    said = f"trained with the load-balancing loss, weight {effective:g}" + (
        " (the base's own)" if weight is None else ""
    )
    if effective == 0:
        said = "trained without the load-balancing loss: its weight is 0"
    return Balance(on=effective != 0, said=f"mixture of experts: {said}")


def trains_experts(model: Any, peft_config: Any, experts: Experts | None) -> bool:
    """True if the weights of experts or routers are trained, or corrections of them."""
    if experts is None:
        return peft_config is None
    if peft_config is None:
        return any(
            parameter.requires_grad and experts.owns(name)
            for name, parameter in model.named_parameters()
        )
    targets = getattr(peft_config, "target_parameters", None) or ()
    saved = getattr(peft_config, "modules_to_save", None) or ()
    return any(ends_with(name, targets) for name in experts.parameters) or any(
        ends_with(name, saved) for name in (*experts.routers, *experts.modules)
    )


def ends_with(name: str, endings: Iterable[str]) -> bool:
    """True if the dotted name is one of the endings or ends with one, as PEFT matches names."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
