"""Muon for the matrices of hidden layers, AdamW for every other weight, as one optimizer.

A step of Muon is the momentum of a matrix made orthogonal (Jordan et al. 2024; five steps of
Newton-Schulz). Each is scaled by 0.2 times the root of the longer side, so that its entries are as
large as those of an AdamW step, and one learning rate and weight decay serve both (Liu et al. 2025,
arXiv:2502.16982, section 2.2). Embeddings, the output matrix, norms and biases belong to AdamW
there and here.

torch.optim.Muon takes two-dimensional weights alone. The routed experts of a layer are one tensor
of three dimensions in transformers: each expert is a matrix of its own here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, muon
from torch.optim.adamw import adamw


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon over the groups that say `muon: True`, AdamW over the others."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        """Take parameters or groups of them, as every optimizer of torch does.

        Raises ValueError for a group of Muon with other than matrices, or stacks of them.

        Args:
            params: Parameters, or groups with their own lr and weight_decay.
            lr: Of both.
            betas: Of AdamW.
            eps: Of AdamW.
            weight_decay: Decoupled, as a share of the learning rate; of both.
            momentum: Of Muon, with Nesterov's look ahead.
            ns_steps: Newton-Schulz steps that make a matrix orthogonal.
        """
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                "momentum": momentum, "ns_steps": ns_steps, "muon": False,
            },
        )  # fmt: skip
        for group in self.param_groups:
            wrong = [one.ndim for one in group["params"] if one.ndim not in (2, 3)]
            if group["muon"] and wrong:
                raise ValueError(f"Muon moves matrices, not tensors of {wrong[0]} dimensions")

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch gives it no types
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [one for one in group["params"] if one.grad is not None]
            if moved and group["muon"]:
                self._orthogonal_step(moved, group)
            elif moved:
                self._adamw_step(moved, group)
        return loss

    def _orthogonal_step(self, moved: list[Any], group: dict[str, Any]) -> None:
        """Muon, matrix by matrix."""
        weights: list[Any] = []
        gradients: list[Any] = []
        momenta: list[Any] = []
        for one in moved:
            state = self.state[one]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(one)
            for found, tensor in (
                (weights, one), (gradients, one.grad), (momenta, state["momentum_buffer"]),
            ):  # fmt: skip
                found += [tensor] if one.ndim == 2 else list(tensor.unbind(0))
        muon(
            weights, gradients, momenta,
            lr=group["lr"], weight_decay=group["weight_decay"], momentum=group["momentum"],
            nesterov=True, ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
            eps=EPS, ns_steps=group["ns_steps"], adjust_lr_fn="match_rms_adamw", has_complex=False,
        )  # fmt: skip

    def _adamw_step(self, moved: list[Any], group: dict[str, Any]) -> None:
        """AdamW of torch."""
        for one in moved:
            if not self.state[one]:
                self.state[one] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(one),
                    "exp_avg_sq": torch.zeros_like(one),
                }
        states = [self.state[one] for one in moved]
        beta1, beta2 = group["betas"]
        adamw(
            moved, [one.grad for one in moved],
            [one["exp_avg"] for one in states], [one["exp_avg_sq"] for one in states], [],
            [one["step"] for one in states],
            foreach=False, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
