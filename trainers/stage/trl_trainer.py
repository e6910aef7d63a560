"""What we change in every trainer of TRL: it takes prepared rows, writes checkpoints without
pickle, counts tokens and reports nothing to anyone.
"""

from __future__ import annotations

import copy
from typing import Any

from advisor.methods import update
from trainers.job.job import Job
from trainers.job.types import Model
from trainers.rows.batches import OrdersRows
from trainers.rows.preference import with_prepared_rows
from trainers.step.sharding import divided_copy
from trainers.step.token_counting import TokenCounting, read_in
from trainers.step.trained_dtype import float32_weights


def with_safe_checkpoints(trainer: type) -> type:
    """TRL's trainer class with checkpoints without pickle and a count of tokens, taking prepared
    rows.

    Its constructor has one more argument, `dropout`: that of the module, where TRL would switch off
    every dropout.
    """
    import torch

    from trainers.keep.checkpoints import SafeCheckpoints
    from trainers.step.out_of_memory import SmallerParts

    base: Any = with_prepared_rows(trainer)

    class SafeTrainer(OrdersRows, SmallerParts, TokenCounting, SafeCheckpoints, base):
        def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
            before = float32_weights(kwargs["model"])
            super().__init__(*args, **kwargs)
            self.start_counting(before)
            for name, module in self.model.named_modules():
                # TRL switches dropout off in the whole model, but the module's own is a key of the
                # plan. The frozen copy has none.
                if (
                    dropout
                    and isinstance(module, torch.nn.Dropout)
                    and "default" in name.split(".")
                ):
                    module.p = dropout
            copy_to_reference(self.model)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.model.training:
                self.count_tokens(read_in(inputs), inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    SafeTrainer.__name__ = f"Safe{trainer.__name__}"
    return SafeTrainer


def copy_to_reference(model: Model) -> None:
    """Make TRL's frozen copy of an adapter, its reference model, equal to the adapter, and keep it
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


def reference_model(job: Job, model: Model, config: Any) -> Any | None:
    """The reference model: a frozen copy of the model as it is now; None if TRL can switch the
    module off instead.

    TRL would load it again by the name in its config, but after an earlier stage's module was
    merged that is the name of the base.
    """
    if update(job.stage.update).is_module or job.stage.trl.get("precompute_ref_log_probs"):
        return None
    return frozen_copy(model, config)


def frozen_copy(model: Any, config: Any = None) -> Any:
    """A copy of the model as it is now that nothing trains.

    Args:
        config: Of the trainer: it says whether the model is going to be divided.
    """
    if getattr(config, "fsdp", None):
        return divided_copy(model, config)
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen.eval()
