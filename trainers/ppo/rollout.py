"""Answers in batches, and the log-probability of every token in them, without holding the logits
of a whole batch. trainers/rollouts/ generates the answers.

Dimensions: R answers of a rollout, T tokens of the longest of them; B answers of a batch, S tokens
of prompt and answer together, N answer tokens of the batch laid end to end, P of them at a time; H
hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.rollouts.engine import Answers
from trainers.step.answer_loss import TILE_TOKENS, head_of, token_log_probs

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
    # N: where the hidden state predicts an answer token, counted through all B * S, so that nobody
    # has to ask the device how many there are
    places_N: Any
    targets_N: Any  # the answer tokens
    counts: list[int]  # of each row's answer tokens: nobody has to ask the device for them

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.targets_N)


def batches_of(
    answers: Answers, size: int, *, pad_id: int, device: Any, planned: int | None = None
) -> list[Batch]:
    """The answers in batches of similar length.

    Args:
        size: Answers of a batch.
        planned: Those of the plan, which are cut into batches of `size`; None: so many.
    """
    planned = planned or size
    lengths = [
        len(prompt) + len(answer)
        for prompt, answer in zip(answers.prompts, answers.ids, strict=True)
    ]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    whole = [order[start : start + planned] for start in range(0, len(order), planned)]
    return [
        _batch(answers, number, rows[start : start + size], pad_id=pad_id, device=device)
        for number, rows in enumerate(whole)
        for start in range(0, len(rows), size)
    ]


def _batch(answers: Answers, planned: int, rows: list[int], *, pad_id: int, device: Any) -> Batch:
    import torch

    texts = [[*answers.prompts[row], *answers.ids[row]] for row in rows]
    width = max(map(len, texts))
    ids_BS = torch.full((len(rows), width), pad_id)
    attention_BS = torch.zeros((len(rows), width), dtype=torch.long)
    places: list[int] = []
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        ids_BS[place, : len(text)] = torch.tensor(text)
        attention_BS[place, : len(text)] = 1
        first = place * width + len(answers.prompts[row]) - 1
        places += range(first, first + len(answers.ids[row]))
    places_N = torch.tensor(places)
    return Batch(
        planned=planned,
        rows=rows,
        ids_BS=ids_BS.to(device, non_blocking=True),
        attention_BS=attention_BS.to(device, non_blocking=True),
        places_N=places_N.to(device, non_blocking=True),
        targets_N=ids_BS.flatten()[places_N + 1].to(device, non_blocking=True),
        counts=[len(answers.ids[row]) for row in rows],
    )


def scatter_answers(parts: Sequence[tuple[Batch, Any]], mask_RT: Any) -> Any:
    """The numbers of all batches' answer tokens as one table: R, T, with zeros after the end of
    each answer.

    Args:
        parts: Each batch with its numbers: N.
        mask_RT: What `answer_mask` returned.
    """
    import torch

    table_RT = torch.zeros(mask_RT.shape, dtype=torch.float32, device=mask_RT.device)
    for batch, values_N in parts:
        for row, values in zip(batch.rows, values_N.float().split(batch.counts), strict=True):
            table_RT[row, : len(values)] = values
    return table_RT


def gather_answers(table_RT: Any, batch: Batch) -> Any:
    """The numbers of a batch's answer tokens from the table of all answers, laid end to end: N."""
    import torch

    return torch.cat(
        [table_RT[row, :count] for row, count in zip(batch.rows, batch.counts, strict=True)]
    )


def answer_mask(answers: Answers, device: Any) -> Any:
    """Ones on the tokens of each answer, zeros after its end: R, T."""
    import torch

    mask_RT = torch.zeros((len(answers.ids), max(map(len, answers.ids))))
    for row, ids in enumerate(answers.ids):
        mask_RT[row, : len(ids)] = 1
    return mask_RT.to(device)


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
    return hidden_states(model, batch).flatten(0, 1)[batch.places_N]


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
