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
from trainers.rows.batches import OrdersRows
from trainers.rows.packing import REAL
from trainers.rows.row import IGNORED
from trainers.step.flat_rows import flat_labels, flat_line, rows_apart, takes_flat_rows
from trainers.step.sharding import from_main
from trainers.step.tiled_loss import suits_tiles, tiled_log_probs
from trainers.step.token_counting import TokenCounting, read_in
from trainers.step.trained_dtype import float32_weights


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


def answer_trainer() -> type:
    """TRL's SFTTrainer with this loss, checkpoints without pickle, a count of tokens, and nothing
    reported to anyone.
    """
    import torch
    from trl import SFTTrainer
    from trl.trainer.utils import add_fused_lm_head

    from trainers.keep.checkpoints import SafeCheckpoints
    from trainers.step.out_of_memory import SmallerParts

    class AnswerTrainer(OrdersRows, SmallerParts, TokenCounting, SafeCheckpoints, SFTTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            before = float32_weights(kwargs["model"])
            super().__init__(*args, **kwargs)
            base = (
                self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            )
            self.start_counting(before)
            self._own_loss = self.args.label_smoothing_factor == 0
            self._whole_logits = (
                self._own_loss
                and not self.aux_loss_enabled
                and self.args.device.type == "cpu"
                and plain_head(base)
            )
            if self._whole_logits:
                takes_flat = add_answer_loss(base, is_divided=bool(self.args.fsdp))
                module = getattr(self.model, "active_peft_config", None)
                # A prefix stands before each row, so that rows stay apart.
                self.lays_flat = takes_flat and not getattr(module, "is_prompt_learning", False)
            elif self._own_loss:
                add_fused_lm_head(base, outputs=("log_probs",))

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            real = inputs.pop(REAL, None)
            if self.model.training:
                self.count_tokens(read_in(inputs) if real is None else real, inputs)
            # TRL's own loss gathers over all processes, and one of them evaluates alone.
            evaluates = not self.model.training
            if return_outputs or not (self._own_loss or evaluates):
                return super().compute_loss(
                    model,
                    inputs,
                    return_outputs=return_outputs,
                    num_items_in_batch=num_items_in_batch,
                )
            balance = None
            if self._whole_logits:
                log_probs_N = model(**inputs, answer_loss=True)
            else:
                inputs["use_cache"] = False
                asked = (
                    {"output_router_logits": True}
                    if self.aux_loss_enabled and not evaluates
                    else {}
                )
                # N is B * T here, with zeros on tokens that are not learned.
                outputs = model(**inputs, **asked, fused_lm_head=True)
                log_probs_N, balance = outputs.log_probs, outputs.aux_loss
            losses_N = -log_probs_N
            if self.args.loss_type == "dft" and not evaluates:
                losses_N = losses_N * log_probs_N.exp().detach()
            if num_items_in_batch is None:
                learned = (inputs["labels"][:, 1:] != -100).sum()
                return self.mean_loss(losses_N, balance, learned)
            return self.mean_loss(losses_N, balance, num_items_in_batch, accumulated=True)

        def mean_loss(
            self, losses_N: Any, balance: Any | None, learned: Any, *, accumulated: bool = False
        ) -> Any:
            """The loss of a micro-batch, of which accumulated steps and processes make the mean
            over all learned tokens.

            Args:
                losses_N: Of each token; zeros on those that are not learned.
                balance: The loss that balances experts; None if there is none.
                learned: How many tokens are learned, in the micro-batch or in the whole batch, so
                    that accumulation does not change the result.
                accumulated: It is those of the whole batch.
            """
            loss = losses_N.sum() / torch.as_tensor(learned, device=losses_N.device).clamp(min=1)
            if self.args.average_tokens_across_devices and accumulated:
                loss = loss * self.accelerator.num_processes
            if balance is not None:
                # A mean over the tokens of the micro-batch: accumulated steps share it, and
                # processes average it.
                steps = self.current_gradient_accumulation_steps if accumulated else 1
                loss = loss + self.router_aux_loss_coef * balance / steps
            return loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            self._metrics["train" if self.model.training else "eval"].clear()
            super().log(logs, start_time)

    return AnswerTrainer
