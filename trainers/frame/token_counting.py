"""What every trainer of TRL's needs here, whatever its loss."""

from __future__ import annotations

from typing import Any


class TokenCounting:
    """For one of TRL's trainers: tokens are counted, nothing is reported to anyone, modules on a
    quantised base stay in float32.
    """

    model: Any
    accelerator: Any
    _tokens_seen: Any

    def start_counting(self) -> None:
        """Once, after TRL has made the trainer. No token was seen yet."""
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
        """Nothing is reported to anyone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: nobody reads the count, and it walks over every parameter on every micro-batch."""
        return 0

    def take_token_count(self) -> int:
        """Tokens, without padding, trained on since the last call; of all processes, taking the
        others to be like this one.
        """
        count = int(self._tokens_seen) * self.accelerator.num_processes
        self._tokens_seen = 0
        return count
