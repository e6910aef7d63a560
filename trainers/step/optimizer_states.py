"""States of optimizers that are more than plain tensors, as data for a checkpoint and back; and an
optimizer's states loaded exactly as they were saved.

torchao keeps quantised tensors, GaLore and APOLLO objects that project gradients. A checkpoint
holds what they consist of, and names their class: one of those below, never any other.

torch casts what it loads to the dtype of the weights, which rounds the float32 states that some
keep for bfloat16 weights. bitsandbytes makes the states of a paged optimizer in managed memory, but
`load_state_dict` puts plain tensors of the GPU in their place: a resumed run would need memory that
its first part did not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PAGED = ("state1", "state2")  # what bitsandbytes pages
# Class -> the module that has it. GaLore's projector is in both libraries.
QUANTISED: Mapping[str, str] = {
    "OptimState8bit": "torchao.optim.subclass_8bit",
    "OptimState4bit": "torchao.optim.subclass_4bit",
}
PROJECTORS: Mapping[str, tuple[str, ...]] = {
    "GaLoreProjector": ("galore_torch.galore_projector", "apollo_torch.svd_projector"),
    "GradientProjector": ("apollo_torch.random_projector",),
}


def is_quantised(value: Any) -> bool:
    """Whether the value is a quantised tensor of torchao."""
    return QUANTISED.get(type(value).__name__) == type(value).__module__


def quantised_parts(value: Any) -> dict[str, Any]:
    """The tensors and facts that a quantised tensor consists of."""
    names, context = value.__tensor_flatten__()
    return {
        "class": type(value).__name__,
        "tensors": {name: getattr(value, name) for name in names},
        "context": [
            _dtype_name(item) if _is_dtype(item) else tuple(item) if _is_size(item) else item
            for item in context
        ],
    }


def quantised(parts: Mapping[str, Any]) -> Any:
    """The quantised tensor that `quantised_parts` was given."""
    import torch

    name = parts["class"]
    kind = getattr(importlib.import_module(QUANTISED[name]), name)
    context = [
        getattr(torch, item) if isinstance(item, str) else
        torch.Size(item) if isinstance(item, tuple) else item
        for item in parts["context"]
    ]  # fmt: skip
    return kind.__tensor_unflatten__(parts["tensors"], context)


def is_projector(value: Any) -> bool:
    """Whether the value projects gradients for GaLore or APOLLO."""
    return type(value).__module__ in PROJECTORS.get(type(value).__name__, ())


def projector_parts(value: Any) -> dict[str, Any]:
    """What a projector consists of."""
    kind = type(value)
    return {"class": kind.__name__, "module": kind.__module__, "values": dict(vars(value))}


def projector(parts: Mapping[str, Any]) -> Any:
    """The projector that `projector_parts` was given. Raises ValueError for any other class."""
    name, module = parts["class"], parts["module"]
    if module not in PROJECTORS.get(name, ()):
        raise ValueError(f"a checkpoint holds no {module}.{name}")
    kind = getattr(importlib.import_module(module), name)
    made = kind.__new__(kind)
    vars(made).update(parts["values"])
    return made


def _is_dtype(value: Any) -> bool:
    import torch

    return isinstance(value, torch.dtype)


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple)


def _dtype_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


# --------------------------------------------------------------------------- loading


def put_states(
    optimizer: Any, parameters: Mapping[str, Any], states: Mapping[str, Any], groups: Sequence[Any]
) -> None:
    """Give an optimizer its states exactly as they were; paged ones in paged memory.

    Args:
        optimizer: Of torch or another library.
        parameters: Name -> parameter, of all that it has.
        states: Name of a parameter -> its state.
        groups: What its groups hold beside parameters, in order.
    """
    names = {id(one): name for name, one in parameters.items()}
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group |= saved
        for parameter in group["params"]:
            if state := states.get(names[id(parameter)]):
                optimizer.state[parameter] = {
                    key: _placed(optimizer, group, parameter, key, value)
                    for key, value in state.items()
                }


def _placed(optimizer: Any, group: Mapping[str, Any], parameter: Any, key: str, value: Any) -> Any:
    """A part of a parameter's state where the optimizer expects it."""
    if is_projector(value):
        _move(value, parameter.device)
    elif hasattr(value, "device") and key in PAGED and getattr(optimizer, "is_paged", False):
        # Small ones are not paged; bitsandbytes decides by the parameter's size.
        paged = optimizer.get_state_buffer(parameter, dtype=value.dtype)
        paged.copy_(value)
        return paged
    elif hasattr(value, "device"):
        # As torch does: a count of steps is read on the host, unless a kernel counts.
        stays = key == "step" and not (group.get("fused") or group.get("capturable"))
        # Not the tensor that was read, whose memory is the file.
        return value.to(value.device if stays else parameter.device, copy=True)
    return value


def _move(projector_: Any, device: Any) -> None:
    """Bring the matrix of a projector to the weights' device."""
    matrix = getattr(projector_, "ortho_matrix", None)
    if matrix is not None:
        projector_.ortho_matrix = matrix.to(device)


@contextmanager
def as_evaluated(optimizer: Any) -> Iterator[None]:
    """Inside, the weights are those that the optimizer would end with: under one that averages
    (schedule_free_adamw) they are others while it trains.
    """
    plain = getattr(optimizer, "optimizer", optimizer)
    if not averages(plain):
        yield
        return
    plain.eval()
    try:
        yield
    finally:
        plain.train()


def averages(plain: Any) -> bool:
    """Whether the optimizer trains at other weights than those it ends with."""
    return callable(getattr(plain, "eval", None)) and callable(getattr(plain, "train", None))


def end_training(trainer: Any) -> None:
    """Put the weights that the optimizer ends with into the model."""
    plain = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if averages(plain):
        plain.eval()
