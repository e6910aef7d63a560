"""LoRA: two low-rank matrices beside each adapted linear layer (arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.estimate.dims import Dims, targets
from advisor.estimate.types import RunSpec
from advisor.methods import update


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """rank x (in + out) of each adapted matrix, over all layers."""
    rank = spec.rank or int(update("lora").keys["rank"].default)
    total = 0
    for name in targets(dims, spec):
        if name == "lm_head":
            total += rank * (dims.hidden + dims.vocab)
            continue
        sizes = dims.linear(name)
        if sizes is not None:
            total += dims.layers * rank * (sizes[0] + sizes[1]) * sizes[2]
    return total


def adapted(dims: Dims, spec: RunSpec) -> Sequence[str]:
    """The linear layers with a correction, by common name."""
    return targets(dims, spec)


def embedding_copies(dims: Dims, spec: RunSpec) -> int:
    """PEFT trains a copy of the embeddings and of the output matrix on request."""
    return dims.embedding_params if spec.options.get("train_embeddings") else 0
