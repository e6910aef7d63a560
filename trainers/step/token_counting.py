"""What we add to every trainer of TRL, whatever its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainers.step.trained_dtype import train_in_float32


class Tokens(NamedTuple):
    """Tokens of all steps since the training began or resumed, in all processes."""

    read: int  # without padding
    computed: int  # with it
    learned: int | None  # whose prediction is in the loss; None: not counted
    largest: int | None = None  # that one micro-batch computed on one device; None: not counted


class TokenCounting:
    """A mixin for TRL's trainers: counts tokens, reports nothing to anyone, and trains modules in
    float32.
    """

    model: Any
    accelerator: Any
    _tokens_seen: Any  # since the last line of metrics
    _all_tokens: tuple[Any, int, Any]  # read, computed, learned
    _largest_batch: int
    lays_flat: bool = False  # rows of a micro-batch end to end: no padding is computed

    def start_counting(self, before: Mapping[str, Any]) -> None:
        """Set the counts to zero; once, after TRL has made the trainer.

        Args:
            before: The `float32_weights` of the model that TRL was given.
        """
        self._tokens_seen = 0
        self._all_tokens = (0, 0, None)
        self._largest_batch = 0
        # Also because TRL casts adapters of a quantised base to bfloat16.
        train_in_float32(self.model)
        for name, parameter in self.model.named_parameters():
            if name in before:
                parameter.data = before[name]

    def _send_telemetry(self) -> None:
        """Report nothing to anyone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: nobody reads the count, and it would visit every parameter on every micro-batch."""
        return 0

    def count_tokens(self, read: Any, inputs: Mapping[str, Any]) -> None:
        """Add a micro-batch to the counts. Nothing waits for the GPU.

        Args:
            read: Its tokens without padding.
            inputs: The micro-batch, whose shapes hold the padding.
        """
        self._tokens_seen = self._tokens_seen + read
        before, computed, learned = self._all_tokens
        found = learned_in(inputs)
        places = sum(inputs[name].numel() for name in token_columns(inputs))
        # Only on the CPU are rows laid flat: reading the count waits for nothing there.
        self._largest_batch = max(self._largest_batch, int(read) if self.lays_flat else places)
        self._all_tokens = (
            before + read,
            computed + places,
            # Asking a count whether it is zero would wait for the GPU.
            learned if found is None else found if learned is None else learned + found,
        )

    def all_tokens(self) -> Tokens:
        """The counts since the training began (as if each process had counted as many as this
        one).
        """
        many = int(self.accelerator.num_processes)
        read, computed, learned = self._all_tokens
        return Tokens(
            int(read) * many,
            computed * many,
            None if learned is None else int(learned) * many,
            self._largest_batch or None,
        )

    def take_token_count(self) -> int:
        """Tokens, without padding, trained on since the last call, in all processes (as if each saw
        as many as this one).
        """
        count = int(self._tokens_seen) * int(self.accelerator.num_processes)
        self._tokens_seen = 0
        return count


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
