"""The trainers of stages, one class for each of TRL's, but for those that generate answers
(rollout_trainers.py) and those that TRL calls experimental (pair_trainers.py).

Dimensions: N learned tokens of a micro-batch laid end to end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

from trainers.evaluation.rewriting import token_losses
from trainers.rows.packing import REAL
from trainers.rows.row import IGNORED
from trainers.stage.trl_trainer import StageTrainer
from trainers.step.answer_loss import PLACES, KnowsAnswers, add_hidden_call, answer_log_probs
from trainers.step.token_counting import read_in


class SFT(StageTrainer, SFTTrainer):
    """Learns the next token of answers or texts: a mean over all learned tokens of an optimizer
    step.

    TRL's own step also computes entropy and token accuracy of every micro-batch, asks a GPU which
    tokens are learned, and without Triton (on the CPU) scores every position in tiles. None of that
    is needed here: the loss and its gradients are the same, and the step is faster.
    """

    first_label = 1  # what no token stands before is not predicted

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_hidden_call(
            self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        )
        collator: Any = vars(self)["data_collator"]
        self.data_collator: Any = KnowsAnswers(collator)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        real, places_N = inputs.pop(REAL, None), inputs.pop(PLACES, None)
        if self.model.training:
            self.count_tokens(read_in(inputs) if real is None else real, inputs)
        # TRL's own loss gathers over all processes, and one of them evaluates alone.
        evaluates = not self.model.training
        if return_outputs or not (self.args.label_smoothing_factor == 0 or evaluates):
            return SFTTrainer.compute_loss(
                self,
                model,
                inputs,
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        if self.aux_loss_enabled and not evaluates:
            asked["output_router_logits"] = True
        score = partial(answer_log_probs, labels_BT=inputs["labels"], places_N=places_N)
        log_probs_N, balance = model(**asked, at_head=score)
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

    first_label = 0

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
