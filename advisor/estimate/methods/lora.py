"""LoRA: two low-rank matrices beside each adapted linear layer (arXiv:2106.09685).

On a mixture of experts `attention-and-shared` adapts every linear layer outside the routed experts,
`with-experts` the tensors of routed experts too. PEFT (0.21, `ParamWrapper`) then adds the product
of both matrices to the tensor of all experts of a layer in each forward pass, whichever experts are
used: autograd keeps that sum for the backward pass, which makes a gradient of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence

from advisor.estimate.dims import Dims, corrects_experts, targets, trained_ends
from advisor.estimate.types import RunSpec
from advisor.methods import update


def _rank(spec: RunSpec) -> int:
    return spec.rank or int(update("lora").keys["rank"].default)


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """rank x (in + out) of each adapted matrix, over all layers."""
    rank = _rank(spec)
    ends = trained_ends(dims, spec)
    if ends is not None:
        return rank * ends
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


def written_out(dims: Dims, spec: RunSpec) -> int:
    """Weights that one layer computes anew in each forward pass: those of its routed experts with
    their corrections, and both factors of these in the dtype of the experts.
    """
    if not corrects_experts(dims, spec):
        return 0
    return dims.expert_layer_params + _rank(spec) * dims.expert_ends // dims.routed_layers


def kept_bytes(dims: Dims, spec: RunSpec) -> float:
    """Bytes per token and layer: the inputs of both matrices of each used expert, which a frozen
    tensor would not keep.
    """
    if not corrects_experts(dims, spec):
        return 0.0
    wide = 4 if spec.weights_dtype == "float32" else 2
    return wide * (dims.used_experts * (dims.hidden + dims.expert_width))
