"""Every value that a PPO stage was really trained with, for its record."""

from __future__ import annotations

from dataclasses import asdict

from advisor.methods.stage import recorded_values
from advisor.record.run import ResolvedSettings
from trainers.ppo.loaded import LoadedPPO
from trainers.ppo.roles import POLICY
from trainers.ppo.steps import PPOArguments
from trainers.rows.template import template_record
from trainers.start.fused_layers import fused_in
from trainers.step import settings

# Keys that this loop does not read.
NOT_READ = ("compile", "packing", "group_by_length", "keep", "early_stopping")


def resolved_settings(loaded: LoadedPPO) -> ResolvedSettings:
    """Every value that was really used, defaults included."""
    job, ppo = loaded.job, loaded.ppo
    stage, roles = job.stage, ppo.roles
    trained = {
        role: sum(parameter.numel() for parameter in roles.trained(role).values())
        for role in ("policy", "value")
    }
    model = roles.parts[POLICY].model
    adapter = model.peft_config["default"].to_dict() if roles.shared else None
    keys = (
        "optimizer",
        "learning_rate",
        "scheduler",
        "warmup",
        "micro_batch_size",
        "grad_accum",
        "seed",
    )
    planned = {key: value for key, value in recorded_values(stage).items() if key not in NOT_READ}
    planned["kernels"] = fused_in(model)
    if stage.quantization == "nf4":
        planned["double_quantization"] = stage.double_quantization is not False
    return ResolvedSettings(
        **planned,
        model=job.base_model,
        start_from=None if job.start is None else str(job.start),
        device=str(ppo.device),
        threads=loaded.opened.threads,
        autocast=settings.autocast_dtype(job, ppo.device),
        **template_record(loaded.tokenizer),
        options=job.options,
        trainable_parameters=trained["policy"],
        stop_tokens_added=tuple(loaded.stops),
        peft=adapter,
        extra={
            "reward": loaded.reward,
            **{key: getattr(stage, key) for key in keys},
            **asdict(PPOArguments(**stage.trl).for_optimizer(stage.optimizer)),
            "prompts_an_update": stage.effective_batch_size * settings.world_size(),
            "value_parameters": trained["value"],
            "one_base": roles.shared,
        },
    )
