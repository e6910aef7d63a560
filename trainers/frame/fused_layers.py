"""Fused kernels in the layers of a model (plan key `kernels`): norms, rotary embeddings, MLPs.

A fused kernel reads its input once and keeps less for the backward pass. The losses are left alone:
ours never hold full logits. Before training, the model with the kernels must give the outputs and
gradients that it gives without; if not, they are taken off again and the run says so, because a
wrong kernel trains without any other sign.

Dimensions: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from advisor.methods.kernels import AUTO, kernel
from trainers.frame.evaluating import attention_autocast, first_float_dtype
from trainers.frame.job import Job
from trainers.frame.kernels import first_line, interpreted, why_not
from trainers.frame.telling import tell
from trainers.frame.types import Device, Model

FUSED = "_fused_layers"  # set on a model that has them: the word of the plan
LIGER = "liger"
# What of Liger is put in: without its losses, which would replace the model's whole forward.
PARTS: Mapping[str, bool] = {
    "rope": True,
    "rms_norm": True,
    "layer_norm": False,  # some of its layers need what PEFT wraps
    "swiglu": True,
    "geglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}
SHAPE_BT = (2, 8)  # of the batch that is tried
# Largest distance of an output or gradient from that of the plain layers, as a share of its own
# length: what rounding explains through all layers in 16 bits, and in float32. A kernel that is
# wrong in one layer is off by several tenths.
LIMIT_HALF, LIMIT_FLOAT32 = 0.1, 1e-3


def fuse_layers(model: Model, job: Job, device: Device) -> None:
    """Put the stage's fused kernels into a freshly loaded model, if they give its numbers; else
    leave it as it was, and say why.
    """
    restore_functions()
    word = job.stage.kernels
    if word == "none" or (word == AUTO and device.type != "cuda" and not interpreted()):
        return
    asked, name = word != AUTO, LIGER if word == AUTO else word
    reason = _why_unfit(name, model, device) or _tried(name, model)
    if not reason:
        setattr(model, FUSED, name)
        _say(job, f"kernels: {name}, which gives the numbers of the plain layers")
    elif asked:
        _say(job, f"WARNING: kernels: none instead of {name}: {reason}")
    else:
        _say(job, f"kernels: none: {name} {reason}")


def fused_in(model: Model) -> str:
    """The word of the fused kernels in a model, whatever module is on it; 'none' without any."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(base, FUSED, "none"))


def fuse_like(model: Any, first: Model) -> Any:
    """The model with the kernels of the first one, so that the same numbers can be expected."""
    if fused_in(first) != "none":
        PUT_IN[fused_in(first)](model)
    return model


_said: set[str] = set()


def _say(job: Job, line: str) -> None:
    """Say a line once: a stage may load its base several times."""
    if line not in _said:
        _said.add(line)
        tell(job, line)


def _why_unfit(name: str, model: Model, device: Device) -> str:
    """Why the kernels are not for this machine or model; empty if nothing speaks against it."""
    one = kernel(name)
    reason = why_not(one, device) if one is not None else None
    if reason is not None:
        hint = reason.hint.removesuffix(", or ").removesuffix("; or ")
        return f"{reason.what.removeprefix('which ')}{f' ({hint})' if hint else ''}"
    if name == LIGER and model.config.model_type not in _liger().MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"has no kernels for {model.config.model_type} models"
    return ""


def _liger() -> Any:
    return importlib.import_module("liger_kernel.transformers.monkey_patch")


def put_in_liger(model: Any) -> None:
    """Liger's kernels in the layers of this model alone.

    Liger replaces forward methods of the model's layers, and in the module of the architecture its
    classes, which would change every model built later (put back here), and functions such as the
    one for rotary embeddings, which the layers look up there (kept, and noted for
    `restore_functions`).
    """
    before = {name: dict(vars(module)) for name, module in _architectures().items()}
    apply = _liger().MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type]
    taken = inspect.signature(apply).parameters
    apply(model=model, **{part: on for part, on in PARTS.items() if part in taken})
    for name, module in _architectures().items():
        for key, old in before.get(name, {}).items():
            if vars(module)[key] is old:
                continue
            if isinstance(old, type):
                setattr(module, key, old)
            else:
                _functions.setdefault((name, key), old)


def put_in_hub(model: Any) -> None:
    """The layer kernels that transformers finds on the hub for this model, for training."""
    model.set_use_kernels(True)


PUT_IN: Mapping[str, Callable[[Any], None]] = {LIGER: put_in_liger, "hub": put_in_hub}
_functions: dict[tuple[str, str], Any] = {}  # (module, name) -> the function before it was replaced


def restore_functions() -> None:
    """Undo what earlier kernels replaced for all models of an architecture."""
    for (name, key), old in _functions.items():
        setattr(sys.modules[name], key, old)
    _functions.clear()


def _architectures() -> dict[str, Any]:
    """The modules of transformers that hold the code of models, as far as they are imported."""
    return {
        name: module
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and ".modeling_" in name
    }


# --------------------------------------------------------------------------- the same numbers


def _tried(name: str, model: Model) -> str:
    """Put the kernels in, and take them off again if the model's numbers change; why."""
    import torch

    limit = LIMIT_FLOAT32 if first_float_dtype(model) == torch.float32 else LIMIT_HALF
    with _undone_on_failure(model) as outcome:
        try:
            plain = numbers(model)
            PUT_IN[name](model)
            found = largest_gap(numbers(model), plain)
        except Exception as error:
            outcome.reason = f"fails on a tiny batch ({first_line(error)})"
            return outcome.reason
        if not found.size <= limit:  # also if it is no number
            outcome.reason = (
                f"changes the {found.what} of a tiny batch by {found.size:.2g} of its length;"
                f" rounding explains {limit:g}"
            )
    return outcome.reason


class _Outcome:
    reason = ""


@contextmanager
def _undone_on_failure(model: Model) -> Any:
    """Give every module of the model the attributes that it had, if a reason is noted."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    outcome = _Outcome()
    yield outcome
    if outcome.reason:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        restore_functions()


class Gap(NamedTuple):
    """How far one tensor is from what it should be."""

    what: str
    size: float


def largest_gap(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Gap:
    """The largest distance between tensors of the same name, as a share of the second's length."""
    gaps = [
        Gap(name, float((mine[name] - other).norm() / other.norm().clamp(min=1e-30)))
        for name, other in theirs.items()
    ]
    return max(gaps, key=lambda gap: gap.size if gap.size == gap.size else float("inf"))


def numbers(model: Any) -> dict[str, Any]:
    """Last hidden states of a tiny batch, and the gradients of its embeddings and of the first
    norms, in float32 by name. Neither the model nor its random numbers are changed.
    """
    import torch

    embed = model.get_input_embeddings()
    device, size = embed.weight.device, embed.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, size, SHAPE_BT, generator=generator).to(device)
    was_training = model.training
    model.train()  # the kernels of the hub differ in training and inference
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.enable_grad(),
            attention_autocast(model),
        ):
            torch.manual_seed(0)
            embedded_BTH = embed(ids_BT).detach().requires_grad_(True)
            out_BTH = model.base_model(inputs_embeds=embedded_BTH, use_cache=False)[0]
            norms = {
                name: parameter
                for name, parameter in model.named_parameters()
                if parameter.dim() == 1 and parameter.requires_grad
            }
            inputs = {"gradient of the embeddings": embedded_BTH}
            inputs |= {f"gradient of {name}": norms[name] for name in list(norms)[:2]}
            away_BTH = torch.randn(out_BTH.shape, generator=generator).to(device, out_BTH.dtype)
            gradients = torch.autograd.grad(
                out_BTH, list(inputs.values()), away_BTH, allow_unused=True
            )
    finally:
        model.train(was_training)
    found = {"output": out_BTH, **dict(zip(inputs, gradients, strict=True))}
    return {name: value.detach().float() for name, value in found.items() if value is not None}
