"""Several rows in one sequence without attention from one to another: bins, the trainer's columns,
batches, and a check on the model. And sequences of different lengths as one padded batch.

Positions begin again with every row. Flash attention takes the bounds of the rows, which TRL's flat
batches bring. Without it, transformers makes a block-diagonal mask from the positions, provided
there is no attention mask. Then each bin stays a line of its own in the batch: attention over one
flat line of all bins would cost as many times more as there are bins.

Dimensions: B bins of a batch, T tokens of the longest bin, S tokens of two rows laid end to end, V
vocabulary.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from advisor.ground.errors import InputError
from advisor.ground.progress import waiting
from advisor.methods.kernels import is_flash
from trainers.job import Device, Model
from trainers.job.evaluating import evaluating, first_float_dtype, half_dtype
from trainers.rows.row import IGNORED, Row, ids_of
from trainers.rows.sequences import Groups, lengths

Found = TypeVar("Found")
REAL = "real_tokens"  # of a packed batch; the trainer takes it out before the model sees it
SHOWN_TOKENS = 64  # of each of the two rows that are compared
LIKELY = 10.0  # below the most likely token, in nats: rounding of others means nothing
# Largest difference of a log-probability between a row alone and the same row behind another, in
# float32.
SAME_LOG_PROBS = 0.05
# In 16 bits: how many steps of the largest logit rounding may move one. SmolLM2-135M in bfloat16:
# at most 1.7 steps (0.49) over 15 pairs of rows, and 5 (1.6) if one layer of 30 looks across.
STEPS = 4
# Otherwise rows are apart if they move by less than this share of what one text of both costs:
# in 16 bits at most 0.04 was seen, and with int8, which rounds each batch anew, 0.19.
SHARE, SHARE_INT8 = 0.05, 0.25


def pack(rows: Sequence[Row], seq_len: int) -> Groups:
    """Rows in bins of at most `seq_len` tokens (best fit, longest first), looked up when they are
    asked for. Deterministic.
    """
    return Groups(rows, *bins_of(lengths(rows).astype("int32"), seq_len))


def bins_of(lengths: Any, seq_len: int) -> tuple[Any, Any]:
    """(the places of all rows, bin after bin; where each bin ends among them), from the lengths
    alone.

    Best fit, longest first: a row goes to the fullest bin that has room for it. (TRL's packing does
    so with the tokens of a thousand rows at a time.)

    Args:
        lengths: An int array, none over `seq_len`.
    """
    by_length = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), dtype=np.int32)  # of the rows in the order of `by_length`
    rooms: dict[int, array[int]] = {}  # tokens left -> such bins
    filled: list[int] = []  # the keys of `rooms`, sorted
    bins = 0
    for place, size in enumerate(lengths[by_length]):
        size = int(size)
        fitting = bisect_left(filled, size)
        if fitting < len(filled):
            room = filled[fitting]
            bin_of[place] = rooms[room].pop()
            if not rooms[room]:
                del rooms[room], filled[fitting]
        else:
            room = seq_len
            bin_of[place] = bins
            bins += 1
        left = room - size
        if left:
            if left not in rooms:
                rooms[left] = ids_of(())
                insort(filled, left)
            rooms[left].append(bin_of[place])
    order = by_length[np.argsort(bin_of, kind="stable")].astype(np.int32)
    return order, np.bincount(bin_of, minlength=bins).cumsum()


def dataset_columns(
    groups: Sequence[Sequence[Row]], *, lengths: bool
) -> dict[str, list[list[int]]]:
    """The columns of the trainer's dataset, one entry per group of rows laid end to end.

    Args:
        lengths: Also the length of each row in its group (`seq_lengths`).
    """
    table: dict[str, list[list[int]]] = {
        "input_ids": [[token for row in group for token in row.input_ids] for group in groups],
        # The first token of a row must not be predicted from the row before it.
        "labels": [
            [label for row in group for label in (IGNORED, *row.labels[1:])] for group in groups
        ],
    }
    if lengths:
        table["seq_lengths"] = [[row.tokens for row in group] for group in groups]
    return table


class PackedBatches:
    """Collator for packed rows without flash attention: one line per bin, no attention mask.

    Gives input_ids_BT, labels_BT and position_ids_BT, and under REAL how many tokens are no
    padding, which without a mask nobody could tell.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        # Padding has position 0 throughout, so that the mask takes each of its tokens for a row of
        # its own, which no other token sees.
        positions = [
            [place for length in example["seq_lengths"] for place in range(length)]
            for example in examples
        ]
        batch = {
            "input_ids": padded([example["input_ids"] for example in examples], self.pad_id),
            "labels": padded([example["labels"] for example in examples], IGNORED),
            "position_ids": padded(positions, 0),
        }
        batch[REAL] = torch.tensor(sum(len(example["input_ids"]) for example in examples))
        return batch


def check_packing(model: Any, rows: Sequence[Row], *, stage: str, attention: str) -> None:
    """Raise InputError if a row, packed behind another as the trainer packs them, gets other
    log-probabilities than alone.

    In 16 bits the same numbers in another order of sums differ by as much as a little leak would:
    logits near 37 are multiples of 0.25 in bfloat16. So there the difference is compared with that
    of the same two rows as one text, in which the second sees all of the first.
    """
    found = leak(model, rows, flash=is_flash(attention))
    if found is None:
        return
    device = next(model.parameters()).device
    raise InputError(
        f"packing cannot be used: with attention {attention} on {device.type} this"
        f" model lets packed rows see each other ({found})",
        where=f"stage {stage}",
        allowed="attention: flash_attention_2 on a CUDA GPU",
        hint="set packing: false",
    )


def leak(model: Any, rows: Sequence[Row], *, flash: bool = False) -> str | None:
    """How far the log-probabilities of a row move when another is packed in front of it, and when
    both are one text, in words; None if the row is as good as alone, or there is one row.

    The shorter two of the rows, at most SHOWN_TOKENS of each: a look across shows at the first.

    Args:
        flash: Pack for flash attention, as `packed_logits` does.
    """
    import torch

    if len(rows) < 2:
        return None
    shortest = lengths(rows).argsort(kind="stable")[:2]
    first, second = (tuple(rows[int(place)].input_ids)[:SHOWN_TOKENS] for place in shortest)
    device = next(model.parameters()).device

    def predict(ids: Sequence[int]) -> Any:
        return model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]

    with evaluating(model):
        packed_SV = packed_logits(model, (first, second), flash=flash)
        alone_TV, joined_TV, packed_TV = (
            torch.log_softmax(logits.float()[-len(second) :], dim=-1)
            for logits in (predict(second), predict((*first, *second)), packed_SV)
        )
    likely_TV = alone_TV > alone_TV.max(dim=-1, keepdim=True).values - LIKELY
    packed, joined = (
        float((alone_TV - other_TV).abs()[likely_TV].max()) for other_TV in (packed_TV, joined_TV)
    )
    allowed = SAME_LOG_PROBS
    if getattr(model, "is_loaded_in_8bit", False):
        allowed = max(allowed, SHARE_INT8 * joined)
    elif not packed_SV.dtype == first_float_dtype(model) == torch.float32:
        half = min(packed_SV.dtype, half_dtype(device), key=lambda dtype: dtype.itemsize)
        step = torch.finfo(half).eps * float(packed_SV.float().abs().max())
        allowed = max(allowed, STEPS * step, SHARE * joined)
    if packed <= allowed:  # also of a model that ignores its context
        return None
    return (
        f"log-probabilities move by up to {packed:.2g}, and by {joined:.2g} if the rows are one"
        " text"
    )


def packed_logits(model: Any, rows: Sequence[Sequence[int]], *, flash: bool = False) -> Any:
    """The model's logits over the token ids of rows packed into one sequence: S, V.

    Args:
        flash: Also give the bounds of the rows, as flash attention takes them.
    """
    import torch

    device = next(model.parameters()).device
    lengths = [len(ids) for ids in rows]
    example = {
        "input_ids": [token for ids in rows for token in ids],
        "labels": [IGNORED] * sum(lengths),
        "seq_lengths": lengths,
    }
    batch = PackedBatches(0)([example])
    inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
    if flash:
        ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        inputs |= {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
    return model(**inputs, use_cache=False).logits[0]


# ------------------------------------------------------------------------------------ padding


def in_batches(
    sizes: Sequence[int],
    at_once: int,
    compute: Callable[[list[int]], Iterable[Found]],
    what: str,
    *,
    unit: str = "rows",
) -> list[Found]:
    """What is found of each sequence, in their order.

    Those of similar length go together, at most as many tokens in a batch, padding included, as
    `at_once` of the longest have; with 0 each is alone.

    Args:
        sizes: Tokens of each.
        compute: Gives what it finds of those at some places, in their order.
        what: Is shown while it takes.
        unit: Of the sequences, in the plural.
    """
    budget = at_once * max(sizes, default=0)
    batches: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        # The next one is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * sizes[place] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    found: list[Found] = []
    with waiting(what, total=len(sizes), unit=unit) as done:
        for batch in batches:
            found += compute(batch)
            done(len(batch))
    return in_order(batches, found)


def in_order(batches: Sequence[Sequence[int]], found: Sequence[Found]) -> list[Found]:
    """What was found of each sequence, batch by batch, in the order of the sequences."""
    places = [place for batch in batches for place in batch]
    return [one for _, one in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def padded(sequences: Sequence[Sequence[int]], pad: int, *, on_left: bool = False) -> Any:
    """Sequences as one tensor on the host, padded on one side to the longest."""
    import torch

    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(sequence) for sequence in sequences],
        batch_first=True,
        padding_value=pad,
        padding_side="left" if on_left else "right",
    )


def padded_inputs(
    sequences: Sequence[Sequence[int]], pad_id: int, device: Device, *, on_left: bool = False
) -> dict[str, Any]:
    """The input_ids and attention_mask of a batch of sequences."""
    ids = padded(sequences, pad_id, on_left=on_left)
    mask = padded([[1] * len(sequence) for sequence in sequences], 0, on_left=on_left)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def padded_batch(rows: Sequence[Row], pad_id: int, device: Device) -> dict[str, Any]:
    """One batch of rows, padded on the right: input_ids, attention_mask and labels."""
    labels = padded([row.labels for row in rows], IGNORED)
    inputs = padded_inputs([row.input_ids for row in rows], pad_id, device)
    return {**inputs, "labels": labels.to(device)}


def head_outputs(
    model: Model,
    texts: Sequence[Sequence[int]],
    pad_id: int | None,
    *,
    at_once: int,
    what: str = "scores",
    unit: str = "answers",
) -> Any:
    """The outputs of the head of a model that evaluates, for N texts: N, C; float32 on the host.

    Args:
        pad_id: None, or -1 in some configs of the hub: the model scores single texts alone.
        at_once: How many of the longest texts go through the model together.
        what: Is shown while it takes.
        unit: Of the texts, in the plural.
    """
    import torch

    device = next(model.parameters()).device

    def outputs(places: list[int]) -> Any:
        inputs = padded_inputs([texts[place] for place in places], pad_id or 0, device)
        return model(**inputs).logits

    at_once = 0 if pad_id is None or pad_id < 0 else at_once
    found = in_batches(list(map(len, texts)), at_once, outputs, what, unit=unit)
    return torch.stack(found).float().cpu()
