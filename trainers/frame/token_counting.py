"""What we add to every trainer of TRL, whatever its loss."""

from __future__ import annotations

from typing import Any


class TokenCounting:
    """A mixin for TRL's trainers: counts tokens, reports nothing to anyone, and keeps modules on a
    quantised base in float32.
    """

    model: Any
    accelerator: Any
    _tokens_seen: Any

    def start_counting(self) -> None:
        """Set the count to zero; once, after TRL has made the trainer."""
        import torch

        self._tokens_seen = 0
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if getattr(base, "is_quantized", False):
            # TRL casts adapters of a quantised base to bfloat16, in which small updates are lost;
            # PEFT's own choice is float32.
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.dtype == torch.bfloat16:
                    parameter.data = parameter.data.float()

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
