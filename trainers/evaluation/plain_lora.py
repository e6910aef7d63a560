"""A saved LoRA as vLLM and llama.cpp apply it: W + s B A, from the two files of the adapter alone.

They know nothing of PEFT: a start that changed the base, or a part that is no pair of matrices,
is another model there.

Dimensions: r rank, I inputs, O outputs of a layer, V vocabulary: A is r, I and B is O, r.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advisor.record.stage import Check

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = "the-same-without-peft"
PREFIX = "base_model.model."
# What PEFT's LoRA can do and W + s B A cannot say, by the field of its config.
NOT_PLAIN = {
    "use_dora": "DoRA",
    "rank_pattern": "ranks that differ between layers",
    "alpha_pattern": "scales that differ between layers",
    "lora_bias": "biases",
    "trainable_token_indices": "single trained tokens",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "activation by tokens",
}


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config of the saved LoRA; None if the folder holds something else."""
    path = folder / CONFIG
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return config if config.get("peft_type") == "LORA" else None


def why_not_plain(config: dict[str, Any]) -> str | None:
    """What in the saved LoRA other engines cannot apply, in words; None if nothing."""
    found = [words for field, words in NOT_PLAIN.items() if config.get(field)]
    if config.get("bias") not in (None, "none"):
        found.append("biases")
    return " and ".join(dict.fromkeys(found)) or None


@contextmanager
def applied(base: Any, folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Inside, the base computes W + s B A.

    Raises LookupError for a tensor that has no place in a linear layer or an embedding.

    Args:
        base: The model without PEFT's modules, or with them switched off.
        folder: Of the adapter.
        config: Of the adapter.
    """
    from safetensors.torch import load_file

    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    modules = dict(base.named_modules())
    # Tied weights have two names.
    parameters = dict(base.named_parameters(remove_duplicate=False))
    device = next(base.parameters()).device
    pairs: dict[str, dict[str, Any]] = {}
    handles, whole = [], []
    for key, tensor in load_file(folder / WEIGHTS).items():
        name, part = layer_of(key.removeprefix(PREFIX))
        if part is None:
            whole.append((_parameter(parameters, name), tensor))
        else:
            pairs.setdefault(name, {})[part] = tensor.to(device).float()
    try:
        for name, pair in pairs.items():
            if not _is_matrix(modules[name]):
                raise LookupError(name)
            hook = _correction(pair["A"], pair["B"], scale)
            handles.append(modules[name].register_forward_hook(hook))
        before = [(parameter, parameter.data) for parameter, _ in whole]
        for parameter, tensor in whole:
            parameter.data = tensor.to(device=device, dtype=parameter.dtype)
        try:
            yield
        finally:
            for parameter, data in reversed(before):
                parameter.data = data
    finally:
        for handle in handles:
            handle.remove()


def layer_of(key: str) -> tuple[str, str | None]:
    """(the layer of a tensor in an adapter's file, A or B); (the key, None) for other tensors."""
    for part in ("A", "B"):
        for ending in (f".lora_{part}.weight", f".lora_embedding_{part}"):
            if key.endswith(ending):
                return key.removesuffix(ending), part
    return key, None


def _parameter(parameters: dict[str, Any], name: str) -> Any:
    """A parameter of the model, also if PEFT keeps a trained copy of its module beside it."""
    if name in parameters:
        return parameters[name]
    parent, _, last = name.rpartition(".")
    return parameters[f"{parent}.original_module.{last}"]


def _is_matrix(layer: Any) -> bool:
    """True for a layer of one matrix, also under a correction that is switched off."""
    from torch.nn import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return isinstance(base, Linear | Embedding | Conv1D)


def _correction(a_rI: Any, b_Or: Any, scale: float) -> Callable[[Any, Any, Any], Any]:
    """A forward hook that adds the correction to a linear layer, or to an embedding (A is r, V)."""

    def hook(layer: Any, inputs: Any, output: Any) -> Any:
        if inputs[0].dtype.is_floating_point:
            part = inputs[0].float() @ a_rI.T @ b_Or.T
        else:
            part = a_rI.T[inputs[0]] @ b_Or.T
        # Added in float32 and rounded once, as PEFT does.
        return (output + part * scale).to(output.dtype)

    return hook


def plain_answer(base: Any, folder: Path, answer: Callable[[Any], Any]) -> Any | None:
    """The answer of the base with the saved LoRA as other engines apply it; None if they cannot.

    Args:
        base: The model without PEFT's modules, or with them switched off.
        folder: Of the adapter.
        answer: Gives a model the row of the check.
    """
    config = read_config(folder)
    if config is None or why_not_plain(config):
        return None
    try:
        with applied(base, folder, config):
            return answer(base)
    except LookupError:  # corrections of tensors that are no layer: those of routed experts
        return None


def check_plain(folder: Path, gap: float | None, *, limit: float, what: str) -> list[Check]:
    """Whether the saved LoRA is the trained model without PEFT, too; [] for other modules.

    Args:
        folder: Of the adapter.
        gap: How far what `plain_answer` gave is from the trained model's; None: it gave none.
        limit: The largest difference that rounding explains.
        what: The answers are, in words.
    """
    config = read_config(folder)
    if config is None:
        return []
    engines = "vLLM and llama.cpp"
    if gap is None:
        why = why_not_plain(config) or "corrections of routed experts"
        text = (
            f"not compared: {why} cannot be applied as W + BA, as {engines} do; merge the result,"
            " or serve it with PEFT"
        )
        return [Check(NAME, True, text)]
    text = (
        f"applied as W + BA, as {engines} do: {what} differ by at most {gap:.2g} (limit {limit:g})"
    )
    if config.get("modules_to_save"):
        text += f"; {', '.join(config['modules_to_save'])} saved whole: most servers want it merged"
    if config.get("use_rslora"):
        text += "; llama.cpp scales by alpha / rank and knows no rslora: merge it first there"
    return [Check(NAME, gap <= limit, text)]
