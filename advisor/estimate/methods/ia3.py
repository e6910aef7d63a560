"""IA3: trained vectors scale keys, values and the last MLP matrix's input (arXiv:2205.05638)."""

from __future__ import annotations

from advisor.estimate.run import Run


def trainable_params(run: Run) -> int:
    """One number for each key and value feature, and for each input of the last MLP matrix."""
    dims = run.dims
    return dims.layers * (2 * dims.kv_size + dims.expert_width * dims.experts)


def kept_bytes(run: Run) -> float:
    """Bytes per token and layer: keys and values before they are scaled, and the MLP's product,
    which a frozen last matrix does not keep.
    """
    dims = run.dims
    wide = 4 if run.stage.weights_dtype == "float32" else 2
    return wide * (2 * dims.kv_size + dims.width)
