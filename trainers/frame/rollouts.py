"""How many answers a model writes at once, from its shape and the device's memory."""

from __future__ import annotations

from typing import Any

SHARE = 0.5  # of the memory that weights and optimizer leave; the rest is for fragmentation
HOST_BYTES = 2 * 2**30  # for answers on a CPU, whose memory others use too
# While prompts are read, a token holds about so many hidden states and MLP activations.
HIDDEN_STATES, MLP_STATES = 8, 3
OPTIMIZER_BYTES = 12  # for a trained weight: its gradient and two moments in float32


def rows_at_once(model: Any, *, tokens: int, least: int, most: int) -> int:
    """How many answers of a batch to write together: as many as fit, `least` in any case.

    It depends on the model and the size of the device's memory, not on what is free now: a run
    that resumes draws the same random numbers.

    Args:
        tokens: Of the longest prompt with its answer.
        least: What the plan says fits.
        most: The answers of the whole batch.
    """
    fitting = free_bytes(model) // max(1, tokens * bytes_per_token(model))
    return max(least, min(most, int(fitting)))


def bytes_per_token(model: Any) -> int:
    """Keys and values of a token in every layer, and what it holds while its prompt is read."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    cached = 2 * config.num_hidden_layers * heads * width
    read = HIDDEN_STATES * config.hidden_size + MLP_STATES * inner
    return int(next(model.parameters()).element_size()) * int(cached + read)


def free_bytes(model: Any) -> int:
    """What the device has for answers."""
    import torch

    device = next(model.parameters()).device
    if device.type != "cuda":
        return HOST_BYTES
    held = sum(one.numel() * one.element_size() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = torch.cuda.get_device_properties(device).total_memory
    return int(SHARE * (total - held - OPTIMIZER_BYTES * trained))
