"""A stage as arguments of TRL's config class; and a check of `trl:` and `peft:` against the config
classes, before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.ground.errors import Fault, InputError, unknown_name
from advisor.methods.optimizers import optimizer
from advisor.methods.stage import stage_keys, trl_arguments
from trainers.job.job import Job
from trainers.job.machine import process_count, usable_cores
from trainers.job.types import Device
from trainers.say.joining import JOIN_S
from trainers.step.make_optimizer import by_transformers
from trainers.step.pass_through import (
    first_line,
    needs_faults,
    refused_values,
    type_faults,
    without_effect,
)
from trainers.step.sharding import is_sharded, prepare_sharding
from trainers.updates import Update

# Argument of TRL or transformers -> the plan's key that sets it. These are refused in `trl:`.
PLAN_KEYS: Mapping[str, str] = {
    **{
        argument: name
        for name, key in stage_keys().items()
        for argument in (*key.uses.trl, *key.uses.decides)
    },
    "bf16": "weights_dtype and precision",
    "fp16": "weights_dtype and precision",
    "model_init_kwargs": "weights_dtype, attention, quantization, kernels",
    "trust_remote_code": "trust_remote_code (of the plan)",
    "use_cpu": "launch.device",
    "deepspeed": "launch.strategy",
    "fsdp": "launch.strategy",
    "fsdp_config": "launch.strategy",
    "completion_only_loss": "loss_on",
    "assistant_only_loss": "loss_on",
    "beta": "beta",
    "num_generations": "generations",
    "max_completion_length": "response_tokens",
    "epsilon": "clip_range",
    "use_vllm": "rollouts",
    "output_dir": "advise run --output",
    "logging_dir": "advise run --output",
}
# Arguments that the trainers set, with the reason. These are refused in `trl:`, too.
SET_BY_TRAINERS: Mapping[str, str] = {
    "chat_template_path": "the model's own chat template is used and stored with the result",
    "dataset_text_field": "rows are read and tokenised before TRL sees them",
    "dataset_kwargs": "rows are read and tokenised before TRL sees them",
    "dataset_num_proc": "rows are read and tokenised before TRL sees them",
    "shuffle_dataset": "the order follows from the seed",
    "eos_token": "the tokenizer's own is used",
    "pad_token": "the tokenizer's own is used",
    "resume_from_checkpoint": "a run resumes automatically",
    "remove_unused_columns": "the columns are the trainer's own",
    "disable_dropout": (
        "the plan's key dropout sets that of the module; the base has none if two models are"
        " compared"
    ),
    "num_generations_eval": "rewards are measured before and after training",
    "generation_batch_size": "all prompts of an optimizer step are answered together",
    "steps_per_generation": "all prompts of an optimizer step are answered together",
    "reward_weights": "each entry of the stage's key `rewards` has its weight",
    "log_completions": "rollouts.jsonl in the stage's folder has samples of all steps",
    "do_train": "a stage trains",
    "do_eval": "held-out loss is measured before and after training",
    "do_predict": "held-out loss is measured before and after training",
    "eval_strategy": "held-out loss is measured about ten times a run",
    "load_best_model_at_end": "the plan's key keep says which weights are the result",
    "logging_nan_inf_filter": "a loss that is not finite must be seen",
    "disable_tqdm": "our trainers show progress themselves",
    "save_only_model": "a checkpoint must be complete to resume from",
    "save_safetensors": "weights are always saved as safetensors",
    "push_to_hub": "the plan's key push_to uploads the result",
    "label_names": "the columns are the trainer's own",
    **dict.fromkeys(
        (
            "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_group_port",
            "vllm_max_model_length", "vllm_mode", "vllm_model_impl", "vllm_server_base_url",
            "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
            "vllm_structured_outputs_regex", "vllm_tensor_parallel_size",
        ),
        "the plan's `launch.vllm` says where the server is, or how it is started",
    ),
}  # fmt: skip


# What a config class is tried with: the device and the number formats of the stage.
FRAME = ("output_dir", "use_cpu", "bf16", "fp16", "report_to")


def check_passed_through(job: Job, config_class: type, update: Update, device: Device) -> None:
    """Raise InputError for every key of `trl:` and `peft:` that the config classes lack, that the
    plan or the trainers set, that would have no effect, or whose value the class refuses.
    """
    stage = job.stage
    at = f"stage {stage.name}: trl"
    faults = _key_faults(at, stage.trl, config_class, PLAN_KEYS, SET_BY_TRAINERS)
    passed = _passed(stage.trl, config_class, PLAN_KEYS, SET_BY_TRAINERS)
    if passed:
        common = _known(config_class, training_arguments(job, device, steps=1))
        values = {**_defaults(config_class), **common, **passed}
        faults += needs_faults(at, passed, values, job)
        # The plan's batch sizes are left out: objectives fit them to fields of their own.
        frame = {key: common[key] for key in FRAME if key in common}
        faults += _value_faults(at, passed, config_class, frame)
    at = f"stage {stage.name}: peft"
    peft_class = update.config_class()
    if peft_class is not None:
        faults += _key_faults(at, stage.peft, peft_class, update.PLAN_KEYS, {})
        options = {
            field: job.options[key]
            for field, key in update.PLAN_KEYS.items()
            if job.options.get(key) is not None
        }
        passed = _passed(stage.peft, peft_class, update.PLAN_KEYS, {})
        faults += _value_faults(at, passed, peft_class, options)
    elif stage.peft:
        faults.append(
            Fault(
                where=f"stage {stage.name}",
                what=(f"'peft' has no effect: update {stage.update} does not use PEFT"),
                hint="remove it",
            )
        )
    faults += update.faults(stage)
    if faults:
        raise InputError(faults=faults)


def _known(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are fields of the config class."""
    names = {item.name for item in dataclasses.fields(config_class) if item.init}
    return {key: value for key, value in values.items() if key in names}


def _passed(
    given: Mapping[str, Any],
    config_class: type,
    owned: Mapping[str, str],
    decided: Mapping[str, str],
) -> dict[str, Any]:
    """The keys that reach the config class."""
    stopped = {*owned, *decided, *without_effect(config_class)}
    return {key: value for key, value in _known(config_class, given).items() if key not in stopped}


def _defaults(config_class: type) -> dict[str, Any]:
    return {
        item.name: item.default
        for item in dataclasses.fields(config_class)
        if item.default is not dataclasses.MISSING
    }


def _value_faults(
    at: str, given: Mapping[str, Any], config_class: type, others: Mapping[str, Any]
) -> list[Fault]:
    """Values of the wrong type; if there are none, values that the config class refuses."""
    return list(type_faults(at, given, config_class)) or refused_values(
        at, given, config_class, others
    )


def _key_faults(
    at: str,
    given: Mapping[str, Any],
    config_class: type,
    owned: Mapping[str, str],
    decided: Mapping[str, str],
) -> list[Fault]:
    """Keys that do not reach the config class, each with the reason."""
    fields = [item.name for item in dataclasses.fields(config_class) if item.init]
    idle = without_effect(config_class)
    known = [name for name in fields if not any(name in table for table in (owned, decided, idle))]
    faults = []
    for key in given:
        if key in owned:
            faults.append(
                Fault(
                    where=at,
                    what=f"'{key}' is set by the plan's own key {owned[key]}",
                    hint=f"remove it and set {owned[key]}",
                )
            )
        elif key in decided:
            faults.append(
                Fault(where=at, what=f"'{key}' cannot be set: {decided[key]}", hint="remove it")
            )
        elif key in idle and key in fields:
            faults.append(
                Fault(where=at, what=f"'{key}' would have no effect: {idle[key]}", hint="remove it")
            )
        elif key not in known:
            fault = unknown_name("key", key, known, at=at)
            faults.append(
                dataclasses.replace(
                    fault,
                    allowed=(
                        f"fields of {config_class.__module__.split('.')[0]}'s"
                        f" {config_class.__name__} that the plan does not set itself"
                    ),
                )
            )
    return faults


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
    cores = usable_cores() // world_size()
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
        "optim": entry.transformers if by_transformers(entry) else "adamw_torch",
        "bf16": autocast == "bfloat16",
        "fp16": autocast == "float16",
        "use_cpu": device.type == "cpu",
        "save_strategy": "steps",
        "save_steps": save_every(job, steps),
        "save_total_limit": 2,
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
        text = first_line(error)
        named = [key for key in job.stage.trl if key in text] or list(job.stage.trl)
        if not named:  # no key of a person's: ours are wrong
            raise
        keys = "', '".join(named)
        raise InputError(
            f"'{keys}': {text}",
            where=f"stage {job.stage.name}: trl",
            hint="see TRL's documentation of the key",
        ) from None
    # A process that sees several GPUs, such as a trainer started by hand, would get
    # nn.DataParallel, which TRL refuses, and under which a plan's batch size means another one.
    if getattr(config, "n_gpu", 1) > 1:
        config._n_gpu = 1
    prepare_sharding(config, job)
    return config


def world_size() -> int:
    """How many processes this run has, as the launcher says."""
    return process_count()


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
