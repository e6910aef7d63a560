"""Checkpoints that are quantised already: what the bundled trainers can make of them."""

from __future__ import annotations

# Stored so, a checkpoint is written out in 16 bit when the bundled trainers load it.
WRITTEN_OUT = ("mxfp4", "fp8")
BITSANDBYTES = "bitsandbytes"


def why_not_loadable(stored: str | None, *, trains_all: bool, quantization: str | None) -> str:
    """Why no memory is enough to train a checkpoint this way, as a clause, or an empty string.

    Args:
        stored: How the checkpoint is stored if it is quantised: "mxfp4", "gptq".
        trains_all: Whether its weights are trained, not a module beside them.
        quantization: What the plan asks for.
    """
    if stored is None:
        return ""
    if stored in WRITTEN_OUT:
        again = f"its checkpoint is stored in {stored}, which cannot be quantised a second time"
        return f"{again}; it is written out in 16 bit when it loads" if quantization else ""
    if trains_all:
        return f"its checkpoint is stored in {stored}, whose weights are frozen"
    if quantization and stored != BITSANDBYTES:
        return f"its checkpoint is stored in {stored}, which cannot be quantised a second time"
    return ""


def why_not_in_16_bit(stored: str | None, *, quantization: str | None) -> str:
    """Why a module would not train beside a base in 16 bit, as a clause, or an empty string.

    bitsandbytes' checkpoints load as they are stored: what trains beside them is QLoRA, and a plan
    says so.
    """
    if stored != BITSANDBYTES or quantization is not None:
        return ""
    return f"its checkpoint is stored in {stored}, so that its base stays quantised, as in QLoRA"
