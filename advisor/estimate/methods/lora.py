"""LoRA: two low-rank matrices beside each adapted linear layer (arXiv:2106.09685).

On a mixture of experts `attention-and-shared` adapts every linear layer outside the routed experts,
`with-experts` the tensors of routed experts too. PEFT (0.21, `ParamWrapper`) then adds the product
of both matrices to the tensor of all experts of a layer in each forward pass, whichever experts are
used: autograd keeps that sum for the backward pass, which makes a gradient of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence

from advisor.estimate.run import Run
from advisor.estimate.targets import correction_ends, embedding_matrices, targets, trained_ends
from advisor.methods import update


def _rank(run: Run) -> int:
    return run.rank or int(update("lora").keys["rank"].default)


def trainable_params(run: Run) -> int:
    """rank x (in + out) of each adapted matrix, over all layers."""
    return _rank(run) * trained_ends(run)


def adapted(run: Run) -> Sequence[str]:
    """The linear layers with a correction, by common name."""
    return targets(run)


def embedding_copies(run: Run) -> int:
    """PEFT trains a copy of the embeddings and of the output matrix on request: `train_embeddings`,
    or the modules that its own `modules_to_save` names.
    """
    dims = run.dims
    if run.options.get("train_embeddings"):
        return dims.embedding_params
    # Of tied matrices there is one.
    named = embedding_matrices(run.stage.peft.get("modules_to_save")) * dims.head_params
    return min(dims.embedding_params, named)


def written_out(run: Run) -> int:
    """Weights that one layer computes anew in each forward pass: those of its routed experts with
    their corrections, and both factors of these in the dtype of the experts.
    """
    dims = run.dims
    ends = correction_ends(run)
    if not ends or run.packs_experts:
        return 0
    return dims.expert_layer_params + _rank(run) * ends // dims.routed_layers
