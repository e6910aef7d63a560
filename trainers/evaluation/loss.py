"""Loss, log-probabilities and sample answers of a model, on a bounded number of rows, which go
through it in batches of about as many tokens as a micro-batch of training has; whole logits are
never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from trainers.job.evaluating import generating, measuring_as_trained
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import IGNORED, Row
from trainers.rows.packing import (
    in_order,
    padded_batch,
    padded_inputs,
    token_batches,
    track_batches,
)
from trainers.say.progress import counting_answers

HELD_OUT_ROWS = 64
Item = TypeVar("Item")
SAMPLES = 16
LONGEST_SAMPLE = 128  # tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer."""

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
    device = next(model.parameters()).device
    batches = token_batches([row.tokens for row in rows], at_once)
    with fused_head(model):
        sums = [
            model(
                **padded_batch([rows[place] for place in batch], pad_id, device), fused_lm_head=True
            ).log_probs.sum(1)
            for batch in track_batches(batches, "losses")
        ]
    return in_order(batches, torch.cat(sums).tolist())


@contextmanager
def fused_head(model: Model) -> Iterator[None]:
    """Inside, the model gives the log-probabilities of learned tokens without whole logits."""
    from trl.trainer.utils import add_fused_lm_head

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = vars(base).get("forward")
    add_fused_lm_head(base)
    try:
        yield
    finally:
        del base.forward
        if before is not None:
            base.forward = before


def perplexity(loss: float | None) -> float | None:
    """e to the loss; None without a loss, and for a number that would be absurd."""
    return None if loss is None or loss > 50 else math.exp(loss)


def prompts_to_answer(rows: Sequence[Row], *, seq_len: int) -> list[Row]:
    """The first few rows whose prompts leave room for an answer within `seq_len`."""
    chosen = []
    for row in rows:
        first = next((place for place, label in enumerate(row.labels) if label != IGNORED), 0)
        if row.prompt and first + 8 <= seq_len:
            chosen.append(row)
        if len(chosen) == SAMPLES:
            break
    return chosen


def sample_answers(trainer: Trainer, rows: Sequence[Row], *, limit: int) -> list[Sample]:
    """Greedy answers to the rows' prompts, all together, at most `limit` tokens each."""
    tokenizer, device = trainer.processing_class, next(trainer.model.parameters()).device
    # Rendered prompts have their own special tokens; a prompt without a template gets the
    # tokenizer's.
    special = not getattr(tokenizer, "chat_template", None)
    prompts = tokenizer([row.prompt for row in rows], add_special_tokens=special)["input_ids"]
    inputs = padded_inputs(prompts, tokenizer.pad_token_id, device, on_left=True)
    return greedy_answers(trainer, inputs, limit=limit, width=inputs["input_ids"].shape[1])


def greedy_answers(
    trainer: Trainer, inputs: Mapping[str, Any], *, limit: int, width: int
) -> list[Sample]:
    """What the trainer's model writes on a batch of inputs.

    Args:
        width: How many tokens of the output are no answer: the prompt's, or a decoder's first.
    """
    model, count = trainer.model, len(inputs["input_ids"])
    with (
        generating(model), trainer.accelerator.autocast(),
        counting_answers(count, limit, "answers at once") as counted,
    ):  # fmt: skip
        output = model.generate(
            **inputs,
            logits_processor=[counted.watch(width, stops_of(model))],
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
        )
    return samples_of(output[:, width:].tolist(), model, trainer.processing_class)


def samples_of(
    written: Iterable[Sequence[int]], model: Model, tokenizer: Tokenizer
) -> list[Sample]:
    """The texts that the model wrote, each up to the first token that ends an answer."""
    stop_ids = set(stops_of(model))
    samples = []
    for line in written:
        end = next((place for place, token in enumerate(line) if token in stop_ids), None)
        ids = line if end is None else line[:end]
        samples.append(
            Sample(
                text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
                tokens=len(ids),
                stopped=end is not None,
            )
        )
    return samples


def stops_of(model: Model) -> list[int]:
    """The tokens that end an answer; [] if the model names none."""
    stops = model.generation_config.eos_token_id
    return list(stops) if isinstance(stops, list) else [] if stops is None else [stops]


def sample_limit(rows: Sequence[Row]) -> int:
    """How many tokens a sample answer may have: half as many again as the longest expected one, up
    to a bound.
    """
    longest = max((row.learned for row in rows), default=32)
    return min(LONGEST_SAMPLE, longest + longest // 2 + 8)
