"""Log-probabilities of the learned tokens, a tile of tokens at a time, with their gradient.

The gradient of a token's log-probability with respect to its hidden state is W[target] - p W, where
p are its probabilities: it needs nothing from behind the loss, so it is computed while the tile's
logits are there, and no logits are kept. (Liger's fused linear cross-entropy does the same on GPUs,
arXiv:2410.10989.) This suits a head that is not trained.

Dimensions: N learned tokens, H hidden size, V vocabulary, C tokens of a tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

TILE_BYTES = 2**26  # of the logits of a tile, in float32; up to three times that is held at a time


def suits_tiles(head: Any) -> bool:
    """Whether the head is a plain linear layer that nothing trains and nothing is added to. FSDP,
    which gives what it divides a class of its own, has put it together for the layers before it.
    """
    import torch

    # fully_shard makes FSDPLinear of (FSDPModule, Linear).
    kind = type(head).__bases__[-1] if type(head).__name__.startswith("FSDP") else type(head)
    return kind is torch.nn.Linear and not any(
        parameter.requires_grad for parameter in head.parameters()
    )


def tiled_log_probs(hidden_NH: Any, head: Any, targets_N: Any) -> Any:
    """The log-probability of each target, in float32: N.

    Args:
        hidden_NH: Where each target is predicted.
        head: A linear layer that `suits_tiles`.
        targets_N: Token ids.
    """
    return _function().apply(hidden_NH, head.weight, head.bias, targets_N)


@cache
def _function() -> Any:
    import torch
    from torch.nn.functional import linear

    class TiledLogProbs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden_NH: Any, weight_VH: Any, bias_V: Any, targets_N: Any) -> Any:
            wants = ctx.needs_input_grad[0]
            if torch.is_autocast_enabled("cpu") and hidden_NH.device.type == "cpu":
                weight_VH = weight_VH.to(torch.get_autocast_dtype("cpu"))
            step = max(1, TILE_BYTES // (4 * weight_VH.shape[0]))
            log_probs_N = hidden_NH.new_empty(targets_N.shape, dtype=torch.float32)
            slopes_NH = torch.empty_like(hidden_NH) if wants else None
            for start in range(0, len(targets_N), step):
                part = slice(start, start + step)
                hidden_CH = hidden_NH[part].to(weight_VH.dtype)
                logits_CV = linear(hidden_CH, weight_VH, bias_V).float()
                log_probs_CV = torch.log_softmax(logits_CV, dim=-1)
                del logits_CV
                targets_C1 = targets_N[part, None]
                log_probs_N[part] = log_probs_CV.gather(1, targets_C1)[:, 0]
                if slopes_NH is not None:
                    errors_CV = log_probs_CV.exp_().neg_()
                    errors_CV.scatter_add_(1, targets_C1, errors_CV.new_ones(targets_C1.shape))
                    slopes_NH[part] = errors_CV.to(weight_VH.dtype) @ weight_VH
            if slopes_NH is not None:
                ctx.save_for_backward(slopes_NH)
            return log_probs_N

        @staticmethod
        def backward(ctx: Any, gradients_N: Any) -> Any:
            (slopes_NH,) = ctx.saved_tensors
            return slopes_NH * gradients_N[:, None].to(slopes_NH.dtype), None, None, None

    return TiledLogProbs
