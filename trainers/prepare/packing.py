"""Several rows in one sequence without attention from one to another: bins, the trainer's columns,
batches, and a check on the model.

Positions begin again with every row. Flash attention takes the bounds of the rows, which TRL's flat
batches bring. Without it, transformers makes a block-diagonal mask from the positions, provided
there is no attention mask. Then each bin stays a line of its own in the batch: attention over one
flat line of all bins would cost as many times more as there are bins.

Dimensions: B bins of a batch, T tokens of the longest bin, S tokens of two rows laid end to end, V
vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from advisor.ground.errors import InputError
from trainers.prepare.row import IGNORED, Row

# Largest difference between a row alone and the same row behind another. If rows see each other, it
# is far larger.
SAME_LOG_PROBS = 0.05


def pack(rows: Sequence[Row], seq_len: int) -> list[tuple[Row, ...]]:
    """Rows in bins of at most `seq_len` tokens (best fit, longest first). Deterministic."""
    bins: list[list[Row]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for row in sorted(rows, key=lambda row: (-row.tokens, row.number)):
        place = bisect_left(rooms, (row.tokens, -1))
        if place < len(rooms):
            room, index = rooms.pop(place)
            bins[index].append(row)
        else:
            room, index = seq_len, len(bins)
            bins.append([row])
        insort(rooms, (room - row.tokens, index))
    return [tuple(group) for group in bins]


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
    """Collator for packed rows without flash attention: one line per bin, positions that begin
    again with each row, no attention mask.

    Gives input_ids_BT, labels_BT and position_ids_BT.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(len(example["input_ids"]) for example in examples)
        shape = (len(examples), width)
        # Padding has position 0 throughout, so that the mask takes each of its tokens for a row of
        # its own, which no other token sees.
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "labels": torch.full(shape, IGNORED),
            "position_ids": torch.zeros(shape, dtype=torch.long),
        }
        for line, example in enumerate(examples):
            size = len(example["input_ids"])
            batch["input_ids"][line, :size] = torch.tensor(example["input_ids"])
            batch["labels"][line, :size] = torch.tensor(example["labels"])
            batch["position_ids"][line, :size] = torch.cat(
                [torch.arange(length) for length in example["seq_lengths"]]
            )
        return batch


def check_packing(model: Any, rows: Sequence[Row], *, stage: str, attention: str) -> None:
    """Raise InputError if two short rows, packed as the trainer packs them, get other
    log-probabilities than alone.
    """
    import torch

    if len(rows) < 2:
        return
    first, second = sorted(rows, key=lambda row: row.tokens)[:2]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits_SV = packed_logits(model, (first, second), flash=attention.startswith("flash"))
        together_TV = logits_SV[first.tokens :]
        alone_TV = model(
            input_ids=torch.tensor([list(second.input_ids)], device=device), use_cache=False
        ).logits[0]
    model.train(was_training)
    packed_TV, other_TV = (
        torch.log_softmax(logits.float(), dim=-1) for logits in (together_TV, alone_TV)
    )
    gap = float((packed_TV - other_TV).abs()[other_TV > -10].max())
    if not gap <= SAME_LOG_PROBS:
        raise InputError(
            f"stage {stage}: packing cannot be used: with attention {attention} on {device.type}"
            f" this model lets packed rows see each other (log-probabilities move by {gap:.2g})",
            allowed="attention: flash_attention_2 on a CUDA GPU",
            hint="set packing: false",
        )


def packed_logits(model: Any, rows: Sequence[Row], *, flash: bool = False) -> Any:
    """The model's logits over rows packed into one sequence: S, V.

    Args:
        flash: Also give the bounds of the rows, as flash attention takes them.
    """
    import torch

    device = next(model.parameters()).device
    group = dataset_columns([tuple(rows)], lengths=True)
    example = {name: column[0] for name, column in group.items()}
    batch = PackedBatches(0)([example])
    inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
    if flash:
        ends = torch.tensor([0, *example["seq_lengths"]], device=device).cumsum(0).to(torch.int32)
        longest = max(example["seq_lengths"])
        inputs |= {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return model(**inputs, use_cache=False).logits[0]
