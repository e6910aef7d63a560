"""Two things that a run spec says and that cannot go together: each named, with what would.

`impossible` holds what no engine runs, and such a spec gets no number. `unused` holds what an
estimate leaves out because another key makes it meaningless; the number stands, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from advisor.estimate.model.dims import dims_of, targets, unknown_targets
from advisor.estimate.types import RunSpec
from advisor.ground.types import GpuSpec, ModelShape
from advisor.methods import objective, update

# From the data sheets of Ada and Hopper (fp8), and of Blackwell (block-scaled mxfp8, nvfp4).
FIRST_CAPABILITY = {"fp8": (8, 9), "mxfp8": (10, 0), "nvfp4": (10, 0)}


def impossible(
    spec: RunSpec,
    shape: ModelShape,
    *,
    device: GpuSpec | None = None,
    tokens_total: int | None = None,
    rows_total: int | None = None,
) -> Iterator[str]:
    """Every reason why no such run can exist."""
    if shape.origin != "size" and shape.heads and shape.kv_heads and shape.heads % shape.kv_heads:
        yield f"{shape.heads} attention heads do not divide into {shape.kv_heads} key-value heads"
    ranked = update(spec.update).size_key == "rank"
    if ranked and spec.rank and shape.hidden_size and spec.rank > shape.hidden_size:
        yield f"rank {spec.rank} is above the hidden size {shape.hidden_size}"
    if spec.offload_weights and (spec.sharding not in ("fsdp", "zero3") or spec.gpus < 2):
        yield (
            f"offload_weights with sharding {spec.sharding or 'null'} on {spec.gpus} GPU: it is"
            " estimated for fsdp and zero3 on two or more"
        )
    if spec.optimizer_in_backward and spec.grad_accum > 1:
        yield (
            f"optimizer_in_backward with grad_accum {spec.grad_accum}: the step of each parameter"
            " frees its gradient, so none is left to add up (grad_accum 1, and a larger"
            " micro_batch_size)"
        )
    if spec.packing and objective(spec.objective).sequences_per_row > 1:
        yield (
            f"packing with objective {spec.objective}: the two sides of a pair are compared by"
            " their place in the batch (packing false)"
        )
    for (before, _), (longest, _) in pairwise(spec.lengths):
        if longest <= before:
            yield f"lengths: {longest} follows {before}; bins stand in ascending order"
            break
    first = FIRST_CAPABILITY.get(spec.compute_dtype or "")
    found = None if device is None else device.compute_capability
    if device is not None and first is not None and found is not None and found < first:
        yield (
            f"compute_dtype {spec.compute_dtype} with gpu {device.name}: it needs compute"
            f" capability {first[0]}.{first[1]}, that GPU has {found[0]}.{found[1]} (compute_dtype"
            " bfloat16)"
        )
    if tokens_total and rows_total and rows_total > tokens_total:
        yield (
            f"rows_total {rows_total:,} with tokens_total {tokens_total:,}: a row has one token at"
            " least"
        )


def unused(spec: RunSpec, shape: ModelShape) -> Iterator[str]:
    """What of the spec counts for nothing beside another of its keys or this model, as warnings."""
    dims = dims_of(shape)
    ranked = update(spec.update).size_key == "rank"  # low-rank matrices beside named layers
    unknown = unknown_targets(dims, spec) if dims is not None and ranked else ()
    if dims is not None and unknown:
        yield (
            f"target_modules: {shape.id} has no layer called {', '.join(unknown)}: left out;"
            f" counted are {', '.join(targets(dims, spec))}"
        )
    if spec.rank is not None and not ranked:
        yield f"rank {spec.rank} with update {spec.update}: it has no rank; left out"
    if spec.kbit_prepared and spec.quantization is None:
        yield "kbit_prepared without quantization: nothing to prepare; left out"
    if spec.fp32_master_weights and spec.weights_dtype == "float32":
        yield "fp32_master_weights with weights_dtype float32: the weights are their own masters"
    half = spec.weights_dtype != "float32" or spec.precision == "mixed"
    if spec.attention.startswith("flash_attention") and not half:
        yield (
            f"attention {spec.attention} with weights_dtype float32 and precision"
            f" {spec.precision or 'pure'}: it computes in 16 bit alone; counted as it is said"
        )
    if spec.loss in ("fused", "chunked") and objective(spec.objective).logits == "none":
        yield f"loss {spec.loss} with objective {spec.objective}: it has no logits; left out"
    if spec.gpus < 2 and spec.sharding in ("ddp", "fsdp"):
        yield f"sharding {spec.sharding} with gpus {spec.gpus}: nothing to divide; left out"
    if shape.context_tokens and spec.seq_len > shape.context_tokens:
        yield (
            f"seq_len {spec.seq_len:,} with model {shape.id}: it was made for"
            f" {shape.context_tokens:,} tokens"
        )
    cut = sum(rows for longest, rows in spec.lengths if longest > spec.seq_len)
    if cut and not spec.packing:
        yield (
            f"lengths with seq_len {spec.seq_len:,}: up to {cut:,} rows are longer, and count as"
            " cut there"
        )
    if spec.compute_dtype in FIRST_CAPABILITY:
        yield (
            f"compute_dtype {spec.compute_dtype}: it counts for the time; memory is counted as with"
            " 16-bit products"
        )
