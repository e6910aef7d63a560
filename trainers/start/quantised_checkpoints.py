"""Checkpoints that are stored quantised: gpt-oss in MXFP4, DeepSeek in FP8."""

from __future__ import annotations

from typing import Any

from trainers.job.foreign_code import explain_refused_code


def written_out(
    source: str, *, trust_remote_code: bool, revision: str | None = None
) -> dict[str, Any]:
    """What `from_pretrained` needs to write out a checkpoint of MXFP4 or FP8 in the dtype it is
    asked for; empty for any other.

    Left to itself transformers keeps MXFP4 packed if the package `kernels` is installed, and then
    refuses to train it.

    Args:
        source: A folder or hub id.
        trust_remote_code: Of the plan.
        revision: Of a model of the hub.

    Raises InputError for a model that needs code of its own.
    """
    from transformers import AutoConfig, FineGrainedFP8Config, Mxfp4Config

    with explain_refused_code(source):
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    classes = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    wanted = classes.get(str(getattr(method, "value", method)))
    return {} if wanted is None else {"quantization_config": wanted(dequantize=True)}
