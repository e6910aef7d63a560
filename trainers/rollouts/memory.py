"""How many answers a model generates at once, from its shape and the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHARE = 0.5  # of the memory that weights and optimizer leave; the rest is for fragmentation
HOST_BYTES = 2 * 2**30  # for answers on a CPU, whose memory others use too
# While prompts are read, a token holds about so many hidden states and MLP activations.
HIDDEN_STATES, MLP_STATES = 8, 3
# Sampling holds the logits of the next token so often in float32.
LOGIT_COPIES = 4
OPTIMIZER_BYTES = 12  # for a trained weight: its gradient and two moments in float32


def rows_at_once(
    models: Sequence[Any], *, tokens: int, least: int, most: int, trained: int | None = None
) -> int:
    """How many answers of a batch to generate together: as many as fit, `least` in any case.

    It depends on the models and the size of the device's memory, not on what is free now: a run
    that resumes draws the same random numbers.

    Args:
        models: All that are on the device; the first one generates.
        tokens: Of the longest prompt with its answer.
        least: What the plan says fits.
        most: The answers of the whole batch.
        trained: Weights that are trained; default: those that require gradients now.
    """
    fitting = free_bytes(models, trained) // max(1, row_bytes(models[0], tokens))
    return max(min(least, most), min(most, int(fitting)))


def row_bytes(model: Any, tokens: int) -> int:
    """What an answer holds: keys and values of every layer, what reading its prompt takes, and the
    logits of its next token.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    cached = 2 * config.num_hidden_layers * heads * width
    read = HIDDEN_STATES * config.hidden_size + MLP_STATES * inner
    a_token = int(next(model.parameters()).element_size()) * int(cached + read)
    return tokens * a_token + 4 * LOGIT_COPIES * int(config.vocab_size)


def free_bytes(models: Sequence[Any], trained: int | None = None) -> int:
    """What the device has for answers."""
    import torch

    device = next(models[0].parameters()).device
    if device.type != "cuda":
        return HOST_BYTES
    weights = [one for model in models for one in model.parameters()]
    held = sum(one.numel() * one.element_size() for one in weights)
    if trained is None:
        trained = sum(one.numel() for one in weights if one.requires_grad)
    total = torch.cuda.get_device_properties(device).total_memory
    return int(SHARE * (total - held - OPTIMIZER_BYTES * trained))
