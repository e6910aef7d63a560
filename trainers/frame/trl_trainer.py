"""Any of TRL's trainers as ours: rows as they are, checkpoints without pickle, a count of tokens,
nothing reported to anyone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from trainers.frame.job import Job
from trainers.frame.token_counting import TokenCounting
from trainers.prepare.preference import with_prepared_rows


def with_safe_checkpoints(trainer: type) -> type:
    """TRL's trainer class with what a run of ours needs of it."""
    import torch

    from trainers.frame.checkpoints import SafeCheckpoints

    class Ours(TokenCounting, SafeCheckpoints, with_prepared_rows(trainer)):  # type: ignore[misc]
        def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.start_counting()
            for name, module in self.model.named_modules():
                # TRL switches dropout off in the whole model; the module's own is a key of the
                # plan. A frozen copy keeps none.
                if (
                    dropout
                    and isinstance(module, torch.nn.Dropout)
                    and "default" in name.split(".")
                ):
                    module.p = dropout
            copy_to_reference(self.model)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.model.training:
                self._tokens_seen = self._tokens_seen + tokens_in(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    Ours.__name__ = f"Our{trainer.__name__}"
    return Ours


def tokens_in(inputs: Mapping[str, Any]) -> Any:
    """Tokens of a batch that are no padding, whatever its trainer calls them."""
    masks = (
        ("attention_mask",),
        ("chosen_attention_mask", "rejected_attention_mask"),
        ("prompt_mask", "completion_mask"),
    )
    names = next((names for names in masks if names[0] in inputs), ())
    return sum(inputs[name].sum() for name in names)


def copy_to_reference(model: Any) -> None:
    """Make the frozen copy of an adapter that TRL compares with equal to the adapter, and keep it
    frozen.

    TRL copies parameters with `.default.` inside their names; those of embeddings end with it and
    would stay random.
    """
    if "ref" not in getattr(model, "peft_config", {}):
        return
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parts = name.split(".")
        if "default" in parts:
            twin = parameters[".".join("ref" if part == "default" else part for part in parts)]
            twin.data.copy_(parameter.data)
            twin.requires_grad_(False)


def reference_model(job: Job, model: Any) -> Any | None:
    """The model as it is now, frozen, for training that compares with it; None if the base under
    a module is the reference.

    TRL would load it again by the name in its config, which is the base's where an earlier stage's
    module was merged.
    """
    if job.stage.update != "full" or job.stage.trl.get("precompute_ref_log_probs"):
        return None
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen.eval()
