"""How many tokens there are in a micro-batch, whatever its trainer calls its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """Tokens of all steps since the training began or resumed, in all processes."""

    read: int  # without padding
    computed: int  # with it
    learned: int | None  # whose prediction is in the loss; None: not counted
    largest: int | None = None  # that one micro-batch computed on one device; None: not counted


def token_columns(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The entries of a micro-batch that have a place for each of its tokens, whatever its trainer
    calls them.
    """
    columns = (
        ("attention_mask",),
        ("chosen_attention_mask", "rejected_attention_mask"),
        ("prompt_mask", "completion_mask"),
        ("input_ids",),  # of packed rows, which have no mask
    )
    return next((names for names in columns if names[0] in inputs), ())


def read_in(inputs: Mapping[str, Any]) -> Any:
    """How many tokens of a micro-batch are not padding."""
    names = token_columns(inputs)
    if names == ("input_ids",):
        return inputs["input_ids"].numel()
    return sum(inputs[name].sum() for name in names)


def learned_in(inputs: Mapping[str, Any]) -> Any | None:
    """How many tokens of a micro-batch are learned; None if it does not say so token by token."""
    labels = inputs.get("labels")
    if labels is not None and labels.ndim == 2:
        return (labels[:, 1:] != -100).sum()
    mask = inputs.get("completion_mask")
    return None if mask is None else mask.sum()
