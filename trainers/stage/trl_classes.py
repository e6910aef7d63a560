"""The trainers of stages, one class for each of TRL's, but for those that generate answers
(rollout_trainers.py) and those that TRL calls experimental (pair_trainers.py).

Dimensions: N learned tokens of a micro-batch laid end to end.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from trainers.evaluation.rewriting import token_losses
from trainers.rows.packing import REAL
from trainers.rows.row import IGNORED
from trainers.stage.answer_loss import add_answer_loss, plain_head
from trainers.stage.trl_trainer import StageTrainer
from trainers.step.token_counting import read_in


class SFT(StageTrainer, SFTTrainer):
    """Learns the next token of answers or texts: a mean over all learned tokens of an optimizer
    step.

    TRL's own step also computes entropy and token accuracy of every micro-batch and, without Triton
    (on the CPU), scores every position in tiles. Neither is needed here: the loss and its gradients
    are the same, and the step is faster.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
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
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        real = inputs.pop(REAL, None)
        if self.model.training:
            self.count_tokens(read_in(inputs) if real is None else real, inputs)
        # TRL's own loss gathers over all processes, and one of them evaluates alone.
        evaluates = not self.model.training
        if return_outputs or not (self._own_loss or evaluates):
            return SFTTrainer.compute_loss(
                self,
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
                {"output_router_logits": True} if self.aux_loss_enabled and not evaluates else {}
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


class DPO(StageTrainer, DPOTrainer):
    """Learns from pairs of a chosen and a rejected answer."""


class KTO(StageTrainer, KTOTrainer):
    """Learns from answers that people liked or did not."""

    orders_rows = False  # each row stands behind the one whose answer its prompt also gets


class Reward(StageTrainer, RewardTrainer):
    """Learns to score the chosen answer of a pair higher."""


class Classes(StageTrainer):
    """Learns the class of a text.

    transformers divides a loss that is a mean over the rows of a micro-batch by grad_accum only if
    told so: it takes a model whose forward has **kwargs for one that divides by the rows of the
    whole batch, which no model for classification does.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class Seq2Seq(StageTrainer):
    """Learns to write the output of an input: a mean over the tokens of an optimizer step, however
    it is divided into micro-batches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Then it counts the tokens of all micro-batches of a step, and divides by nothing else.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask, labels = inputs["attention_mask"], inputs["labels"]
        written = (labels != IGNORED).sum()
        if self.model.training:  # tokens that are read, and that are written
            self.add_tokens(mask.sum() + written, mask.numel() + labels.numel(), written)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0
        total = token_losses(model, inputs, smoothing=smoothing).sum()
        if num_items_in_batch is None:
            return total / written
        if self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes
        return total / num_items_in_batch
