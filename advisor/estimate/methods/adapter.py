"""Bottleneck adapters: a down and an up matrix with biases (arXiv:1902.00751)."""

from __future__ import annotations

from advisor.estimate.model.dims import Dims
from advisor.estimate.types import RunSpec
from advisor.methods import update


def _places(spec: RunSpec) -> int:
    """Adapters of one layer. Pfeiffer: one after the MLP; Houlsby: another after attention."""
    return 2 if spec.options.get("placement") == "houlsby" else 1


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """Both matrices and their biases in every place of every layer."""
    width = int(spec.options.get("bottleneck") or update("adapter").keys["bottleneck"].default)
    return dims.layers * _places(spec) * (2 * dims.hidden * width + width + dims.hidden)


def kept_bytes(dims: Dims, spec: RunSpec) -> float:
    """Bytes per token and layer: each adapter keeps its float32 input."""
    return _places(spec) * 4 * dims.hidden
