"""Sequences of different lengths as one batch, and which of them go through a model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from advisor.ground.progress import waiting
from trainers.job.types import Device
from trainers.rows.row import IGNORED, Row

Found = TypeVar("Found")


def token_batches(lengths: Sequence[int], at_once: int) -> list[list[int]]:
    """Places of the sequences, by length, in batches of at most as many tokens, padding included,
    as `at_once` of the longest have.
    """
    budget = at_once * max(lengths, default=0)
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        # The next one is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * lengths[place] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def track_batches(
    batches: Sequence[Sequence[int]], what: str, *, unit: str = "rows"
) -> Iterator[Sequence[int]]:
    """The batches one by one, as a wait that counts their sequences."""
    with waiting(what, total=sum(map(len, batches)), unit=unit) as done:
        for batch in batches:
            yield batch
            done(len(batch))


def in_order(batches: Sequence[Sequence[int]], found: Sequence[Found]) -> list[Found]:
    """What was found of each sequence, batch by batch, in the order of the sequences."""
    places = [place for batch in batches for place in batch]
    return [one for _, one in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def padded(sequences: Sequence[Sequence[int]], pad: int, *, on_left: bool = False) -> Any:
    """Sequences as one tensor on the host, padded on one side to the longest."""
    import torch

    width = max(map(len, sequences))
    found = torch.full((len(sequences), width), pad)
    for line, sequence in zip(found, sequences, strict=True):
        place = slice(width - len(sequence), None) if on_left else slice(len(sequence))
        line[place] = torch.tensor(sequence)
    return found


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
