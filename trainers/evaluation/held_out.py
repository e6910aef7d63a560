"""The loss of one micro-batch of held-out rows, as the objective's own trainer computes it, without
a trace in the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def collated(trainer: Any, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Rows as one micro-batch on the host, put together as the trainer does it in training.

    Args:
        columns: What the trainer's data set has: column -> a value for each row.
    """
    features = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    inputs = dict(trainer.data_collator(features))
    if getattr(trainer, "precompute_ref_logps", False):
        inputs.update(reference_log_probs(trainer, inputs))
    return inputs


def reference_log_probs(trainer: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the reference model says of a micro-batch, for a trainer that wants it beforehand.

    The reference is the model as it is now, so this is for before the training.
    """
    import torch

    with torch.no_grad(), measuring(trainer):
        found = trainer.compute_ref_log_probs(
            trainer.ref_model or trainer.model, on_device(trainer, inputs)
        )
    names = (
        ("ref_chosen_logps", "ref_rejected_logps")
        if "label" not in inputs
        else ("ref_logps", "ref_KL_logps")
    )
    parts = found if isinstance(found, tuple | list) else (found,)
    return {name: part.cpu() for name, part in zip(names, parts, strict=False) if part is not None}


def on_device(trainer: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The micro-batch on the trainer's device."""
    import torch

    return {
        name: value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def trainer_loss(trainer: Any, inputs: Mapping[str, Any]) -> float:
    """The mean loss of a micro-batch by the trainer's own formula, whatever loss the plan chose."""
    import torch

    with torch.no_grad(), measuring(trainer), trainer.compute_loss_context_manager():
        batch = on_device(trainer, inputs)
        if hasattr(trainer, "get_batch_loss_metrics"):
            # ORPO and CPO count each call of compute_loss among the numbers of the training.
            loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch, train_eval="eval")
        else:
            loss = trainer.compute_loss(trainer.model, batch)
    return float(loss)


@contextmanager
def measuring(trainer: Any) -> Iterator[None]:
    """The model in evaluation mode, without the loss that balances experts, and no exchange with
    other processes; afterwards all as before.

    TRL's losses gather their statistics from every process. Here each process has rows of its own,
    and another number of micro-batches, so that one would wait for another forever.
    """
    accelerator, model = trainer.accelerator, trainer.model
    was_training = model.training
    own = vars(accelerator)
    balances = getattr(trainer, "aux_loss_enabled", False)
    before = {name: own[name] for name in ("gather", "gather_for_metrics") if name in own}
    accelerator.gather = accelerator.gather_for_metrics = _alone
    if balances:  # the loss that balances experts says nothing of the answers
        trainer.aux_loss_enabled = False
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if balances:
            trainer.aux_loss_enabled = True
        del accelerator.gather, accelerator.gather_for_metrics
        own.update(before)
        for statistics in ("_metrics", "_stored_metrics"):
            kept = getattr(trainer, statistics, {})
            if "eval" in kept:
                kept["eval"].clear()


def _alone(value: Any, *_: Any, **__: Any) -> Any:
    return value
