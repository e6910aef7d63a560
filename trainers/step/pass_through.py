"""Keys of `trl:` and `peft:` that would have no effect in these trainers, with the reason, and
values of the wrong type: told before a model is loaded.

A field of a config class that neither the plan nor a table here or in settings.py names is passed
on. tests/trainers/test_pass_through.py holds every field of the installed versions against these
tables.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import signal
import threading
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from advisor.ground.errors import Fault, InputError, unknown_name
from advisor.ground.shape import value_words
from advisor.plan.vllm import asks_server
from trainers.job.job import Job

NO_EVALUATION = "TRL's evaluation does not run: held-out loss is measured by our own"
ONE_MACHINE = "a run uses one machine"
TRACKED = ("tensorboard", "wandb")  # what trackers.py opens
NOTHING_UPLOADED = "the plan's key push_to uploads the result, and nothing else"
NO_COMPLETIONS_LOG = "rollouts.jsonl in the stage's folder has samples of all steps"
OBJECT = "it takes an object of PEFT, which a plan cannot hold"
BY_PEFT = "PEFT writes it itself"

# Config class, or "" for all of TRL's and transformers' -> its fields without effect -> the reason.
WITHOUT_EFFECT: Mapping[str, Mapping[str, str]] = {
    "": {
        "eval_steps": NO_EVALUATION,
        "eval_delay": NO_EVALUATION,
        "eval_on_start": NO_EVALUATION,
        "eval_accumulation_steps": NO_EVALUATION,
        "eval_do_concat_batches": NO_EVALUATION,
        "eval_use_gather_object": NO_EVALUATION,
        "batch_eval_metrics": NO_EVALUATION,
        "include_for_metrics": NO_EVALUATION,
        "prediction_loss_only": NO_EVALUATION,
        "bf16_full_eval": NO_EVALUATION,
        "fp16_full_eval": NO_EVALUATION,
        "metric_for_best_model": "which weights are kept does not depend on TRL's metrics",
        "greater_is_better": "which weights are kept does not depend on TRL's metrics",
        "hub_always_push": NOTHING_UPLOADED,
        "hub_model_id": NOTHING_UPLOADED,
        "hub_private_repo": NOTHING_UPLOADED,
        "hub_revision": NOTHING_UPLOADED,
        "hub_strategy": NOTHING_UPLOADED,
        "hub_token": NOTHING_UPLOADED,
        "local_rank": "the launcher numbers the processes",
        "log_on_each_node": ONE_MACHINE,
        "save_on_each_node": ONE_MACHINE,
        "skip_memory_metrics": "memory is always measured, and recorded in run.json",
        "include_num_input_tokens_seen": "metrics.jsonl counts the tokens of each step",
        "length_column_name": "rows are not grouped by their length",
        "liger_kernel_config": "the plan's key kernels puts Liger in, without its losses",
        "parallelism_config": "launch.strategy says how several processes share the model",
        "restore_callback_states_from_checkpoint": "the trainers' own callback resumes by itself",
        "ignore_data_skip": "a run that resumes goes on with the rows that were not seen yet",
        "auto_find_batch_size": "micro_batch_size is the plan's; `advise run --dry-run` tries it",
        "use_cache": "the cache is off in training, and on if the model generates text",
        "label_smoothing_factor": "the loss of this objective is not the one that it changes",
    },
    "CPOConfig": {
        "generate_during_eval": NO_EVALUATION,
        "is_encoder_decoder": "the model is loaded before TRL sees it",
    },
    "ORPOConfig": {
        "generate_during_eval": NO_EVALUATION,
        "is_encoder_decoder": "the model is loaded before TRL sees it",
        "padding_value": "padding is masked, whatever token it is",
    },
    "GRPOConfig": {
        "chat_template_kwargs": "the plan's key `template` gives the chat template its arguments",
        "ds3_gather_for_generation": "it belongs to DeepSpeed's third stage",
        "log_completions_hub_repo": NO_COMPLETIONS_LOG,
        "log_multimodal": NO_COMPLETIONS_LOG,
        "log_unique_prompts": NO_COMPLETIONS_LOG,
        "num_completions_to_print": NO_COMPLETIONS_LOG,
        "max_tool_calling_iterations": "the model calls no tools while it is trained",
        "use_transformers_paged": "TRL reads use_transformers_continuous_batching in its place",
    },
    "RLOOConfig": {
        "chat_template_kwargs": "the plan's key `template` gives the chat template its arguments",
        "ds3_gather_for_generation": "it belongs to DeepSpeed's third stage",
        "log_multimodal": NO_COMPLETIONS_LOG,
        "log_unique_prompts": NO_COMPLETIONS_LOG,
        "num_completions_to_print": NO_COMPLETIONS_LOG,
        "use_transformers_paged": "TRL reads use_transformers_continuous_batching in its place",
    },
    "LoraConfig": {
        "auto_mapping": BY_PEFT,
        "peft_version": BY_PEFT,
        "megatron_config": "no layer of the model is Megatron's",
        "megatron_core": "no layer of the model is Megatron's",
        "use_qalora": "it works on GPTQ bases alone",
        "qalora_group_size": "it works on GPTQ bases alone",
        "loftq_config": "it belongs to init_lora_weights: loftq, which these trainers do not make",
        "eva_config": OBJECT,
        "corda_config": OBJECT,
        "lora_ga_config": OBJECT,
        "runtime_config": OBJECT,
        "use_bdlora": OBJECT,
        "arrow_config": OBJECT,
        "kasa_config": OBJECT,
        "monteclora_config": "these trainers do not compute its term of the loss",
    },
    "IA3Config": {"auto_mapping": BY_PEFT, "peft_version": BY_PEFT},
    "BottleneckConfig": {"auto_mapping": BY_PEFT, "peft_version": BY_PEFT},
    "PrefixTuningConfig": {"auto_mapping": BY_PEFT, "peft_version": BY_PEFT},
}
# Fields of the first table that do act in one class.
ACTS_IN: Mapping[str, tuple[str, ...]] = {
    "TrainingArguments": ("label_smoothing_factor",),  # of a classifier, and of head: seq2seq
    "SFTConfig": ("label_smoothing_factor",),
}


# Values that TRL refuses only in the first step, or once the model is loaded.
CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "SFTConfig": {"loss_type": ("nll", "dft")},
    "DPOConfig": {
        "loss_type": (
            "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
            "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
        ),
        "f_divergence_type": (
            "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence",
        ),
    },
    "KTOConfig": {"loss_type": ("kto", "apo_zero_unpaired")},
    "GRPOConfig": {
        "loss_type": (
            "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo",
        ),
        "importance_sampling_level": ("token", "sequence"),
        "scale_rewards": ("group", "batch", "none"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    },
}  # fmt: skip


class Range(NamedTuple):
    """What a number may be, where the libraries refuse another only once the model is loaded."""

    least: float = 0
    most: float = math.inf
    below_most: bool = False  # the number is smaller than `most`

    def holds(self, value: float) -> bool:
        """Whether the number is inside."""
        return self.least <= value and (
            value < self.most if self.below_most else value <= self.most
        )

    def words(self) -> str:
        """'a number of at least 0 and below 1'."""
        if self.most == math.inf:
            return f"a number of at least {self.least:g}"
        end = "below" if self.below_most else "at most"
        return f"a number of at least {self.least:g} and {end} {self.most:g}"


RANGES: Mapping[str, Range] = {
    "adam_beta1": Range(0, 1, below_most=True),
    "adam_beta2": Range(0, 1, below_most=True),
    "adam_epsilon": Range(),
    "max_grad_norm": Range(),
    "dataloader_num_workers": Range(0, 1024),
    "pad_to_multiple_of": Range(1, 4096),
    "label_smoothing_factor": Range(0, 1),
    "lora_dropout": Range(0, 1),
    "rank_pattern": Range(1, 65536),
    "alpha_pattern": Range(0, 1e9),
}
# Keys whose texts, or names in a map, are regular expressions over names of layers.
PATTERNS = (
    "optim_target_modules",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
)
# A pattern that tries again and again is slow on one of these.
TRIED = ("model.layers.0.self_attn.q_proj", "model.embed_tokens.weight", "a" * 40 + "!")
PATTERN_SECONDS = 2


class Needs(NamedTuple):
    """What has to be so for some fields to have an effect."""

    words: str
    fields: tuple[str, ...]
    # (the job, every value of the config) -> whether it is so
    met: Callable[[Job, Mapping[str, Any]], bool]


def _includes(key: str, *wanted: str) -> Callable[[Job, Mapping[str, Any]], bool]:
    """Whether the value of a field is one of these, or a list with one of them."""

    def met(job: Job, values: Mapping[str, Any]) -> bool:
        given = values.get(key)
        return any(item in wanted for item in (given if isinstance(given, list) else [given]))

    return met


def _is_on(key: str) -> Callable[[Job, Mapping[str, Any]], bool]:
    return lambda job, values: bool(values.get(key))


NEEDS = (
    Needs(
        "the stage's gradient_checkpointing: true",
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        lambda job, values: job.stage.gradient_checkpointing,
    ),
    Needs(
        "launch.processes of 2 or more",
        (
            "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_static_graph",
            "ddp_find_unused_parameters", "ddp_timeout", "average_tokens_across_devices",
        ),
        lambda job, values: job.plan.launch.processes > 1,
    ),
    Needs(
        "dataloader_num_workers of 1 or more",
        (
            "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_in_order",
            "dataloader_multiprocessing_context",
        ),
        _is_on("dataloader_num_workers"),
    ),
    Needs(
        "report_to with the name of a service",
        ("run_name", "project", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
        lambda job, values: values.get("report_to") not in (None, "none", [], ["none"]),
    ),
    Needs(
        "sync_ref_model: true",
        ("ref_model_mixup_alpha", "ref_model_sync_steps"),
        _is_on("sync_ref_model"),
    ),
    Needs(
        "precompute_ref_log_probs: true",
        ("precompute_ref_batch_size",),
        _is_on("precompute_ref_log_probs"),
    ),
    Needs(
        "f_divergence_type: alpha_divergence",
        ("f_alpha_divergence_coef",),
        _includes("f_divergence_type", "alpha_divergence"),
    ),
    Needs("loss_type: discopop", ("discopop_tau",), _includes("loss_type", "discopop")),
    Needs(
        "loss_type with several losses",
        ("loss_weights",),
        lambda job, values: isinstance(values.get("loss_type"), list)
        and len(values["loss_type"]) > 1,
    ),
    Needs(
        "loss_type: sapo",
        ("sapo_temperature_neg", "sapo_temperature_pos"),
        _includes("loss_type", "sapo"),
    ),
    Needs(
        "loss_type: vespo",
        ("vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos"),
        _includes("loss_type", "vespo"),
    ),
    Needs(
        "several entries in the stage's rewards",
        ("multi_objective_aggregation",),
        lambda job, values: len(job.options.get("rewards") or ()) > 1,
    ),
    Needs(
        "use_adaptive_entropy: true",
        ("entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target"),
        _is_on("use_adaptive_entropy"),
    ),
    Needs(
        "use_transformers_continuous_batching: true",
        ("transformers_continuous_batching_config",),
        _is_on("use_transformers_continuous_batching"),
    ),
    Needs(
        "the stage's rollouts: vllm",
        (
            "vllm_importance_sampling_cap", "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode",
        ),
        lambda job, values: asks_server(job.stage),
    ),
    Needs(
        "the stage's rollouts: transformers",
        ("cache_implementation", "use_transformers_continuous_batching"),
        lambda job, values: not asks_server(job.stage),
    ),
)  # fmt: skip


def without_effect(config_class: type) -> dict[str, str]:
    """Field -> why it would have no effect, of a config class."""
    name = config_class.__name__
    general = {} if config_class.__module__.startswith(("peft", "advisor")) else WITHOUT_EFFECT[""]
    found = {**general, **WITHOUT_EFFECT.get(name, {})}
    return {key: why for key, why in found.items() if key not in ACTS_IN.get(name, ())}


def needs_faults(
    at: str, given: Mapping[str, Any], values: Mapping[str, Any], job: Job
) -> Iterator[Fault]:
    """Fields that would have no effect because of another value.

    Args:
        at: Where the keys stand.
        given: Key -> value, as in the plan.
        values: Every value of the config.
        job: The stage.
    """
    for needs in NEEDS:
        for key in given:
            if key in needs.fields and not needs.met(job, values):
                yield Fault(
                    where=at,
                    what=f"'{key}' would have no effect",
                    allowed=f"with {needs.words}",
                    hint="remove it, or set that too",
                )


def type_faults(at: str, given: Mapping[str, Any], config_class: type) -> Iterator[Fault]:
    """Values of another type than the config class says of its field."""
    hints, choices = _hints(config_class), CHOICES.get(config_class.__name__, {})
    for key, value in given.items():
        hint = hints.get(key, Any)
        # DPO takes one loss as well as a list of them.
        single = get_origin(hint) is list and accepts(hint, [value])
        if not accepts(hint, value) and not single:
            yield Fault(where=at, what=f"'{key}' is {value_words(value)}", allowed=hint_words(hint))
            continue
        for item in value if isinstance(value, list) else [value]:
            if key in choices and isinstance(item, str) and item not in choices[key]:
                yield unknown_name("value", item, list(choices[key]), at=f"{at}: '{key}'")
        yield from _range_faults(at, key, value)
        yield from _pattern_faults(at, key, value)
        if key == "report_to":
            yield from _report_faults(at, value)


def _range_faults(at: str, key: str, value: Any) -> Iterator[Fault]:
    """Numbers outside of what the libraries compute with."""
    allowed = RANGES.get(key)
    if allowed is None:
        return
    inside = value if isinstance(value, dict) else {"": value}
    for name, number in inside.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if (is_number and not allowed.holds(number)) or (not is_number and isinstance(value, dict)):
            which = f"'{key}'" + (f" of '{name}'" if name else "")
            yield Fault(where=at, what=f"{which} is {value_words(number)}", allowed=allowed.words())


def _pattern_faults(at: str, key: str, value: Any) -> Iterator[Fault]:
    """Regular expressions that are none, and those that do not come to an end."""
    texts = list(value) if isinstance(value, dict) else [value]
    for text in texts if key in PATTERNS else ():
        why = _pattern_fault(text) if isinstance(text, str) else None
        if why is not None:
            yield Fault(
                where=at,
                what=f"'{key}': {value_words(text)} {why}",
                allowed="a regular expression over the names of layers, or a list of names",
            )


def _pattern_fault(text: str) -> str | None:
    """What is wrong with a regular expression; None: nothing."""
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        return None

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)  # Python looks for signals while it matches
    signal.setitimer(signal.ITIMER_REAL, PATTERN_SECONDS)
    try:
        for name in TRIED:
            pattern.fullmatch(name)
    except TimeoutError:
        return "does not come to an end on the name of a layer"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


def refused_by_library(error: Exception, job: Job, log: Path) -> InputError | None:
    """The error of a library that was given values of `trl:` or `peft:`, with the keys that it is
    probably about; None where the stage has none, or the error is our own.

    Args:
        error: What was raised while the stage was built or trained.
        job: The stage.
        log: Where its traceback is.
    """
    given = {"trl": job.stage.trl, "peft": job.stage.peft}
    if not any(given.values()):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).resolve().parent.parent
    if not frames or Path(frames[-1].filename).resolve().is_relative_to(ours):
        return None
    text = first_line(error)
    keys = [f"{part}: {key}" for part, values in given.items() for key in values]
    named = [key for key in keys if key.rpartition(" ")[2] in text] or keys
    return InputError(
        f"a library refuses what the plan passes on to it ({', '.join(named)}): {text}",
        where=f"stage {job.stage.name}",
        hint=f"correct or remove {'these keys' if len(named) > 1 else 'the key'}; the details are"
        f" in {log}",
    )


def _report_faults(at: str, value: Any) -> Iterator[Fault]:
    """Services that report_to names and that are not installed here."""
    from transformers.integrations import get_available_reporting_integrations

    known = ["none", *get_available_reporting_integrations()]
    for name in value if isinstance(value, list) else [value]:
        if name == "all":
            yield Fault(
                where=at,
                what="'report_to' is all: metrics would go to every service installed here",
                allowed=", ".join(known),
                hint="name the service that you mean",
            )
        elif name in TRACKED:
            yield Fault(
                where=at,
                what=f"'report_to' names {name}, which the plan's own key trackers turns on",
                hint=f"remove it, and write `trackers: [{name}]` beside the stages",
            )
        elif name is not None and name not in known:
            yield Fault(
                where=at,
                what=f"'report_to' names {name}, which is not installed here",
                allowed=", ".join(known),
                hint=f"pip install {name}, or remove it",
            )


def _hints(config_class: type) -> dict[str, Any]:
    """Field -> its type; fields whose type cannot be told are left out."""
    try:
        return typing.get_type_hints(config_class)
    except (NameError, TypeError):  # a type that is imported for type checkers alone
        return {
            item.name: item.type
            for item in dataclasses.fields(config_class)
            if not isinstance(item.type, str)
        }


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value of a YAML file is of the type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(part, value) for part in arguments)
    if origin is Literal:
        return value in arguments
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [item.value for item in hint]
    if (origin or hint) in (list, tuple, set):
        parts = [part for part in arguments if part is not Ellipsis] or [Any]
        return isinstance(value, list) and all(
            any(accepts(part, item) for part in parts) for item in value
        )
    if (origin or hint) in (dict, Mapping):
        inner = arguments[1] if len(arguments) == 2 else Any
        return isinstance(value, dict) and all(accepts(inner, item) for item in value.values())
    return isinstance(hint, type) and isinstance(value, hint)


NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
    Any: "any value",
}


def hint_words(hint: Any) -> str:
    """What values the type allows: `a number, or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(hint_words(part) for part in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(str(item.value) for item in hint)}"
    if (origin or hint) in (list, tuple, set):
        parts = dict.fromkeys(hint_words(part) for part in arguments if part is not Ellipsis)
        return "a list" + (f", each {' or '.join(parts)}" if parts else "")
    if (origin or hint) in (dict, Mapping):
        return "a map"
    return NAMES.get(hint, f"an object of {getattr(hint, '__name__', hint)}")


def refused_values(
    at: str, given: Mapping[str, Any], config_class: type, others: Mapping[str, Any]
) -> list[Fault]:
    """Values that the config class itself refuses, each key named.

    Args:
        at: Where the keys stand.
        given: Key -> value, as in the plan.
        config_class: Whose constructor checks them.
        others: What is passed beside them.
    """
    if not given or _complaint(config_class, {**others, **given}) is None:
        return []
    alone = {key: _complaint(config_class, {**others, key: value}) for key, value in given.items()}
    found = {key: text for key, text in alone.items() if text is not None}
    if not found:  # each is fine without the others
        text = _complaint(config_class, {**others, **given}) or ""
        named = [key for key in given if key in text] or list(given)
        found = {"', '".join(named): text}
    return [
        Fault(where=at, what=f"'{key}': {text}", hint="see the library's documentation of the key")
        for key, text in found.items()
    ]


def _complaint(config_class: type, values: Mapping[str, Any]) -> str | None:
    """What the constructor says against the values; None: nothing."""
    try:
        config_class(**values)
    except (TypeError, ValueError, ImportError, AttributeError, KeyError) as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """The message of an error, on one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
