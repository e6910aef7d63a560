"""Answers in batches, and the log-probability of every token in them, without holding the logits
of a whole batch. trainers/rollouts/ generates the answers.

Dimensions: R answers of a rollout, T tokens of the longest of them; B answers of a batch, S tokens
of prompt and answer together, N answer tokens of the batch laid end to end; H hidden size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainers.rollouts import Answers
from trainers.rows.packing import in_order, padded_inputs
from trainers.step.answer_loss import TILE_TOKENS, at_places, head_of, token_log_probs

# Of float32 logits held at once by a CPU, which is as fast with few; a vocabulary of 50,000 gives
# parts of 335 tokens.
LOGIT_BYTES = 64 * 2**20


@dataclass
class Batch:
    """Some answers with their prompts, padded on the right.

    The same rows stay together in all epochs: padding changes rounding, and the first ratios of
    probabilities have to be exactly 1.
    """

    planned: int  # the number of the batch that the plan would put them into
    rows: list[int]  # the places of its B answers among the R of the rollout
    ids_BS: Any
    attention_BS: Any
    places_N: Any  # where the hidden state predicts an answer token, counted through all B * S
    targets_N: Any  # the answer tokens
    counts: list[int]  # of each row's answer tokens: nobody has to ask the device for them


def batches_of(
    answers: Answers, size: int, *, pad_id: int, device: Any, planned: int | None = None
) -> list[Batch]:
    """The answers in batches of similar length.

    Args:
        size: Answers of a batch.
        planned: Those of the plan, which are cut into batches of `size`; None: so many.
    """
    planned = planned or size
    texts = [[*prompt, *ids] for prompt, ids in zip(answers.prompts, answers.ids, strict=True)]
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    whole = [order[start : start + planned] for start in range(0, len(order), planned)]

    def batch(number: int, rows: list[int]) -> Batch:
        inputs = padded_inputs([texts[row] for row in rows], pad_id, device)
        width = max(len(texts[row]) for row in rows)
        places: list[int] = []
        for place, row in enumerate(rows):
            first = place * width + len(answers.prompts[row]) - 1
            places += range(first, first + len(answers.ids[row]))
        return Batch(
            planned=number,
            rows=rows,
            ids_BS=inputs["input_ids"],
            attention_BS=inputs["attention_mask"],
            places_N=torch.tensor(places, device=device),
            targets_N=torch.tensor([one for row in rows for one in answers.ids[row]]).to(device),
            counts=[len(answers.ids[row]) for row in rows],
        )

    return [
        batch(number, rows[start : start + size])
        for number, rows in enumerate(whole)
        for start in range(0, len(rows), size)
    ]


def table_of(lines: Sequence[Any], device: Any) -> Any:
    """Numbers of each answer's tokens as one table, with zeros after its end: R, T; float32."""
    found = [torch.as_tensor(line, dtype=torch.float32, device=device) for line in lines]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def scatter_answers(batches: Sequence[Batch], parts: Sequence[Any]) -> Any:
    """The numbers of all batches' answer tokens as one table: R, T.

    Args:
        batches: Of all R answers.
        parts: Of each batch the numbers of its answer tokens: N.
    """
    lines = [
        line
        for batch, values_N in zip(batches, parts, strict=True)
        for line in values_N.split(batch.counts)
    ]
    return table_of(in_order([batch.rows for batch in batches], lines), parts[0].device)


def gather_answers(table_RT: Any, batch: Batch) -> Any:
    """The numbers of a batch's answer tokens from the table of all answers, laid end to end: N."""
    return torch.cat(
        [table_RT[row, :count] for row, count in zip(batch.rows, batch.counts, strict=True)]
    )


# --------------------------------------------------------------------------- log-probabilities


def hidden_states(model: Any, batch: Batch) -> Any:
    """The hidden states before the head: B, S, H. No logits are computed for them.

    Args:
        model: With `add_hidden_call`.
        batch: Prompts and answers.
    """
    return model(
        input_ids=batch.ids_BS, attention_mask=batch.attention_BS, at_head=lambda _, hidden: hidden
    )[0]


def answer_states(model: Any, batch: Batch) -> Any:
    """Those that predict the batch's answer tokens, laid end to end: N, H."""
    return at_places(hidden_states(model, batch), batch.places_N)


def answer_log_probs(
    model: Any, batch: Batch, temperature: float, *, with_entropy: bool = False
) -> tuple[Any, Any | None]:
    """What `token_log_probs` says of the batch's answer tokens: N, N.

    Args:
        model: With `add_hidden_call`.
        batch: Prompts and answers.
        temperature: That the answers were drawn with.
        with_entropy: Compute the entropy, too.
    """
    hidden_NH = answer_states(model, batch)
    head = head_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return token_log_probs(
        hidden_NH,
        head,
        batch.targets_N,
        temperature=temperature,
        with_entropy=with_entropy,
        tile=tokens_at_once(int(head.module.weight.shape[0]), hidden_NH.device.type),
    )


def tokens_at_once(size: int, device: str) -> int:
    """How many tokens the head is applied to at a time.

    Args:
        size: Of the vocabulary.
        device: Its type.
    """
    fitting = max(1, LOGIT_BYTES // (4 * size))
    return fitting if device == "cpu" else max(fitting, TILE_TOKENS)
