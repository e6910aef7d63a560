"""Next-token loss over the learned tokens alone, without logits for the others.

TRL's SFTTrainer also computes entropy and token accuracy on every micro-batch and, without Triton
(on the CPU), scores every position in tiles. Neither is needed here: the loss and its gradients are
the same, and the step is faster.

Dimensions: B rows of a batch, T tokens of the longest, N learned tokens of the batch laid end to
end, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from trainers.job.types import Model
from trainers.rows.row import IGNORED
from trainers.step.flat_rows import flat_labels, flat_line, rows_apart, takes_flat_rows
from trainers.step.sharding import from_main
from trainers.step.tiled_loss import suits_tiles, tiled_log_probs


def plain_head(model: Model) -> bool:
    """True if the logits are the output of the head alone: no soft cap, no scale."""
    config = model.config.get_text_config()
    scales = (
        "final_logit_softcapping",
        "logit_scale",
        "output_multiplier",
        "lm_head_multiplier",
        "logits_scaling",
    )
    return all(getattr(config, name, None) is None for name in scales)


def add_answer_loss(model: Model, *, is_divided: bool = False) -> bool:
    """Give a causal model a forward that, called with `answer_loss=True`, returns the
    log-probability of each learned token: N. Returns whether it takes rows laid end to end.

    Rows are laid end to end if the model takes them so. Under a head that is trained it holds the
    logits of all learned tokens (N, V) at once, which suits the memory of a host; else those of a
    tile.

    Args:
        is_divided: The model is going to be: the process that has read its weights tries it.
    """
    from torch.nn.functional import cross_entropy

    original = model.forward
    tried = functools.partial(takes_flat_rows, model)
    takes_flat = from_main(tried) if is_divided else tried()

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, answer_loss: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not answer_loss:
            return (
                original(*args, **kwargs)
                if labels is None
                else original(*args, labels=labels, **kwargs)
            )
        kwargs["use_cache"] = False
        line = flat_line(kwargs) if takes_flat and not args else None
        if line is not None:
            targets_T = flat_labels(labels, line)[1:]
            learned_T = targets_T != IGNORED
            del line["kept_BT"]
            with rows_apart():
                output = self.base_model(**line, use_cache=False)
            hidden_NH, targets_N = output.last_hidden_state[0, :-1][learned_T], targets_T[learned_T]
        else:
            hidden_BTH = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
            learned_BT = labels[:, 1:] != IGNORED
            hidden_NH, targets_N = hidden_BTH[learned_BT], labels[:, 1:][learned_BT]
        head = self.get_output_embeddings()
        if suits_tiles(head):
            return tiled_log_probs(hidden_NH, head, targets_N)
        return -cross_entropy(head(hidden_NH).float(), targets_N, reduction="none")

    model.forward = types.MethodType(forward, model)
    return takes_flat
