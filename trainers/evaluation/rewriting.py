"""The evaluation of a sequence-to-sequence model: its loss and its outputs on held-out rows, before
and after training.

Dimensions: B rows, T tokens of the longest output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import SAMPLES, Sample, greedy_answers
from trainers.job.evaluating import measuring_as_trained
from trainers.rows import IGNORED
from trainers.rows.heads import Rewriting, rewriting_columns
from trainers.rows.packing import in_order, padded_inputs, token_batches, track_batches


def output_losses(trainer: Any, rows: Sequence[Rewriting]) -> list[float]:
    """The sum of the losses of all tokens of each row's output, in the order of the rows."""
    batches = token_batches([row.tokens for row in rows], trainer.args.per_device_train_batch_size)
    with measuring_as_trained(trainer):
        sums = [
            row_loss_sums(trainer, [rows[place] for place in batch])
            for batch in track_batches(batches, "losses")
        ]
    return in_order(batches, [total for part in sums for total in part.tolist()])


def row_loss_sums(trainer: Any, rows: Sequence[Rewriting]) -> Any:
    """The sum of the losses of all tokens of each row's output: B."""
    columns = rewriting_columns(rows)
    features = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    inputs = trainer.data_collator(features).to(trainer.args.device)
    losses = token_losses(trainer.model, inputs)
    return losses.view(len(rows), -1).sum(1)


def token_losses(model: Any, inputs: Mapping[str, Any], *, smoothing: float = 0.0) -> Any:
    """The cross-entropy of each token of the outputs, one row after the other, 0 behind their ends:
    B * T.

    Args:
        smoothing: The share of each target that is spread over the whole vocabulary.
    """
    import torch

    labels_BT = inputs["labels"]
    given = dict(inputs)
    if "decoder_input_ids" in given:  # else the model shifts the labels itself, as NLLB does
        given.pop("labels")
    logits_BTV = model(**given, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.float().view(-1, logits_BTV.shape[-1]),
        labels_BT.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )


class RewritingEvaluator(TextEvaluator):
    """Measures losses and outputs. There are no general prompts: such a model has one task."""

    def own_prompts(self, rows: Sequence[Any]) -> list[Any]:
        """The first few rows."""
        return list(rows[:SAMPLES])

    def own_general(self) -> list[Any]:
        return []

    def losses(self, rows: Sequence[Any]) -> list[float]:
        """Loss per token of the output of each row."""
        sums = output_losses(self.trainer, rows)
        return [total / row.learned for total, row in zip(sums, rows, strict=True)]

    def sample(self, rows: Sequence[Any]) -> list[Sample]:
        """Greedy outputs."""
        device = next(self.trainer.model.parameters()).device
        pad = self.trainer.processing_class.pad_token_id
        inputs = padded_inputs([row.input_ids for row in rows], pad, device)
        # A decoder begins with a token of its own.
        return greedy_answers(self.trainer, inputs, limit=self.limit, width=1)
