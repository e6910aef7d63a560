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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from advisor.methods.kernels import AUTO, kernel, triton_is_interpreted
from trainers.job.evaluating import attention_autocast, first_float_dtype
from trainers.job.job import Job
from trainers.job.types import Device, Model
from trainers.say.progress import tell
from trainers.start.compiling import repeated_layers
from trainers.start.few_layers import on_device
from trainers.start.kernels import first_line, why_not

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
# Largest distance of what a layer adds, or of a gradient, from that of the plain layer, as a share
# of its own length, beyond what the sum with the layer's input rounds away: in 16 bit and float32.
# SmolLM2-135M in bfloat16: 0.05 for norms that round in another place, 0.22 for one norm of 60 that
# is off by a tenth.
LIMIT_HALF, LIMIT_FLOAT32 = 0.15, 1e-3
SUM_STEPS = 2  # of rounding in that sum
AWAY = 2**-6  # gradients from above: small enough that those of norms stay within float16


def fuse_layers(model: Model, job: Job, device: Device) -> None:
    """Put the stage's fused kernels into a freshly loaded model, if they give its numbers; else
    leave it as it was, and say why. Those of a model that was loaded before, such as the policy
    beside its reward model, stay.
    """
    word = job.stage.kernels
    if word == "none" or (word == AUTO and device.type != "cuda" and not triton_is_interpreted()):
        return
    asked, name = word != AUTO, LIGER if word == AUTO else word
    reason = _why_unfit(name, model, device)
    if not reason:
        with on_device(model, job, device) as tried:
            reason = _tried(name, tried)
    if not reason:
        if tried is not model:
            PUT_IN[name](model)
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


def restore_functions(keep: Collection[tuple[str, str]] = ()) -> None:
    """Undo what kernels replaced for all models of an architecture, but for these functions."""
    for name, key in _functions.keys() - set(keep):
        setattr(sys.modules[name], key, _functions.pop((name, key)))


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
            calls = layer_calls(model)
            if not calls:
                return "cannot be tried: transformers names no repeated layers of this model"
            plain = numbers(model, calls)
            PUT_IN[name](model)
            found = largest_gap(numbers(model, calls), plain)
        except Exception as error:
            outcome.reason = f"fails on a tiny batch ({first_line(error)})"
            return outcome.reason
        if not found.size <= limit:  # also if it is no number
            outcome.reason = (
                f"changes {found.what} on a tiny batch by {found.size:.2g} of its length; rounding"
                f" explains {limit:g}"
            )
    return outcome.reason


class _Outcome:
    reason = ""


@contextmanager
def _undone_on_failure(model: Model) -> Iterator[_Outcome]:
    """Give every module of the model the attributes that it had, if a reason is noted."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    in_use = set(_functions)
    outcome = _Outcome()
    yield outcome
    if outcome.reason:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        restore_functions(keep=in_use)


class Call(NamedTuple):
    """One layer as the plain model calls it."""

    name: str
    layer: Any
    hidden_BTH: Any
    others: tuple[Any, ...]
    named: Mapping[str, Any]


class Part(NamedTuple):
    """One tensor that a layer gives."""

    value: Any
    beside: Any  # what is added to it: a layer's input, or the gradient that came from above


class Gap(NamedTuple):
    """How far one tensor is from what it should be."""

    what: str
    size: float


def layer_calls(model: Any) -> list[Call]:
    """What each repeated layer is called with on a tiny batch.

    The layers are compared one by one on these inputs: through a whole model in 16 bit, rounding in
    another place moves gradients by a tenth of their length, as much as a kernel that is wrong.
    """
    import torch

    found: list[Call] = []

    def hook(name: str) -> Callable[..., None]:
        def note(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            hidden, *others = args
            found.append(Call(name, layer, hidden.detach(), tuple(others), dict(kwargs)))

        return note

    embed = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, embed.weight.shape[0], SHAPE_BT, generator=generator)
    names = {id(layer) for layer in repeated_layers(model)}
    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if id(module) in names
    ]
    try:
        with _same_randomness(model), torch.no_grad():
            model.base_model(input_ids=ids_BT.to(embed.weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def numbers(model: Any, calls: Sequence[Call]) -> dict[str, Part]:
    """Output of each layer, and the gradients of its input and of what is a vector among its
    trained weights (the norms), by name. Neither the model nor its random numbers are changed.
    """
    import torch

    found: dict[str, Part] = {}
    for call in calls:
        hidden_BTH = call.hidden_BTH.requires_grad_(True)
        norms = {
            name: parameter
            for name, parameter in call.layer.named_parameters()
            if parameter.dim() == 1 and parameter.requires_grad
        }
        with _same_randomness(model), torch.enable_grad():
            out = call.layer(hidden_BTH, *call.others, **call.named)
            out_BTH = out[0] if isinstance(out, tuple) else out
            away_BTH = AWAY * torch.randn_like(out_BTH)
            gradients = torch.autograd.grad(
                out_BTH, [hidden_BTH, *norms.values()], away_BTH, allow_unused=True
            )
        found[f"the output of {call.name}"] = Part(out_BTH.detach(), call.hidden_BTH.detach())
        for name, gradient in zip(["", *norms], gradients, strict=True):
            if gradient is not None:
                beside = None if name else away_BTH
                whose = f"{call.name}.{name}" if name else f"the input of {call.name}"
                found[f"the gradient of {whose}"] = Part(gradient, beside)
    return found


@contextmanager
def _same_randomness(model: Any) -> Iterator[None]:
    """In the mode of training, in which kernels of the hub differ; dropout draws the same numbers
    each time, and what is drawn afterwards is as if nothing had been.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.train()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            attention_autocast(model),
        ):
            torch.manual_seed(0)
            yield
    finally:
        model.train(was_training)


def largest_gap(mine: Mapping[str, Part], theirs: Mapping[str, Part]) -> Gap:
    """The largest distance between parts of the same name, as a share of what a layer adds."""
    gaps = [Gap(name, _distance(mine[name].value, part)) for name, part in theirs.items()]
    return max(
        gaps,
        key=lambda gap: gap.size if gap.size == gap.size else float("inf"),
        default=Gap("nothing", 0.0),
    )


def _distance(value: Any, part: Part) -> float:
    import torch

    known = part.value.isfinite()  # float16 may overflow, in the plain layer, too
    other = part.value[known].float()
    own = other if part.beside is None else other - part.beside[known].float()
    step = torch.finfo(part.value.dtype).eps
    rounding = 0.0 if part.beside is None else SUM_STEPS * step * float(other.norm())
    distance = float((value[known].float() - other).norm())
    if distance != distance:
        return distance
    return max(0.0, distance - rounding) / max(float(own.norm()), 1e-30)
