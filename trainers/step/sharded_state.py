"""What every process holds its own part of, in a checkpoint: trained weights and the optimizer's
state, by torch.distributed.checkpoint into safetensors, without pickle.

Each process writes its parts, and reads those that it holds of whatever was written: any number of
processes can go on from it. Numbers that no process holds a part of (counts of steps) are in the
checkpoint's JSON, beside the names of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.job.types import Model

FOLDER = "divided"  # in a checkpoint
WEIGHT, STATE = "weight:", "state:"


def save_divided(model: Model, optimizer: Any, folder: Path) -> dict[str, Any]:
    """Write trained weights and optimizer state into the folder; what else of the optimizer there
    is, as nested values that JSON and safetensors can hold. Call it in every process.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    tensors = {f"{WEIGHT}{name}": one.detach() for name, one in _trained(model)}
    rest: dict[str, Any] = {}
    for name, parameter in _trained(model):
        kept: dict[str, Any] = {}
        for key, value in _plain(optimizer).state.get(parameter, {}).items():
            if _is_divided(value):
                tensors[f"{STATE}{key}:{name}"] = value
                kept[key] = {"divided": str(value.dtype).removeprefix("torch.")}
            else:
                kept[key] = {"value": value}
        rest[name] = kept
    writer = HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    checkpoint.save(tensors, storage_writer=writer)
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in _plain(optimizer).param_groups
    ]
    return {"state": rest, "groups": groups}


def load_weights(model: Model, folder: Path) -> None:
    """Read the trained weights back into the model. Call it in every process."""
    _read({f"{WEIGHT}{name}": one.detach() for name, one in _trained(model)}, folder)


def load_optimizer(model: Model, optimizer: Any, folder: Path, rest: dict[str, Any]) -> None:
    """Read the optimizer's state back. Call it in every process.

    Args:
        rest: What `save_divided` returned.
    """
    import torch

    plain, tensors = _plain(optimizer), {}
    for name, parameter in _trained(model):
        state: dict[str, Any] = {}
        for key, kept in rest["state"].get(name, {}).items():
            if "divided" in kept:
                dtype = getattr(torch, kept["divided"])
                state[key] = torch.zeros_like(parameter.detach(), dtype=dtype)
                tensors[f"{STATE}{key}:{name}"] = state[key]
            else:
                state[key] = kept["value"]
        if state:
            plain.state[parameter] = state
    _read(tensors, folder)
    for group, saved in zip(plain.param_groups, rest["groups"], strict=True):
        group |= saved


def _read(tensors: dict[str, Any], folder: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    if tensors:
        checkpoint.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / FOLDER)))


def _trained(model: Model) -> Iterator[tuple[str, Any]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def _plain(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _is_divided(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
