"""A stage as arguments of TRL's config class; and `trl:` and `peft:`, which a plan passes on to the
config classes of TRL and PEFT, checked before a model is loaded.

Keys that the plan has itself and those of one list here are refused, each with the reason. A value
has to be of the type that the class says of its field. All else the class itself refuses, or the
library when it reads the value.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import multiprocessing
import subprocess
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.ground.errors import Fault, InputError, refuse, unknown_name
from advisor.ground.shape import value_words
from advisor.ground.types import TRACKERS
from advisor.methods.optimizers import optimizer
from advisor.methods.stage import stage_keys, trl_arguments
from advisor.plan.vllm import asks_server
from trainers.job import Device
from trainers.job.evaluating import half_dtype
from trainers.job.job import Job
from trainers.job.libraries import first_line
from trainers.job.machine import JOIN_S, process_count, usable_cores
from trainers.step.sharding import is_sharded, prepare_sharding
from trainers.updates import Update


def autocast_dtype(job: Job, device: Device) -> str | None:
    """The dtype of autocast under precision: mixed; None for pure."""
    if job.stage.precision == "pure":
        return None
    if job.stage.weights_dtype == "float16":
        return "float16"
    return str(half_dtype(device)).removeprefix("torch.")


def choose_products(job: Job, device: Device) -> None:
    """Let a GPU multiply float32 matrices in TF32 (10 bits of 23) where the plan's precision is
    mixed: outside autocast, of heads and in evaluation, float32 is 8 to 16 times slower. Numbers
    that are asked for in float32 (`precision: pure`) stay so.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if job.stage.precision == "mixed" else "highest")


def total_steps(job: Job, sequences: int, *, processes: int) -> int:
    """Optimizer steps of the run over so many sequences, which the processes share, as transformers
    counts them; a trial caps them.
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
        "save_only_model": True,  # which holds all else (StageTrainer)
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
    arguments["accelerator_config"] = {
        # From pinned memory: a batch is on its way while the GPU computes, and nobody waits for it.
        **({"non_blocking": True} if device.type == "cuda" else {}),
        # Else every process keeps whole gradients until the last micro-batch of a step.
        **({"gradient_accumulation_kwargs": {"sync_each_batch": True}} if is_sharded(job) else {}),
    }
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
    kept = set(keys)
    return {
        item.name: value
        for item in dataclasses.fields(config)
        if not item.name.startswith(("hub_", "push_to_hub", "_"))
        and (value := getattr(config, item.name, dataclasses.MISSING)) is not dataclasses.MISSING
        and (item.name in kept or item.default not in (dataclasses.MISSING, value))
    }


# ------------------------------------------------------------------ what is passed on

# Argument of TRL or transformers -> the plan's key that sets it. These are refused in `trl:`.
PLAN_KEYS: Mapping[str, str] = {
    **{
        argument: name
        for name, key in stage_keys().items()
        for argument in (*key.uses.trl, *key.uses.decides)
    },
    **dict.fromkeys(("bf16", "fp16"), "weights_dtype and precision"),
    "model_init_kwargs": "weights_dtype, attention, quantization, kernels",
    "trust_remote_code": "trust_remote_code (of the plan)",
    "use_cpu": "launch.device",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), "launch.strategy"),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "loss_on"),
    "beta": "beta",
    "num_generations": "generations",
    "max_completion_length": "response_tokens",
    "epsilon": "clip_range",
    "use_vllm": "rollouts",
    "chat_template_kwargs": "template",
    "reward_weights": "rewards",
    "auto_find_batch_size": "micro_batch_size",
    "liger_kernel_config": "kernels",
    "push_to_hub": "push_to",
    **dict.fromkeys(("output_dir", "logging_dir"), "advise run --output"),
}
# Keys that the trainers set or that would have no effect in them (* is any text), with the reason.
REFUSED: Mapping[str, str] = {
    "chat_template_path": "the model's own chat template is used and stored with the result",
    "dataset_*": "rows are read and tokenised before TRL sees them",
    "shuffle_dataset": "the order follows from the seed",
    **dict.fromkeys(("eos_token", "pad_token"), "the tokenizer's own is used"),
    **dict.fromkeys(("remove_unused_columns", "label_names"), "the columns are the trainer's own"),
    "disable_dropout": (
        "the plan's key dropout sets that of the module; the base has none if two models are"
        " compared"
    ),
    "optim_target_modules": "no optimizer of a plan projects gradients",
    **dict.fromkeys(
        ("resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
        "a run resumes automatically",
    ),
    "ignore_data_skip": "a run that resumes goes on with the rows that were not seen yet",
    "save_only_model": "a checkpoint must be complete to resume from",
    "save_total_limit": "a run keeps its last two checkpoints, and that of its best step",
    "save_on_each_node": "the machines of a run write one checkpoint together",
    "save_safetensors": "weights are always saved as safetensors",
    "num_generations_eval": "rewards are measured before and after training",
    **dict.fromkeys(
        ("generation_batch_size", "steps_per_generation"),
        "all prompts of an optimizer step are answered together",
    ),
    "log_completions*": "rollouts.jsonl in the stage's folder has samples of all steps",
    "do_train": "a stage trains",
    **dict.fromkeys(
        ("do_eval", "do_predict", "eval_*", "*_full_eval"),
        "held-out loss is measured before, about ten times during and after training, by our own"
        " evaluation",
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "the plan's key keep says which weights are the result",
    ),
    "hub_*": "the plan's key push_to uploads the result, and nothing else",
    "logging_nan_inf_filter": "a loss that is not finite must be seen",
    "disable_tqdm": "our trainers show progress themselves",
    "use_cache": "the cache is off in training, and on if the model generates text",
    "*transformers_continuous_batching*": (
        "the stage's rollouts says what generates: transformers, or a vLLM server, which batches so"
    ),
    "vllm_[!i]*": "the plan's `launch.vllm` says where the server is, or how it is started",
}
SMOOTHED = ("SFTConfig", "TrainingArguments")  # whose loss label_smoothing_factor changes
# Fields that act only beside another key of the plan.
IDLE: tuple[tuple[str, str, Callable[[Job, type], bool]], ...] = (
    (
        "*_checkpointing_kwargs",
        "the stage's gradient_checkpointing: true",
        lambda job, _: job.stage.gradient_checkpointing,
    ),
    ("ddp_*", "launch.processes of 2 or more", lambda job, _: job.plan.launch.processes > 1),
    ("vllm_i*", "the stage's rollouts: vllm", lambda job, _: asks_server(job.stage)),
    (
        "multi_objective_aggregation",
        "several entries in the stage's rewards",
        lambda job, _: len(job.options.get("rewards") or ()) > 1,
    ),
    (
        "label_smoothing_factor",
        "objective sft: this objective has another loss",
        lambda _, config_class: config_class.__name__ in SMOOTHED,
    ),
)
FRAME = ("output_dir", "use_cpu", "bf16", "fp16", "report_to")  # what values are tried beside
# Names as models have them, on which patterns of `peft:` are tried before there is a model.
USUAL_NAMES = (
    "model.language_model.layers.31.self_attn.q_proj", "model.layers.31.mlp.experts.127.down_proj",
    "transformer.encoder.layer.11.attention.self.query", "transformer.h.11.mlp.dense_h_to_4h",
)  # fmt: skip
PATTERN_S = 10  # that a pattern may take on these, and Python to start
TRY_PATTERN = "import re, sys; [re.match(sys.argv[1], name) for name in sys.argv[2:]]"


def check_passed_through(
    job: Job, config_class: type, update: Update, common: Mapping[str, Any]
) -> None:
    """Raise InputError for every key of `trl:` and `peft:` that cannot be passed on, and for values
    that the config classes refuse beside the arguments that every objective has in common.
    """
    stage, at, peft_class = job.stage, f"stage {job.stage.name}", update.config_class()
    faults = [*key_faults(f"{at}: trl", stage.trl, config_class, PLAN_KEYS)]
    faults += idle_faults(f"{at}: trl", job, config_class)
    # The plan's batch sizes are left out: objectives fit them to fields of their own.
    beside = {key: common[key] for key in FRAME if key in fields_of(config_class)}
    faults += value_faults(f"{at}: trl", passed(stage.trl, PLAN_KEYS), config_class, beside)
    if peft_class is not None:
        keys = {field: job.options.get(key) for field, key in update.PLAN_KEYS.items()}
        beside = {field: value for field, value in keys.items() if value is not None}
        faults += key_faults(f"{at}: peft", stage.peft, peft_class, update.PLAN_KEYS)
        own = passed(stage.peft, update.PLAN_KEYS)
        faults += value_faults(f"{at}: peft", own, peft_class, beside)
        faults += pattern_faults(f"{at}: peft", stage.peft)
        faults += pattern_faults(at, {"target_modules": keys.get("target_modules")})
    elif stage.peft:
        what = f"'peft' has no effect: update {stage.update} does not use PEFT"
        faults.append(Fault(where=at, what=what, hint="remove it"))
    faults += update.faults(stage)
    refuse(faults)


def fields_of(config_class: type) -> dict[str, Any]:
    """The fields that the constructor takes -> their types; Any if a type cannot be told."""
    names = [item.name for item in dataclasses.fields(config_class) if item.init]
    try:
        hints = typing.get_type_hints(config_class)
    except (NameError, TypeError):
        hints = {}
    return {name: hints.get(name, Any) for name in names}


# ------------------------------------------------------------------ keys


def key_faults(
    at: str, given: Mapping[str, Any], config_class: type, plan_keys: Mapping[str, str]
) -> Iterator[Fault]:
    """Keys that do not reach the config class, each with the reason."""
    fields = fields_of(config_class)
    for key in given:
        if own := plan_keys.get(key):
            what = f"'{key}' is set by the plan's own key {own}"
            yield Fault(where=at, what=what, hint=f"remove it and set {own}")
        elif reason := refusal_of(key):
            yield Fault(where=at, what=f"'{key}' cannot be set: {reason}", hint="remove it")
        elif key not in fields:
            kind = f"{config_class.__module__.split('.')[0]}'s {config_class.__name__}"
            fault = unknown_name("key", key, [*passed(fields, plan_keys)], at=at)
            allowed = f"fields of {kind} that the plan does not set itself"
            yield structs.replace(fault, allowed=allowed)


def refusal_of(key: str) -> str | None:
    """Why the key is refused, whatever the plan says; None: it is passed on."""
    return next((why for name, why in REFUSED.items() if fnmatchcase(key, name)), None)


def passed(given: Mapping[str, Any], plan_keys: Mapping[str, str]) -> dict[str, Any]:
    """The keys that are neither the plan's own nor refused."""
    return {key: given[key] for key in given if key not in plan_keys and refusal_of(key) is None}


def idle_faults(at: str, job: Job, config_class: type) -> Iterator[Fault]:
    """Keys that would have no effect without another key of the plan, or beside it."""
    for key, value in job.stage.trl.items():
        for name, words, acts in IDLE:
            if fnmatchcase(key, name) and not acts(job, config_class):
                yield Fault(
                    where=at,
                    what=f"'{key}' would have no effect",
                    allowed=f"with {words}",
                    hint="remove it, or set that too",
                )
        named = value if isinstance(value, list) else [value]
        if key == "report_to" and (own := [one for one in named if one in ("all", *TRACKERS)]):
            what = f"'report_to' names {own[0]}, and the plan's own key trackers turns services on"
            hint = "remove it, and write `trackers: [NAME]` beside the stages"
            yield Fault(where=at, what=what, hint=hint)


# ------------------------------------------------------------------ values


def value_faults(
    at: str, given: Mapping[str, Any], config_class: type, beside: Mapping[str, Any]
) -> Iterator[Fault]:
    """Values of the wrong type; if there are none, what the config class itself refuses."""
    hints = fields_of(config_class)
    known = {key: value for key, value in given.items() if key in hints}
    wrong = [key for key, value in known.items() if not fits(value, hints[key])]
    for key in wrong:
        words = inspect.formatannotation(hints[key]).replace("typing.", "")
        yield Fault(where=at, what=f"'{key}' is {value_words(known[key])}", allowed=words)
    if known and not wrong:
        try:
            config_class(**{**beside, **known})
        except Exception as error:  # whatever a library raises about what it was given
            yield refused(error, known, at=at)


def pattern_faults(at: str, given: Mapping[str, Any]) -> Iterator[Fault]:
    """Regular expressions that take for ever on a name, such as `(.*)*x`: nothing could stop PEFT
    while it matches them.
    """
    for key, value in given.items():
        texts = (
            [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ()
        )
        for text in texts:
            if not isinstance(text, str) or not set(text) & set("*+{"):
                continue
            command = [sys.executable, "-ISc", TRY_PATTERN, rf"(.*\.)?({text})$", *USUAL_NAMES]
            try:
                subprocess.run(command, timeout=PATTERN_S, capture_output=True, check=False)
            except subprocess.TimeoutExpired:
                what = f"'{key}': {text} takes for ever to match a module's name"
                hint = "repeat nothing that repeats itself: a* in place of (a*)*"
                yield Fault(where=at, what=what, allowed="names, or simple patterns", hint=hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML file is of the type: a whole number is a float, too, and a single
    value stands for a list of it, as DPO takes one loss.
    """
    from huggingface_hub.dataclasses import type_validator

    with_floats = json.loads(json.dumps(value, default=str), parse_int=float)
    for form in (value, with_floats, [value]):
        with suppress(TypeError):
            type_validator("value", form, hint)
            return True
    return False


def refused(error: Exception, given: Mapping[str, Any], *, at: str) -> Fault:
    """What a config class says against the values, with the keys that it names, or all of them."""
    text = first_line(error)
    keys = "', '".join([key for key in given if key in text] or given)
    hint = "see the library's documentation of the key"
    return Fault(where=at, what=f"'{keys}': {text}", hint=hint)


def refused_by_library(error: Exception, job: Job, log: Path) -> InputError | None:
    """The error of a library that was given values of `trl:` or `peft:`, with the keys that it is
    probably about, and the log that has its traceback; None where the stage has none, or the error
    is our own.
    """
    given = {"trl": job.stage.trl, "peft": job.stage.peft}
    keys = [f"{part}: {key}" for part, values in given.items() for key in values]
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).resolve().parent.parent
    if not keys or not frames or Path(frames[-1].filename).resolve().is_relative_to(ours):
        return None
    text = first_line(error)
    named = [key for key in keys if key.rpartition(" ")[2] in text] or keys
    return InputError(
        f"a library refuses what the plan passes on to it ({', '.join(named)}): {text}",
        where=f"stage {job.stage.name}",
        hint=f"correct or remove {'these keys' if len(named) > 1 else 'the key'}; the details are"
        f" in {log}",
    )
