"""A stage as arguments of TRL's config class."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods.optimizers import optimizer
from advisor.methods.stage import trl_arguments
from trainers.job.job import Job
from trainers.job.machine import process_count, usable_cores
from trainers.job.types import Device
from trainers.say.processes import JOIN_S
from trainers.step.pass_through import refused
from trainers.step.sharding import is_sharded, prepare_sharding


def autocast_dtype(job: Job, device: Device) -> str | None:
    """The dtype of autocast under precision: mixed; None for pure."""
    if job.stage.precision == "pure":
        return None
    if job.stage.weights_dtype == "float16":
        return "float16"
    if device.type == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16"


def choose_products(job: Job, device: Device) -> None:
    """Let a GPU multiply float32 matrices in TF32 (10 bits of 23) where the plan's precision is
    mixed: outside autocast, of heads and in evaluation, float32 is 8 to 16 times slower. Numbers
    that are asked for in float32 (`precision: pure`) stay so.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if job.stage.precision == "mixed" else "highest")


def total_steps(job: Job, sequences: int, *, processes: int) -> int:
    """Optimizer steps of the run, as transformers counts them; a trial caps them.

    Args:
        sequences: How many sequences the trainer has.
        processes: How many processes share them.
    """
    stage = job.stage
    if stage.max_steps is not None:
        steps = stage.max_steps
    else:
        batches = math.ceil(sequences / (stage.micro_batch_size * processes))
        steps = max(1, math.ceil(stage.epochs * math.ceil(batches / stage.grad_accum)))
    return steps if job.max_steps is None else min(steps, job.max_steps)


def save_every(job: Job, steps: int) -> int:
    """Optimizer steps between checkpoints: those of the plan, else a tenth of the run and at most
    500.
    """
    return job.stage.save_steps or max(1, min(500, math.ceil(steps / 10)))


LOGGED_LINES = 50  # at least, in a run on a GPU that has as many steps
LONGEST_GAP = 10  # steps of a run on a GPU between two lines
MOST_LINES = 5_000  # of a stage, so that a long run has a log and a report of about a megabyte


def lines_every(steps: int) -> int:
    """Steps of a stage between two lines of metrics, for at most about MOST_LINES of them."""
    return max(1, math.ceil(steps / MOST_LINES))


def log_every(device: Device, steps: int) -> int:
    """Optimizer steps between two lines of metrics.

    Each line waits until the GPU has done all its work (loss, gradient norm, token count): a GPU
    gets one every few steps. The first step, the last one and each that is saved have a line, too
    (`RunCallback.on_step_end`), so that no checkpoint is written behind a loss that is not finite.
    """
    least = lines_every(steps)
    return least if device.type != "cuda" else max(least, min(LONGEST_GAP, steps // LOGGED_LINES))


def loader_workers(device: Device) -> int:
    """Processes that turn rows into batches while the GPU computes; 0: the trainer does it.

    The order of the rows and the random numbers of the trainer are the same with and without them.
    Only forked ones: others would have to be handed the rows by pickle.
    """
    cores = usable_cores() // process_count()
    can_fork = multiprocessing.get_start_method() == "fork"
    return 2 if device.type == "cuda" and cores > 1 and can_fork else 0


def training_arguments(job: Job, device: Device, *, steps: int) -> dict[str, Any]:
    """Keyword arguments for every config class of TRL: those of transformers' TrainingArguments."""
    stage = job.stage
    autocast, entry = autocast_dtype(job, device), optimizer(stage.optimizer)
    arguments: dict[str, Any] = {
        **trl_arguments(stage),  # warmup_steps below 1 are a share of the steps
        "output_dir": str(job.checkpoints),
        "max_steps": steps,
        # Others are put on the trainer (make_optimizer.py), which then reads no name.
        "optim": entry.transformers or "adamw_torch",
        "bf16": autocast == "bfloat16",
        "fp16": autocast == "float16",
        "use_cpu": device.type == "cpu",
        "save_strategy": "steps",
        "save_steps": save_every(job, steps),
        "save_only_model": True,  # which holds all else (SafeCheckpoints)
        "logging_strategy": "steps",
        "logging_steps": log_every(device, steps),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "dataloader_pin_memory": device.type == "cuda",
        "dataloader_num_workers": loader_workers(device),
    }
    accelerator: dict[str, Any] = {}
    if device.type == "cuda":
        # From pinned memory: a batch is on its way while the GPU computes, and nobody waits for it.
        accelerator["non_blocking"] = True
    if is_sharded(job):
        # Else every process keeps whole gradients until the last micro-batch of a step.
        accelerator["gradient_accumulation_kwargs"] = {"sync_each_batch": True}
    if accelerator:
        arguments["accelerator_config"] = accelerator
    if entry.betas is not None:
        arguments |= {"adam_beta1": entry.betas[0], "adam_beta2": entry.betas[1]}
    if stage.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if process_count() > 1:
        arguments["ddp_find_unused_parameters"] = False
        arguments["ddp_timeout"] = JOIN_S
    return arguments


def build_config(config_class: type, arguments: Mapping[str, Any], job: Job) -> Any:
    """The config with the stage's `trl:` on top, for one GPU in each process.

    Raises InputError for values that it refuses.
    """
    try:
        config = config_class(**{**arguments, **job.stage.trl})
    except (TypeError, ValueError) as error:
        if not job.stage.trl:  # no key of a person's: ours are wrong
            raise
        fault = refused(error, job.stage.trl, at=f"stage {job.stage.name}: trl")
        raise InputError(faults=[fault]) from None
    # A process that sees several GPUs, such as a trainer started by hand, would get
    # nn.DataParallel, which TRL refuses, and under which a plan's batch size means another one.
    if getattr(config, "n_gpu", 1) > 1:
        config._n_gpu = 1
    prepare_sharding(config, job)
    return config


def resolved_values(config: Any, keys: Iterable[str]) -> dict[str, Any]:
    """The named values of a config, and every value that differs from its default."""
    defaults = {
        item.name: item.default
        for item in dataclasses.fields(config)
        if item.default is not dataclasses.MISSING
    }
    values = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(config)
        if hasattr(config, item.name)
    }
    kept = set(keys)
    return {
        name: value
        for name, value in values.items()
        if not name.startswith(("hub_", "push_to_hub", "_"))
        and (name in kept or (name in defaults and value != defaults[name]))
    }
