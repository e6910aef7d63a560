"""Every value that a stage was really trained with, for its record: those of the plan, and what
libraries and machine made of the rest.
"""

from __future__ import annotations

from advisor.methods.optimizers import optimizer
from advisor.methods.stage import recorded_values
from advisor.record.run import ResolvedSettings
from trainers.job.job import Job
from trainers.job.types import Device, Trainer
from trainers.rows.template import template_record
from trainers.start.fused_layers import fused_in
from trainers.step import settings
from trainers.step.make_optimizer import by_transformers

# The arguments of TRL's config that are recorded even at their defaults; beside them, whatever
# differs from TRL's defaults is recorded.
RECORDED_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "loss_type",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "optim",
    "per_device_train_batch_size",
    "save_steps",
    "seed",
    "warmup_steps",
    "weight_decay",
)


def resolved_settings(
    job: Job, trainer: Trainer, device: Device, threads: int, stops: list[str]
) -> ResolvedSettings:
    """Every value that was really used, defaults included."""
    from peft import PeftModel

    from trainers.start.loading import unquantised_parameters

    model, entry = trainer.model, optimizer(job.stage.optimizer)
    adapter = model.peft_config["default"].to_dict() if isinstance(model, PeftModel) else None
    trainable = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    stage = job.stage
    planned = recorded_values(stage) | {
        "kernels": fused_in(model),
        "double_quantization": (
            stage.double_quantization is not False if stage.quantization == "nf4" else None
        ),
        "group_by_length": stage.group_by_length and not stage.packing,
    }
    return ResolvedSettings(
        **planned,
        model=job.base_model,
        start_from=None if job.start is None else str(job.start),
        device=str(device),
        threads=threads,
        autocast=settings.autocast_dtype(job, device),
        trainable_dtype=(
            str(
                next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
            ).removeprefix("torch.")
        ),
        unquantised_parameters=(unquantised_parameters(model) or (None,))[0],
        **template_record(trainer.processing_class),
        options=job.options,
        trainable_parameters=trainable,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stop_tokens_added=tuple(stops),
        trl=settings.resolved_values(trainer.args, RECORDED_ARGUMENTS)
        | ({} if by_transformers(entry) else {"optim": entry.name}),
        peft=adapter,
        epochs=trainer.state.epoch,
    )
