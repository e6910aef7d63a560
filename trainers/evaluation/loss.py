"""Loss, log-probabilities and sample answers of a model, on a bounded number of rows; logits are
never kept.

Dimensions: T tokens of a row, N learned tokens of it, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from advisor.ground.progress import track
from trainers.job.evaluating import evaluating
from trainers.job.types import Device, Model, Tokenizer, Trainer
from trainers.rows import IGNORED, Row
from trainers.say.progress import counting_answers
from trainers.step.out_of_memory import in_halves

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


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Batches of rows of similar length, so that little is padded."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def padded_batch(rows: Sequence[Row], pad_id: int, device: Device) -> dict[str, Any]:
    """One batch of rows, padded on the right: input_ids, labels and attention_mask."""
    import torch

    width = max(row.tokens for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : row.tokens] = torch.tensor(row.input_ids)
        labels[place, : row.tokens] = torch.tensor(row.labels)
        mask[place, : row.tokens] = 1
    return {
        "input_ids": ids.to(device),
        "labels": labels.to(device),
        "attention_mask": mask.to(device),
    }


def mean_loss(trainer: Trainer, rows: Sequence[Row]) -> float | None:
    """Mean loss per learned token over the rows, or None without rows."""
    if not rows:
        return None
    model = trainer.model

    def total_of(batch: Sequence[Row]) -> float:
        inputs = padded_batch(batch, trainer.processing_class.pad_token_id, trainer.args.device)
        return float(trainer.compute_loss(model, inputs)) * sum(row.learned for row in batch)

    with evaluating(model):
        totals = [
            total
            for batch in batches(rows, trainer.args.per_device_train_batch_size)
            for total in in_halves(batch, total_of)
        ]
    return sum(totals) / sum(row.learned for row in rows)


def row_losses(trainer: Trainer, rows: Sequence[Row]) -> list[float]:
    """Mean loss per learned token of each row, in their order."""
    if not rows:
        return []
    model, found = trainer.model, []
    with evaluating(model):
        for row in track(rows, "losses"):
            found.append(
                float(
                    trainer.compute_loss(
                        model,
                        padded_batch(
                            [row], trainer.processing_class.pad_token_id, trainer.args.device
                        ),
                    )
                )
            )
    return found


def answer_log_probs(trainer: Trainer, rows: Sequence[Row]) -> list[float]:
    """The sum of the log-probabilities of each row's learned tokens, in the order of the rows.

    One row at a time, and only the logits of its answer, if the model can leave out the others.
    """
    import inspect

    import torch

    model, found = trainer.model, []
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    partly = "logits_to_keep" in inspect.signature(type(plain).forward).parameters
    with evaluating(model):
        for row in track(rows, "probabilities"):
            inputs = padded_batch([row], trainer.processing_class.pad_token_id, trainer.args.device)
            labels_T = inputs.pop("labels")[0]
            learned = (labels_T != IGNORED).nonzero()[:, 0]
            learned = learned[learned > 0]
            if not len(learned):
                found.append(0.0)
                continue
            keep = {"logits_to_keep": int(row.tokens - learned[0] + 1)} if partly else {}
            logits_TV = model(**inputs, use_cache=False, **keep).logits[0]
            # Counted from the end: earlier logits may be left out, and a prefix adds some in front.
            chosen_NV = logits_TV[len(logits_TV) - row.tokens + learned - 1].float()
            found.append(
                float(
                    -torch.nn.functional.cross_entropy(
                        chosen_NV, labels_T[learned], reduction="sum"
                    )
                )
            )
    return found


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


def sample_answers(
    model: Model, tokenizer: Tokenizer, rows: Sequence[Row], *, limit: int
) -> list[Sample]:
    """Greedy answers to the rows' prompts, at most `limit` tokens each; fewer at once if memory
    runs out.
    """
    if not rows:
        return []
    parts = in_halves(rows, lambda part: _answers(model, tokenizer, part, limit=limit))
    return [sample for part in parts for sample in part]


def _answers(
    model: Model, tokenizer: Tokenizer, rows: Sequence[Row], *, limit: int
) -> list[Sample]:
    """What `sample_answers` says, all at once."""
    # Rendered prompts have their own special tokens; a prompt without a template gets the
    # tokenizer's.
    special = not getattr(tokenizer, "chat_template", None)
    device = next(model.parameters()).device
    encoded = tokenizer(
        [row.prompt for row in rows],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=special,
        return_token_type_ids=False,
    ).to(device)
    width = encoded["input_ids"].shape[1]
    with generating(model), counting_answers(len(rows), limit, "answers at once") as count:
        output = model.generate(
            **encoded,
            logits_processor=[count.watch(width, stops_of(model))],
            max_new_tokens=limit,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
        )
    written = output[:, width:]
    return samples_of(written.tolist(), model, tokenizer)


@contextmanager
def generating(model: Model) -> Iterator[None]:
    """The model as it evaluates, with its cache, which is off under gradient checkpointing: every
    token would then cost a whole forward pass.
    """
    checkpointing = bool(getattr(model, "is_gradient_checkpointing", False))
    if checkpointing:
        model.gradient_checkpointing_disable()
    try:
        with evaluating(model):
            yield
    finally:
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})


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
