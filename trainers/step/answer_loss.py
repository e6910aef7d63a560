"""The log-probability of each learned token, without the logits of a whole batch: one head and one
function for SFT, PPO and distillation, on the CPU and on a GPU.

On a GPU TRL's kernel scores tiles of 4,096 tokens and computes each again in the backward pass.
Elsewhere, and for a head that is more than one matrix (one with an adapter on it), the logits of
2,048 tokens are held at a time; those of several tiles are computed again in the backward pass.

Dimensions: B rows of a batch, T tokens of the longest, N learned tokens of the batch laid end to
end, P tokens of a tile, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.job import Model
from trainers.rows.row import IGNORED

PLACES = "answer_places"  # of a micro-batch; the trainer takes it out before the model sees it
TILE_TOKENS = 2048  # fewer would have a GPU read the output matrix more often than it computes
TILE_WORDS = 32768  # of TRL's kernel: the width that TRL itself gives it


@dataclass(frozen=True, slots=True)
class Head:
    """How a model makes logits of hidden states: scale * (hidden @ matrix + bias), capped."""

    module: Any
    scale: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is one matrix, with no module on it and not quantised. FSDP, which makes a
        class of its own of what it divides, has put it together for the layers before it.
        """
        import torch

        kind = type(self.module)
        # fully_shard makes FSDPLinear of (FSDPModule, Linear).
        return (kind.__bases__[-1] if kind.__name__.startswith("FSDP") else kind) is torch.nn.Linear

    def logits(self, hidden_NH: Any, size: int | None = None) -> Any:
        """The first `size` logits of each token (None: all), in float32: N, V."""
        import torch

        logits_NV = self.module(hidden_NH)[:, :size].float()
        if self.scale != 1:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.cap is None else self.cap * torch.tanh(logits_NV / self.cap)


def head_of(model: Model) -> Head:
    """The head of a causal model, with the factors that transformers' models keep in their config
    (as in trl.trainer.utils.add_fused_lm_head).
    """
    config = model.config.get_text_config()
    factors = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scale = next(
        (found for name in factors if (found := getattr(config, name, None)) is not None), None
    )
    divided = getattr(config, "logits_scaling", None)
    if scale is None and divided is not None:
        scale = divided if config.model_type == "hyperclovax" else 1 / divided
    return Head(
        module=model.get_output_embeddings(),
        scale=1.0 if scale is None else float(scale),
        cap=getattr(config, "final_logit_softcapping", None),
    )


def token_log_probs(
    hidden_NH: Any,
    head: Head,
    targets_N: Any,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    tile: int = TILE_TOKENS,
) -> tuple[Any, Any | None]:
    """(log-probability of each target: N, entropy of its distribution: N), in float32, under
    softmax(logits / temperature). The entropy is None without `with_entropy`, and has no gradient.
    Where TRL's kernel is not used, the logits of `tile` tokens are held at a time.
    """
    # A model that is spread over several GPUs may end on another than its head.
    device = next(head.module.parameters()).device
    hidden_NH, targets_N = hidden_NH.to(device), targets_N.to(device)
    if hidden_NH.device.type == "cuda" and head.is_plain:
        from trl.kernels import ChunkedLogProbFunction

        found_N, entropy_N, *_ = ChunkedLogProbFunction.apply(
            hidden_NH, head.module.weight, head.module.bias, targets_N, temperature, TILE_WORDS,
            head.cap, head.scale, ("entropy",) if with_entropy else (),
        )  # fmt: skip
        return found_N, None if entropy_N is None else entropy_N.detach()
    import torch
    from torch.utils.checkpoint import checkpoint

    def score(hidden_PH: Any, targets_P: Any) -> tuple[Any, Any]:
        logits_PV = head.logits(hidden_PH)
        if temperature != 1:
            logits_PV = logits_PV / temperature
        log_probs_PV = torch.log_softmax(logits_PV, dim=-1)
        with torch.no_grad():  # sum p log p without a table of products
            entropy_P = (
                -torch.einsum("pv,pv->p", log_probs_PV.exp(), log_probs_PV)
                if with_entropy
                else None
            )
        return log_probs_PV.gather(1, targets_P[:, None])[:, 0], entropy_P

    parts = list(zip(hidden_NH.split(tile), targets_N.split(tile), strict=True))
    again = torch.is_grad_enabled() and len(parts) > 1
    scored = [
        checkpoint(score, *part, use_reentrant=False) if again else score(*part) for part in parts
    ]
    found_N, entropies_N = zip(*scored, strict=True)
    return torch.cat(found_N), torch.cat(entropies_N) if with_entropy else None


def answer_places(labels_BT: Any) -> Any:
    """Where the hidden states that predict a learned token are among all B * T: N. Asked of labels
    on the host, so that nothing waits for a GPU; a token's own place is the next.
    """
    learned_BT = labels_BT != IGNORED
    learned_BT[:, 0] = False
    return learned_BT.flatten().nonzero()[:, 0] - 1


def knowing_answers(collator: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A collator whose micro-batches also hold, under PLACES, the `answer_places`."""

    def collate(features: Any) -> Any:
        batch = collator(features)
        return {**batch, PLACES: answer_places(batch["labels"])}

    return collate


def at_places(states_BTH: Any, places_N: Any) -> Any:
    """What stands at the places: N, H. Their number is known on the host."""
    return states_BTH.flatten(0, 1).index_select(0, places_N.to(states_BTH.device))


def answer_log_probs(model: Model, hidden_BTH: Any, *, labels_BT: Any, places_N: Any | None) -> Any:
    """The log-probability of each learned token: N. Without the `answer_places` of the labels they
    are asked for, which waits for a GPU.
    """
    if places_N is None:
        places_N = answer_places(labels_BT)
    targets_N = at_places(labels_BT, places_N + 1)
    return token_log_probs(at_places(hidden_BTH, places_N), head_of(model), targets_N)[0]


def add_hidden_call(model: Model) -> None:
    """Give a causal model a forward that, called with `at_head`, returns what that makes of the
    model and its hidden states before the head (B, T, H), and the loss that balances experts if
    `output_router_logits` asks for it, else None. No logits are computed for it.
    """
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, at_head: Callable[[Any, Any], Any] | None = None, **kwargs: Any
    ) -> Any:
        if at_head is None:
            return original(*args, **kwargs)
        kwargs["use_cache"] = False
        if kwargs.get("labels") is None:  # PEFT passes on all that it knows
            kwargs.pop("labels", None)
        if not kwargs.get("output_router_logits"):
            return at_head(self, self.base_model(*args, **kwargs).last_hidden_state), None
        seen: list[Any] = []
        hook = self.base_model.register_forward_hook(
            lambda _module, _args, out: seen.append(out.last_hidden_state)
        )
        try:
            balance = original(*args, **kwargs, logits_to_keep=1).aux_loss
        finally:
            hook.remove()
        return at_head(self, seen[0]), balance

    model.forward = types.MethodType(forward, model)


# --------------------------------------------------------------------------- tokens of a batch


def token_columns(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The entries of a micro-batch that have a place for each of its tokens, whatever its trainer
    calls them.
    """
    columns = (
        ("attention_mask",),
        ("chosen_attention_mask", "rejected_attention_mask"),
        ("prompt_mask", "completion_mask"),
        ("input_ids",),  # of packed rows, which have no mask
    )
    return next((names for names in columns if names[0] in inputs), ())


def read_in(inputs: Mapping[str, Any]) -> Any:
    """How many tokens of a micro-batch are not padding."""
    names = token_columns(inputs)
    if names == ("input_ids",):
        return inputs["input_ids"].numel()
    return sum(inputs[name].sum() for name in names)


def learned_in(inputs: Mapping[str, Any]) -> Any | None:
    """How many tokens of a micro-batch are learned; None if it does not say so token by token."""
    labels = inputs.get("labels")
    if labels is not None and labels.ndim == 2:
        return (labels[:, 1:] != IGNORED).sum()
    mask = inputs.get("completion_mask")
    return None if mask is None else mask.sum()
