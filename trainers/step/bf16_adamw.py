"""AdamW over bfloat16 weights that loses no small update.

A bfloat16 weight of 0.02 has neighbours 0.00012 away, and AdamW moves a weight by about the
learning rate: at 2e-5 rounding to the nearest takes most steps back. Each step here is computed in
float32 and then kept in one of two ways:

split       the weight is the upper half of a float32 number and the optimizer keeps the lower half
            as 16 bits more: together they are a float32 master weight, bit for bit. Source:
            Kalamkar et al. 2020, arXiv:2005.04680, section VII ("Split-SGD-BF16").
stochastic  the weight is rounded up or down at random, in proportion to the distance, so that it is
            right on average and nothing more is kept. Source: Zamirai et al. 2020,
            arXiv:2010.06192, section 3.

Both keep their moments in bfloat16. The second is always rounded stochastically: it changes by a
thousandth a step, which rounding to the nearest (steps of 0.4 to 0.8 %) would take back each time.
The random numbers follow from the seed, the step and the parameter alone, so that all processes of
a run round alike, and a resumed run as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

Keeps = Literal["split", "stochastic"]
# Numbers that are computed at once: up to 40 bytes each stand beside the states (the estimator's
# term `optimizer temporaries`).
CHUNK = 2**22
LOWER = 0xFFFF  # the half of a float32 number that bfloat16 lacks


def split_halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the float32 values rounded to the nearest bfloat16, what joins them again as int16)."""
    bits = values.view(torch.int32)
    upper = (bits + 0x8000) & ~LOWER
    return upper.view(torch.float32).bfloat16(), (bits - upper).to(torch.int16)


def join_halves(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """The float32 values that `split_halves` was given."""
    return (upper.float().view(torch.int32) + lower).view(torch.float32)


def round_stochastically(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The float32 values as bfloat16, each up or down in proportion to its distance.

    Args:
        values: float32.
        noise: int32, of which the lower 16 bits are random.
    """
    # Sign and size are separate bits, so that adding to the bits moves away from zero.
    bits = (values.view(torch.int32) + (noise & LOWER)) & ~LOWER
    return bits.view(torch.float32).bfloat16()


class BFloat16AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with float32 steps over bfloat16 weights.

    Weights in float32 (a value head, an adapter) get float32 moments and plain AdamW beside them.

    Raises ValueError for weights of any other dtype.
    """

    def __init__(
        self,
        params: Any,
        *,
        keeps: Keeps,
        seed: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Take parameters or groups of them, as every optimizer of torch does.

        Args:
            params: Parameters, or groups with their own lr and weight_decay.
            keeps: How a step that bfloat16 cannot show is kept.
            seed: Of the stochastic rounding.
            lr: The learning rate.
            betas: Decay of the two moments for each step.
            eps: Added to the root of the second moment.
            weight_decay: Decoupled, as a share of the learning rate.
        """
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.keeps, self.seed = keeps, seed
        wrong = {
            parameter.dtype
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.dtype not in (torch.bfloat16, torch.float32)
        }
        if wrong:
            raise ValueError(f"weights in bfloat16 or float32 are expected, not {wrong}")

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch gives it no types
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    for name, dtype in self._states_of(parameter).items():
                        state[name] = torch.zeros_like(
                            parameter, dtype=dtype, memory_format=torch.contiguous_format
                        )
                state["step"] += 1
                # Neither the order of steps nor a parameter without gradient changes the noise.
                generator = torch.Generator(parameter.device).manual_seed(
                    hash((self.seed, state["step"], place)) & 0x7FFF_FFFF_FFFF_FFFF
                )
                self._move(parameter, group, state, generator)
        return loss

    def _states_of(self, parameter: torch.Tensor) -> dict[str, torch.dtype]:
        found = {"exp_avg": parameter.dtype, "exp_avg_sq": parameter.dtype}
        if parameter.dtype == torch.bfloat16 and self.keeps == "split":
            found["lower_half"] = torch.int16
        return found

    def _move(
        self,
        parameter: torch.Tensor,
        group: Mapping[str, Any],
        state: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """Move one parameter, part by part."""
        assert parameter.grad is not None
        flat = parameter.detach().contiguous().view(-1)
        gradient = parameter.grad.detach().contiguous().view(-1)
        first, second = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        lower = state["lower_half"].view(-1) if "lower_half" in state else None
        for start in range(0, flat.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            self._move_part(
                flat[part], gradient[part], first[part], second[part],
                None if lower is None else lower[part], group, state["step"], generator,
            )  # fmt: skip
        if not parameter.is_contiguous():
            parameter.copy_(flat.view_as(parameter))

    def _move_part(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        lower: torch.Tensor | None,
        group: Mapping[str, Any],
        step: int,
        generator: torch.Generator,
    ) -> None:
        """AdamW in float32 on some numbers, in the order of torch's own operations."""
        beta1, beta2 = group["betas"]
        narrow = weights.dtype != torch.float32
        exact = weights if not narrow else (
            weights.float() if lower is None else join_halves(weights, lower)
        )  # fmt: skip
        gradient = gradient.float()
        mean, square = first.float(), second.float()  # the same tensors where they are float32
        exact.mul_(1 - group["lr"] * group["weight_decay"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        exact.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
        if not narrow:
            return
        noise = torch.randint(
            -(2**31), 2**31, square.shape,
            dtype=torch.int32, device=square.device, generator=generator,
        )  # fmt: skip
        first.copy_(mean)
        second.copy_(round_stochastically(square, noise))
        if lower is None:
            weights.copy_(round_stochastically(exact, noise >> 16))
        else:
            upper, rest = split_halves(exact)
            weights.copy_(upper)
            lower.copy_(rest)
