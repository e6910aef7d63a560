"""Two optimizers that neither torch nor transformers has: AdamW over bfloat16 weights that loses no
small update, and Muon for matrices with AdamW for the rest.

A bfloat16 weight of 0.02 has neighbours 0.00012 away, and AdamW moves a weight by about the
learning rate: at 2e-5 rounding to the nearest takes most steps back. Each step of BFloat16AdamW is
computed in float32 and then kept in one of two ways:

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

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from advisor.methods.kernels import why_no_triton

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
    """The float32 values as bfloat16, each up or down in proportion to its distance. Of the noise,
    in int32, the lower 16 bits are random.
    """
    # Sign and size are separate bits, so that adding to the bits moves away from zero.
    bits = (values.view(torch.int32) + (noise & LOWER)) & ~LOWER
    return bits.view(torch.float32).bfloat16()


class BFloat16AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with float32 steps over bfloat16 weights.

    Weights in float32 (a value head, an adapter) get float32 moments and plain AdamW beside them.

    Raises ValueError for weights of any other dtype.
    """

    def __init__(self, params: Any, *, keeps: Keeps, seed: int, **adam: Any) -> None:
        """Take parameters or groups of them, how a step that bfloat16 cannot show is kept, the seed
        of the rounding, and lr, betas, eps and weight_decay as of torch's AdamW.
        """
        usual = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        super().__init__(params, {**usual, **adam})
        self.keeps, self.seed = keeps, seed
        every = (one.dtype for group in self.param_groups for one in group["params"])
        wrong = {*every} - {torch.bfloat16, torch.float32}
        if wrong:
            raise ValueError(f"weights in bfloat16 or float32 are expected, not {wrong}")

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch gives it no types
    def step(self, closure: None = None) -> None:
        assert closure is None  # nothing here computes a loss more than once
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    names = {"exp_avg": parameter.dtype, "exp_avg_sq": parameter.dtype}
                    if parameter.dtype == torch.bfloat16 and self.keeps == "split":
                        names["lower_half"] = torch.int16
                    for name, dtype in names.items():
                        state[name] = torch.zeros_like(
                            parameter, dtype=dtype, memory_format=torch.contiguous_format
                        )
                state["step"] += 1
                # Neither the order of steps nor a parameter without gradient changes the noise.
                generator = torch.Generator(parameter.device).manual_seed(
                    hash((self.seed, state["step"], place)) & 0x7FFF_FFFF_FFFF_FFFF
                )
                _move(parameter, group, state, generator)


def _move(
    parameter: torch.Tensor,
    group: dict[str, Any],
    state: dict[str, Any],
    generator: torch.Generator,
) -> None:
    """Move one parameter, part by part."""
    assert parameter.grad is not None
    flat = parameter.detach().contiguous().view(-1)
    gradient = parameter.grad.detach().contiguous().view(-1)
    first, second = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    lower = state["lower_half"].view(-1) if "lower_half" in state else None
    (beta1, beta2), step = group["betas"], state["step"]
    of_step: tuple[Any, ...] = (
        1 - group["lr"] * group["weight_decay"],
        (1 - beta2**step) ** 0.5,
        -group["lr"] / (1 - beta1**step),
    )
    move = _move_part
    if compiles(flat.device.type):
        # Filled there: a copy would have the host wait for the GPU.
        move, of_step = compiled(), tuple(torch.full((), x, device=flat.device) for x in of_step)
    for start in range(0, flat.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        noise = None if flat.dtype == torch.float32 else torch.randint(
            -(2**31), 2**31, flat[part].shape,
            dtype=torch.int32, device=flat.device, generator=generator,
        )  # fmt: skip
        move(
            flat[part], gradient[part], first[part], second[part],
            None if lower is None else lower[part], noise, of_step, (beta1, beta2, group["eps"]),
        )  # fmt: skip
    if not parameter.is_contiguous():
        parameter.copy_(flat.view_as(parameter))


@functools.cache
def compiles(device_type: str) -> bool:
    """Whether the arithmetic of a step is compiled: on a GPU with Triton, where each of its twenty
    operations would be a kernel of its own (for 7 billion weights 35,000 a step).
    """
    return device_type == "cuda" and not why_no_triton()


@functools.cache
def compiled(backend: str = "inductor") -> Callable[..., None]:
    """`_move_part` as one kernel for each dtype, all steps and learning rates: for the size that
    comes first, and then for any. What never changes (betas, eps) is part of it.
    """
    return torch.compile(_move_part, backend=backend)


def _move_part(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    lower: torch.Tensor | None,
    noise: torch.Tensor | None,
    of_step: tuple[Any, Any, Any],
    of_run: tuple[float, float, float],
) -> None:
    """AdamW in float32 on some numbers, in the order of torch's own operations. Weights, moments
    and lower halves are changed in place.

    Args:
        lower: None: the weights are rounded at random, or are float32.
        noise: Random int32; None for weights in float32.
        of_step: What decays weights, the root of the bias correction of the second moment, and the
            negative step size. Tensors where this is compiled, which would be done anew for each
            other number.
        of_run: beta1, beta2, eps.
    """
    decay, correction, size = of_step
    beta1, beta2, eps = of_run
    if noise is None:
        exact = weights
    else:
        exact = weights.float() if lower is None else join_halves(weights, lower)
    gradient = gradient.float()
    mean, square = first.float(), second.float()  # the same tensors where they are float32
    exact.mul_(decay)
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_(correction).add_(eps)
    exact.add_(mean.mul(size).div_(root))
    if noise is None:
        return
    first.copy_(mean)
    second.copy_(round_stochastically(square, noise))
    if lower is None:
        weights.copy_(round_stochastically(exact, noise >> 16))
    else:
        upper, rest = split_halves(exact)
        weights.copy_(upper)
        lower.copy_(rest)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon over the matrices of hidden layers, AdamW over every other weight. The groups and states
    of both are those of this optimizer, so that it is saved, loaded and scheduled as one.

    A step of Muon is the momentum of a matrix made orthogonal (Jordan et al. 2024; five steps of
    Newton-Schulz). Each is scaled by 0.2 times the root of the longer side, so that its entries are
    as large as those of an AdamW step, and one learning rate and weight decay serve both (Liu et
    al. 2025, arXiv:2502.16982, section 2.2).

    Raises ValueError for a matrix of other than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        matrices: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **of_muon: Any,
    ) -> None:
        """Take groups of parameters; `momentum` and `ns_steps` are Muon's."""
        by_muon = {id(one) for one in matrices}
        split = [
            {**group, "params": chosen, "muon": moved}
            for group in params
            for moved in (True, False)
            if (chosen := [one for one in group["params"] if (id(one) in by_muon) == moved])
        ]
        every = {"lr": lr, "weight_decay": 0.0}
        super().__init__(split, every)
        self.parts: dict[bool, Any] = {}
        kinds = {
            True: (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw", **of_muon}),
            False: (torch.optim.AdamW, {"betas": betas, "eps": eps, "foreach": False}),
        }
        for moved, (kind, more) in kinds.items():
            groups = [group for group in self.param_groups if group["muon"] == moved]
            if groups:
                self.parts[moved] = kind(groups, **every, **more)  # fills in its own defaults

    def step(self, closure: None = None) -> None:
        assert closure is None
        for moved, part in self.parts.items():
            part.param_groups = [group for group in self.param_groups if group["muon"] == moved]
            part.state = self.state  # another one after load_state_dict
            part.step()
