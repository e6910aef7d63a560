"""What we add to every trainer of TRL, whatever its loss."""

from __future__ import annotations

from typing import Any

from trainers.frame.trained_dtype import train_in_float32


class TokenCounting:
    """A mixin for TRL's trainers: counts tokens, reports nothing to anyone, and trains modules in
    float32.
    """

    model: Any
    accelerator: Any
    _tokens_seen: Any

    def start_counting(self) -> None:
        """Set the count to zero; once, after TRL has made the trainer."""
        self._tokens_seen = 0
        # Also because TRL casts adapters of a quantised base to bfloat16.
        train_in_float32(self.model)

    def _send_telemetry(self) -> None:
        """Report nothing to anyone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: nobody reads the count, and it would visit every parameter on every micro-batch."""
        return 0

    def take_token_count(self) -> int:
        """Tokens, without padding, trained on since the last call, in all processes (as if each saw
        as many as this one).
        """
        count = int(self._tokens_seen) * int(self.accelerator.num_processes)
        self._tokens_seen = 0
        return count
