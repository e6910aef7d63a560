"""Answers in batches, and the log-probability of every token in them, without holding the logits
of a whole batch. trainers/rollouts/ generates the answers.

Dimensions: R answers of a rollout, T tokens of the longest of them; B answers of a batch, S tokens
of prompt and answer together, N answer tokens of the batch laid end to end, P of them at a time; H
hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.ppo.math import entropies
from trainers.rollouts.engine import Answers
from trainers.stage.answer_loss import plain_head

# Of float32 logits held at once; a vocabulary of 50,000 gives parts of 335 tokens.
LOGIT_BYTES = 64 * 2**20


@dataclass
class Batch:
    """Some answers with their prompts, padded on the right.

    The same rows stay together in all epochs: padding changes rounding, and the first ratios of
    probabilities have to be exactly 1.
    """

    rows: list[int]  # the places of its B answers among the R of the rollout
    ids_BS: Any
    attention_BS: Any
    answer_BS: Any  # True where the hidden state predicts an answer token
    targets_N: Any  # the answer tokens
    counts: list[int]  # of each row's answer tokens: nobody has to ask the device for them

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.targets_N)


def batches_of(answers: Answers, size: int, *, pad_id: int, device: Any) -> list[Batch]:
    """The answers in batches of similar length."""
    import torch

    lengths = [
        len(prompt) + len(answer)
        for prompt, answer in zip(answers.prompts, answers.ids, strict=True)
    ]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    found = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(lengths[row] for row in rows)
        ids_BS = torch.full((len(rows), width), pad_id)
        attention_BS = torch.zeros((len(rows), width), dtype=torch.long)
        answer_BS = torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            ids_BS[place, : lengths[row]] = torch.tensor([*answers.prompts[row], *answers.ids[row]])
            attention_BS[place, : lengths[row]] = 1
            answer_BS[place, len(answers.prompts[row]) - 1 : lengths[row] - 1] = True
        targets_N = ids_BS[:, 1:][answer_BS[:, :-1]]
        found.append(
            Batch(
                rows,
                ids_BS.to(device, non_blocking=True),
                attention_BS.to(device, non_blocking=True),
                answer_BS.to(device, non_blocking=True),
                targets_N.to(device, non_blocking=True),
                [len(answers.ids[row]) for row in rows],
            )
        )
    return found


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of at most `size` answers, in their order, each as wide as its longest."""
    import torch

    if len(batch.rows) <= size:
        return [batch]
    lengths = batch.attention_BS.sum(1).tolist()
    targets = batch.targets_N.split(batch.counts)
    found = []
    for start in range(0, len(batch.rows), size):
        part = slice(start, start + size)
        width = max(lengths[part])
        found.append(
            Batch(
                batch.rows[part],
                batch.ids_BS[part, :width],
                batch.attention_BS[part, :width],
                batch.answer_BS[part, :width],
                torch.cat(targets[part]),
                batch.counts[part],
            )
        )
    return found


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


def add_hidden_states(model: Any) -> None:
    """Give a model with a head a forward that, called with `hidden_only=True`, returns its last
    hidden states (B, S, H) and computes no logits.
    """
    if getattr(model.forward, "gives_hidden_states", False):
        return
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, hidden_only: bool = False, **kwargs: Any) -> Any:
        if not hidden_only:
            return original(*args, **kwargs)
        kwargs.pop("labels", None)
        kwargs["use_cache"] = False
        return getattr(self, self.base_model_prefix)(*args, **kwargs).last_hidden_state

    forward.gives_hidden_states = True  # type: ignore[attr-defined]  # a mark for the next call
    model.forward = types.MethodType(forward, model)


def hidden_states(model: Any, batch: Batch) -> Any:
    """The hidden states that predict the batch's answer tokens, laid end to end: N, H."""
    return model(input_ids=batch.ids_BS, attention_mask=batch.attention_BS, hidden_only=True)[
        batch.answer_BS
    ]


def token_log_probs(
    model: Any,
    batch: Batch,
    temperature: float,
    *,
    with_entropy: bool = False,
    budget_bytes: int = LOGIT_BYTES,
) -> tuple[Any, Any | None]:
    """(log-probability of each answer token: N, entropy of the distribution it was drawn from: N),
    in float32, under softmax(logits / temperature). The entropy is None without `with_entropy`.

    The head is applied to P tokens at a time. For gradients each part is recomputed in the backward
    pass, so that the logits of one part (P, V) are all that is ever held.

    Args:
        model: With `add_hidden_states`.
        batch: Prompts and answers.
        temperature: That the answers were drawn with.
        with_entropy: Compute the entropy, too; it has no gradient.
        budget_bytes: For the logits of one part.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if plain_head(base):
        hidden_NH, head = hidden_states(model, batch), base.get_output_embeddings()
    else:  # a head with a soft cap or a scale: the logits as the model computes them
        hidden_NH, head = (
            model(
                input_ids=batch.ids_BS, attention_mask=batch.attention_BS, use_cache=False
            ).logits[batch.answer_BS],
            torch.nn.Identity(),
        )

    def part(hidden_PH: Any, targets_P: Any) -> tuple[Any, Any]:
        logits_PV = head(hidden_PH).float()
        if temperature != 1:
            logits_PV = logits_PV / temperature
        chosen_P = logits_PV.gather(1, targets_P[:, None])[:, 0] - torch.logsumexp(
            logits_PV, dim=-1
        )
        with torch.no_grad():  # for display and guards, not part of the loss
            entropy_P = entropies(logits_PV) if with_entropy else chosen_P.detach()
        return chosen_P, entropy_P

    size = max(1, budget_bytes // (4 * base.get_output_embeddings().weight.shape[0]))
    parts = list(zip(hidden_NH.split(size), batch.targets_N.split(size), strict=True))
    again = torch.is_grad_enabled() and len(parts) > 1
    results = [
        checkpoint(part, hidden, targets, use_reentrant=False) if again else part(hidden, targets)
        for hidden, targets in parts
    ]
    chosen_N = torch.cat([chosen for chosen, _ in results])
    return chosen_N, torch.cat([entropy for _, entropy in results]) if with_entropy else None
