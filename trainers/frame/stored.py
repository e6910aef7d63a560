"""Checkpoints that are stored quantised: gpt-oss in MXFP4, DeepSeek in FP8."""

from __future__ import annotations

from typing import Any


def written_out(source: str, **options: Any) -> dict[str, Any]:
    """What `from_pretrained` needs to write out a checkpoint of MXFP4 or FP8 in the dtype it is
    asked for; empty for any other.

    Left to itself transformers keeps MXFP4 packed if the package `kernels` is installed, and then
    refuses to train it.

    Args:
        source: A folder or hub id.
        options: Further arguments of `AutoConfig.from_pretrained`.
    """
    from transformers import AutoConfig, FineGrainedFP8Config, Mxfp4Config

    config = AutoConfig.from_pretrained(source, **options)
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    classes = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    wanted = classes.get(str(getattr(method, "value", method)))
    return {} if wanted is None else {"quantization_config": wanted(dequantize=True)}
