"""LoRA: two low-rank matrices beside each adapted linear layer (arXiv:2106.09685).

On a mixture of experts `attention-and-shared` adapts every linear layer outside the routed experts,
`with-experts` the tensors of routed experts too. PEFT (0.21, `ParamWrapper`) then adds the product
of both matrices to the tensor of all experts of a layer in each forward pass, whichever experts are
used: autograd keeps that sum for the backward pass, which makes a gradient of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence

from advisor.estimate.model.dims import Dims, correction_ends, targets, trained_ends
from advisor.estimate.types import RunSpec
from advisor.methods import update


def _rank(spec: RunSpec) -> int:
    return spec.rank or int(update("lora").keys["rank"].default)


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """rank x (in + out) of each adapted matrix, over all layers."""
    return _rank(spec) * trained_ends(dims, spec)


def adapted(dims: Dims, spec: RunSpec) -> Sequence[str]:
    """The linear layers with a correction, by common name."""
    return targets(dims, spec)


def embedding_copies(dims: Dims, spec: RunSpec) -> int:
    """PEFT trains a copy of the embeddings and of the output matrix on request: `train_embeddings`,
    or the modules that its own `modules_to_save` names.
    """
    if spec.options.get("train_embeddings"):
        return dims.embedding_params
    # Of tied matrices there is one.
    named = int(spec.options.get("embedding_copies") or 0) * dims.head_params
    return min(dims.embedding_params, named)


def written_out(dims: Dims, spec: RunSpec) -> int:
    """Weights that one layer computes anew in each forward pass: those of its routed experts with
    their corrections, and both factors of these in the dtype of the experts.
    """
    ends = correction_ends(dims, spec)
    if not ends:
        return 0
    return dims.expert_layer_params + _rank(spec) * ends // dims.routed_layers
