"""Bottleneck adapters: a down and an up matrix with biases (arXiv:1902.00751)."""

from __future__ import annotations

from advisor.estimate.run import Run
from advisor.methods import update


def _places(run: Run) -> int:
    """Adapters of one layer. Pfeiffer: one after the MLP; Houlsby: another after attention."""
    return 2 if run.options.get("placement") == "houlsby" else 1


def trainable_params(run: Run) -> int:
    """Both matrices and their biases in every place of every layer."""
    dims = run.dims
    width = int(run.options.get("bottleneck") or update("adapter").keys["bottleneck"].default)
    return dims.layers * _places(run) * (2 * dims.hidden * width + width + dims.hidden)


def kept_bytes(run: Run) -> float:
    """Bytes per token and layer: each adapter keeps its float32 input."""
    return _places(run) * 4 * run.dims.hidden
