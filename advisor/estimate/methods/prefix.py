"""Prefix tuning: keys and values in front of every layer's attention (arXiv:2101.00190)."""

from __future__ import annotations

from advisor.estimate.model.dims import Dims
from advisor.estimate.types import RunSpec
from advisor.methods import update


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """A key and a value of each virtual token in every layer."""
    tokens = (
        spec.options.get("prefix_tokens")
        or spec.options.get("num_virtual_tokens")
        or update("prefix").keys["prefix_tokens"].default
    )
    return dims.layers * 2 * dims.kv_size * int(tokens)
