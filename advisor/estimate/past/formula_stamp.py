"""Which formula a remembered expectation came from.

A past run says how far measurement and formula were apart. Once the formula changes, with a new
version or in a checkout, that distance is of another formula and teaches nothing. The stamp is made
of what the formula says of some runs, so that only a change of its numbers changes it.
"""

from __future__ import annotations

import hashlib
from functools import cache

from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.time import machine_of, time_estimate
from advisor.estimate.types import RunSpec
from advisor.ground.types import GpuSpec, ModelShape

# A decoder and a GPU of nobody's, with round sizes.
SHAPE = ModelShape(
    id="stamp", origin="folder", params=1_235_814_400, architecture="llama", hidden_size=2048,
    layers=16, heads=32, kv_heads=8, head_dim=64, intermediate_size=8192, vocab_size=128_256,
    tied_embeddings=True,
)  # fmt: skip
GPU = GpuSpec(
    id="stamp", name="stamp", vendor="nvidia", memory_bytes=80 * 2**30, compute_capability=(8, 0),
    bf16=True, bf16_flops=312e12, achieved_flops=None, bandwidth_bytes_per_s=2e12, power_w=None,
    price_usd_per_h=None,
)  # fmt: skip
SPECS = (
    *(RunSpec(update=one) for one in ("full", "lora", "adapter", "prefix", "ia3")),
    RunSpec(update="lora", quantization="nf4", micro_batch_size=4, gradient_checkpointing=False),
    RunSpec(objective="dpo", update="lora", micro_batch_size=2),
    RunSpec(objective="cpt", update="full", micro_batch_size=2, packing=True),
    RunSpec(objective="grpo", update="lora", options={"generations": 4, "response_tokens": 256}),
)  # fmt: skip
DIGITS = 3  # of each number: a change of half a percent counts


@cache
def formula_stamp() -> str:
    """A short text that is the same as long as the formula says the same."""
    found: list[str] = []
    for cpu, machine in ((False, machine_of(GPU)), (True, machine_of(None, cpu_cores=4))):
        for spec in SPECS:
            memory = memory_estimate(spec, SHAPE, cpu=cpu, device=None if cpu else GPU)
            time = None if machine is None else time_estimate(spec, SHAPE, machine)
            found += [
                "" if memory is None else f"{float(memory.peak_bytes):.{DIGITS}g}",
                "" if time is None else f"{time.step_s:.{DIGITS}g}",
            ]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]
