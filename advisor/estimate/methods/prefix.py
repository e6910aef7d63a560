"""Prefix tuning: keys and values in front of every layer's attention (arXiv:2101.00190)."""

from __future__ import annotations

from advisor.estimate.run import Run
from advisor.methods import update


def trainable_params(run: Run) -> int:
    """A key and a value of each virtual token in every layer."""
    dims = run.dims
    tokens = (
        run.options.get("prefix_tokens")
        or run.options.get("num_virtual_tokens")
        or update("prefix").keys["prefix_tokens"].default
    )
    return dims.layers * 2 * dims.kv_size * int(tokens)
