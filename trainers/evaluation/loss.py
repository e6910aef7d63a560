"""Loss, log-probabilities and sample answers of a model, on a bounded number of rows, which go
through it in batches of about as many tokens as a micro-batch of training has; whole logits are
never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from trainers.job import Model, Trainer
from trainers.job.evaluating import measuring_as_trained
from trainers.rollouts import Sampling
from trainers.rollouts.transformers_engine import TransformersEngine, stop_ids
from trainers.rows import IGNORED, Row
from trainers.rows.heads import Rewriting, rewriting_columns
from trainers.rows.packing import in_batches, padded_batch

HELD_OUT_ROWS = 64
Item = TypeVar("Item")
SAMPLES = 16
LONGEST_SAMPLE = 128  # tokens


@dataclass(frozen=True, slots=True)
class Sample:
    text: str
    tokens: int
    stopped: bool  # by a stop token, not by the limit


def held_out(rows: Sequence[Item], *, limit: int = HELD_OUT_ROWS) -> list[Item]:
    """At most `limit` of the held-out rows, spread evenly over all of them."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


def answer_log_probs(trainer: Trainer, rows: Sequence[Row]) -> list[float]:
    """The sum of the log-probabilities of each row's learned tokens, in the order of the rows."""
    with measuring_as_trained(trainer):
        return log_prob_sums(
            trainer.model,
            rows,
            trainer.processing_class.pad_token_id,
            at_once=trainer.args.per_device_train_batch_size,
        )


def row_losses(trainer: Trainer, rows: Sequence[Row]) -> list[float]:
    """Mean loss per learned token of each row, in their order."""
    sums = answer_log_probs(trainer, rows)
    return [-total / max(1, row.learned) for total, row in zip(sums, rows, strict=True)]


def log_prob_sums(model: Model, rows: Sequence[Row], pad_id: int, *, at_once: int) -> list[float]:
    """The sum of the log-probabilities of each row's learned tokens, by a model that evaluates.

    Args:
        at_once: How many of the longest rows go through the model together.
    """
    import torch

    if not rows:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    device = next(model.parameters()).device
    head = model.get_output_embeddings()
    # TRL reads the matrix of the head, and would pass over a LoRA or single tokens trained on it.
    is_matrix = not any(isinstance(one, BaseTunerLayer) for one in head.modules())

    def sums(places: list[int]) -> Any:
        batch = padded_batch([rows[place] for place in places], pad_id, device)
        if is_matrix:
            return model(**batch, fused_lm_head=True).log_probs.sum(1)
        labels_BT = batch.pop("labels")[:, 1:]
        log_BTV = model(**batch).logits[:, :-1].float().log_softmax(-1)
        found_BT = log_BTV.gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]
        return found_BT.masked_fill(labels_BT == IGNORED, 0).sum(1)

    at_once = at_once if is_matrix else 1
    with fused_head(model):
        found = in_batches([row.tokens for row in rows], at_once, sums, "losses")
    return torch.stack(found).tolist()


def output_losses(trainer: Any, rows: Sequence[Rewriting]) -> list[float]:
    """The sum of the losses of all tokens of each row's output, in the order of the rows."""

    def sums(places: list[int]) -> Any:
        columns = rewriting_columns([rows[place] for place in places])
        features = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        inputs = trainer.data_collator(features).to(trainer.args.device)
        return token_losses(trainer.model, inputs).view(len(places), -1).sum(1)

    sizes, at_once = [row.tokens for row in rows], trainer.args.per_device_train_batch_size
    with measuring_as_trained(trainer):
        return list(map(float, in_batches(sizes, at_once, sums, "losses")))


def token_losses(model: Any, inputs: Mapping[str, Any], *, smoothing: float = 0.0) -> Any:
    """The cross-entropy of each token of the outputs of B rows, one row after the other, 0 behind
    their ends: B * T, with T tokens of the longest output, of a vocabulary V.

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


@contextmanager
def fused_head(model: Model) -> Iterator[None]:
    """Inside, the model gives the log-probabilities of learned tokens without whole logits."""
    from trl.trainer.utils import add_fused_lm_head

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, called = vars(base).get("forward"), base.forward
    # A prefix that PEFT has switched off goes to the forward that its base had then.
    is_off = model is not base and vars(model).get("forward") == called
    add_fused_lm_head(base)
    outer: Any = model
    if is_off:
        outer.forward = base.forward
    try:
        yield
    finally:
        if is_off:
            outer.forward = called
        del base.forward
        if before is not None:
            base.forward = before


def perplexity(loss: float | None) -> float | None:
    """e to the loss; None without a loss, and for a number that would be absurd."""
    return None if loss is None or loss > 50 else math.exp(loss)


def prompts_to_answer(rows: Sequence[Row], *, seq_len: int) -> list[Row]:
    """The first few rows whose prompts leave room for an answer within `seq_len`."""
    chosen = []
    for row in rows[: 4 * SAMPLES]:
        first = next((place for place, label in enumerate(row.labels) if label != IGNORED), 0)
        if row.prompt and first + 8 <= seq_len:
            chosen.append(row)
    return chosen[:SAMPLES]


def greedy_answers(
    trainer: Trainer, prompts: Sequence[Sequence[int]], *, limit: int
) -> list[Sample]:
    """The likeliest answers of the trainer's model, all together, at most `limit` tokens each."""
    model, tokenizer = trainer.model, trainer.processing_class
    engine = TransformersEngine(
        lambda: nullcontext(model),
        models=lambda: [model],
        least=len(prompts),
        autocast=trainer.accelerator.autocast,
    )
    found = engine.generate(prompts, Sampling(limit=limit, stops=stop_ids(model), temperature=0))
    written = zip(found.ids, found.ended, strict=True)
    return [
        Sample(
            text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
            tokens=len(ids),
            stopped=ended,
        )
        for ids, ended in ((ids[:-1] if ended else ids, ended) for ids, ended in written)
    ]
