"""What a mixture of experts adds to a step: rows that go to experts, and tiles they do not fill.

Loaded where a model is one.
"""

from __future__ import annotations

from functools import lru_cache

from advisor.estimate.model.dims import Dims
from advisor.estimate.run import ALL_EXPERTS, Run

# Of a row that goes to an expert, for each element of the hidden state, beside the above: gathered
# (4 bytes), read by the first product (2), written by the last (2), weighed (4), put back in order
# (4), summed (2); backward: spread over experts' rows again (8), both factors of the weighing (12),
# products (6), added up for the token (6) (transformers 5.24, integrations/moe.py,
# grouped_mm_experts_forward). Fused kernels weigh while they sum. A forward pass of 32,768 tokens
# through a layer of Qwen3-30B-A3B on an H100: 8.3 ms by this, 10.2 measured, 5.6 without (VeOmni
# pull 460, read 2026-12-01).
DISPATCH_FORWARD, DISPATCH_BACKWARD = 18.0, 32.0
FUSED_DISPATCH_FORWARD, FUSED_DISPATCH_BACKWARD = 10.0, 16.0
# Rows of a tile of grouped products (PyTorch, GroupMM.cu; CUTLASS): the last tile of each expert is
# half full in the mean.
TILE_ROWS = 128


def dispatch_bytes(d: Dims, forwards: int, *, fused: bool) -> float:
    """Bytes per token to bring it to its experts and back, in each forward pass and backward."""
    ahead, back = DISPATCH_FORWARD, DISPATCH_BACKWARD
    if fused:
        ahead, back = FUSED_DISPATCH_FORWARD, FUSED_DISPATCH_BACKWARD
    return d.routed_layers * d.used_experts * d.hidden * (forwards * ahead + back)


def tile_weights(run: Run, tokens: float) -> float:
    """Weights that a token is multiplied by in vain: rows that tiles of grouped products hold
    beside those of a micro-batch's `tokens`, shared by all of them.
    """
    d = run.dims
    everywhere = tokens * (run.gpus if run.shards_experts else 1)
    hit = d.experts * d.share_of_experts(everywhere)
    rows = TILE_ROWS / 2 * hit / everywhere
    return rows * d.routed_layers * 3 * d.hidden * d.expert_width


@lru_cache(maxsize=512)
def sends_all_to_all(name: str, architecture: str | None, *, by_transformers: bool) -> bool:
    """Whether this model's code sends every token through every expert: that of transformers, on
    which the known frameworks for single machines stand.
    """
    text = f"{architecture or ''} {name}".lower()
    return by_transformers and any(word in text for word in ALL_EXPERTS)
