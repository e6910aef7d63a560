"""torch's Muon for the matrices of hidden layers, AdamW for every other weight, as one optimizer.

A step of Muon is the momentum of a matrix made orthogonal (Jordan et al. 2024; five steps of
Newton-Schulz). Each is scaled by 0.2 times the root of the longer side, so that its entries are as
large as those of an AdamW step, and one learning rate and weight decay serve both (Liu et al. 2025,
arXiv:2502.16982, section 2.2). Embeddings, the output matrix, norms, biases and the experts of a
mixture (one tensor of three dimensions a layer) belong to AdamW.
"""

from __future__ import annotations

from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon over the groups that say `muon: True`, AdamW over the others. The groups and states of
    both are those of this optimizer, so that it is saved, loaded and scheduled as one.

    Raises ValueError for a group of Muon with other than matrices.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **of_muon: Any,
    ) -> None:
        """Take parameters or groups of them, as every optimizer of torch does; `momentum` and
        `ns_steps` are Muon's, all others AdamW's or of both.
        """
        every = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, {**every, "muon": False})
        self.parts: dict[bool, Any] = {}
        kinds = {
            True: (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw", **of_muon}),
            False: (torch.optim.AdamW, {"betas": betas, "eps": eps, "foreach": False}),
        }
        for moved, (kind, more) in kinds.items():
            groups = [group for group in self.param_groups if group["muon"] == moved]
            if groups:
                self.parts[moved] = kind(groups, **every, **more)  # fills in its own defaults

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch gives it no types
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for moved, part in self.parts.items():
            part.param_groups = [group for group in self.param_groups if group["muon"] == moved]
            part.state = self.state  # another one after load_state_dict
            part.step()
        return loss
