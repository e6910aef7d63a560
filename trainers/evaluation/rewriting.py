"""The evaluation of a sequence-to-sequence model: its loss and its outputs on held-out rows, before
and after training.

Dimensions: B rows, T tokens of the longest output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.progress import track
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.held_out import collated, on_device
from trainers.evaluation.loss import SAMPLES, Sample, generating, samples_of, stops_of
from trainers.job.evaluating import evaluating
from trainers.job.types import Model, Tokenizer
from trainers.rows import IGNORED
from trainers.rows.rewriting import Rewriting, rewriting_columns
from trainers.say.progress import counting_answers
from trainers.step.out_of_memory import in_halves


def in_batches(rows: Sequence[Rewriting], size: int) -> list[list[Rewriting]]:
    """Batches of rows of similar length, so that little is padded."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def sum_of_losses(trainer: Any, rows: Sequence[Rewriting]) -> float:
    """The sum of the losses of all tokens of the rows' outputs."""
    inputs = on_device(trainer, collated(trainer, rewriting_columns(rows)))
    return float(loss_sum(trainer.model, inputs))


def loss_sum(model: Any, inputs: Mapping[str, Any], *, smoothing: float = 0.0) -> Any:
    """The sum of the cross-entropy over the output's tokens: a scalar tensor.

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
        reduction="sum",
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
        found = []
        with evaluating(self.trainer.model):
            for row in track(rows, "losses"):
                found.append(sum_of_losses(self.trainer, [row]) / row.learned)
        return found

    def sample(self, rows: Sequence[Any]) -> list[Sample]:
        """Greedy outputs."""
        model, tokenizer = self.trainer.model, self.trainer.processing_class
        parts = in_halves(rows, lambda part: _outputs(model, tokenizer, part, limit=self.limit))
        return [sample for part in parts for sample in part]


def _outputs(
    model: Model, tokenizer: Tokenizer, rows: Sequence[Rewriting], *, limit: int
) -> list[Sample]:
    device = next(model.parameters()).device
    encoded = tokenizer.pad(
        {"input_ids": [list(row.input_ids) for row in rows]}, return_tensors="pt"
    ).to(device)
    with generating(model), counting_answers(len(rows), limit, "answers at once") as count:
        output = model.generate(
            **encoded, max_new_tokens=limit, do_sample=False, num_beams=1, use_cache=True,
            logits_processor=[count.watch(1, stops_of(model))],
        )  # fmt: skip
    written = output[:, 1:]  # without the decoder's start token
    return samples_of(written.tolist(), model, tokenizer)
