"""The public run spec of `advise estimate --specs`: checked, and read as a Run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from advisor.estimate.memory.optimizer_states import OTHERS
from advisor.estimate.run import COUNTERS, Device, Rows, Run, stage_of
from advisor.estimate.trainers import trainer_of
from advisor.ground.errors import Fault
from advisor.ground.shape import (
    Choice,
    Flag,
    Keys,
    ListOf,
    MapOf,
    NamedValue,
    Number,
    OneOf,
    Shape,
    Text,
    check_shape,
)
from advisor.ground.types import ModelShape
from advisor.methods import methods, objectives, schemes, updates
from advisor.methods.kernels import ATTENTIONS, LAYER_KERNELS
from advisor.methods.optimizers import ALIASES, OPTIMIZERS
from advisor.methods.other_keys import hint_for

DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}
SIXTEEN_BIT = ("bfloat16", "float16")
NARROW_DTYPES = ("fp8", "mxfp8", "nvfp4")  # of matrix products; weights stay as they are
VERSION = r"\d+(\.\d+)*[\w.+-]*"
DATE = r"\d{4}(-(0[1-9]|1[0-2])(-([0-2]\d|3[01]))?)?"
MOST_BINS = 10_000
SPELLINGS = {
    "flash_attention": "flash_attention_2",
    "flash": "flash_attention_2",
    "flash_attn": "flash_attention_2",
    **ALIASES,
    "fsdp2": "fsdp",
}
_COUNT = Number(whole=True, min=1, max=10**9)
_SIZE = Number(above=0, max=1_000_000)
_AMOUNT = Number(above=0, max=10**15)  # tokens and rows of all epochs
_NAME = OneOf(options=(Text(), Number()))  # "4090" may come as a number
_CHOICES: Mapping[str, Choice] = {
    key: Choice(values=values)
    for key, values in {
        "objective": objectives(),
        "update": tuple(dict.fromkeys((*updates(), *schemes()))),
        "quantization": ("nf4", "int8"),
        "weights_dtype": ("float32", "bfloat16", "float16"),
        "compute_dtype": (*SIXTEEN_BIT, "float32", *NARROW_DTYPES),
        "precision": ("pure", "mixed"),
        "attention": ATTENTIONS,
        "kernels": LAYER_KERNELS,
        "loss": ("full", "fused", "chunked"),
        "sharding": ("ddp", "zero1", "zero2", "zero3", "fsdp"),
        "counter": COUNTERS,
        "rollouts": ("transformers", "vllm"),
        "placement": ("houlsby", "pfeiffer", "parallel"),
        "optimizer": (*OPTIMIZERS, *OTHERS),
    }.items()
}
# Keys of one update or objective.
_OPTIONS: Mapping[str, Shape] = {
    "placement": _CHOICES["placement"],
    **dict.fromkeys(
        ("bottleneck", "prefix_tokens", "generations", "response_tokens", "ppo_epochs"), _COUNT
    ),
    "train_embeddings": Flag(),
    "beta": Number(min=0),
    "rollouts": _CHOICES["rollouts"],
    "server_memory": Number(above=0, max=1),
}
_FIELDS: Mapping[str, Shape] = {
    **{key: shape for key, shape in _CHOICES.items() if key not in _OPTIONS},
    **dict.fromkeys(("rank", "micro_batch_size", "seq_len", "grad_accum", "gpus"), _COUNT),
    **dict.fromkeys(
        (
            "double_quantization", "kbit_prepared", "fp32_master_weights", "optimizer_in_backward",
            "offload_weights", "packing", "compile", "evaluation",
        ),
        Flag(),
    ),
    "optim_args": Text(),
    "target_modules": OneOf(options=(Text(), ListOf(of=Text()))),
    "gradient_checkpointing": OneOf(
        options=(Flag(), Choice(values=("selective", "offload", "full")))
    ),
    "framework": _NAME,
    "library_versions": MapOf(of=Text(pattern=VERSION, such_as='"4.51.3"')),
    "date": Text(pattern=DATE, such_as='"2025", "2025-08" or "2025-08-14"'),
    "lengths": ListOf(
        of=ListOf(of=_COUNT, least=2, most=2),
        least=1,
        most=MOST_BINS,
        help="a histogram of the rows' tokens: [longest of the bin, rows in it], ascending",
    ),
}  # fmt: skip
SPEC = Keys(
    help="A run spec of `advise estimate --specs`",
    keys={
        "model": _NAME,
        "architecture": MapOf(of=Shape(), help="the keys of a config.json"),
        "model_params_b": _SIZE,
        "active_params_b": _SIZE,
        "gpu": _NAME,
        "tokens_total": _AMOUNT,
        "rows_total": _AMOUNT,
        **_FIELDS,
        **_OPTIONS,
    },
    nulls=True,
    others=hint_for,
)


# What a key that is left out is taken to be, beside a plan's own defaults.
USUAL: Mapping[str, Any] = {
    "objective": "sft", "update": "lora", "micro_batch_size": 1, "seq_len": 1024,
    "gradient_checkpointing": True,
}  # fmt: skip
# Keys that are no key of a stage -> where a Run has them.
TO_DEVICE = {
    "gpus": "gpus",
    "sharding": "sharding",
    "offload_weights": "offloads",
    "counter": "counter",
}
TO_ROWS = {"lengths": "lengths", "tokens_total": "tokens_total", "rows_total": "rows_total"}
TO_TRL = ("optim_args",)
STATED = (
    "loss", "evaluation", "compute_dtype", "kbit_prepared", "fp32_master_weights",
    "optimizer_in_backward",
)  # fmt: skip
OF_TRAINER = ("framework", "library_versions", "date")
OF_MODEL = ("model", "architecture", "model_params_b", "active_params_b", "gpu")
NO_STAGE_KEY = frozenset((*TO_DEVICE, *TO_ROWS, *TO_TRL, *STATED, *OF_TRAINER, *OF_MODEL))


def run_of_spec(spec: Mapping[str, Any], model: ModelShape, device: Device | None = None) -> Run:
    """The run that a checked spec describes, of this model. A key that is left out takes what the
    trainer would use.
    """
    given = {key: value for key, value in spec.items() if value is not None}
    of_stage = {**USUAL, **{key: given[key] for key in given if key not in NO_STAGE_KEY}}
    stated = {key: given[key] for key in STATED if key in given}
    if isinstance(how := of_stage["gradient_checkpointing"], str):
        stated["checkpointing"] = how
    on = {ours: given[key] for key, ours in TO_DEVICE.items() if key in given}
    rows = {ours: given[key] for key, ours in TO_ROWS.items() if key in given}
    return Run(
        stage=stage_of(
            {
                **of_stage,
                "gradient_checkpointing": bool(how),
                "trl": {key: given[key] for key in TO_TRL if key in given},
            }
        ),
        model=model,
        device=replace(device or Device(), **on),
        rows=Rows(**rows, differ=given.get("packing") is False),
        trainer=trainer_of(
            given.get("framework"), given.get("library_versions", {}), given.get("date")
        ),
        stated=stated,
        left_open=frozenset(("precision", "optimizer", "attention")) - given.keys(),
    )


def request_of(item: Any, *, at: str = "spec") -> dict[str, Any] | list[Fault]:
    """One spec in the spelling of the keys' shapes, or every fault in it.

    Unknown keys are faults, unknown wording of a known key is one too.
    """
    if isinstance(item, Mapping):
        item = {key: _usual(key, value) for key, value in item.items() if value not in ("", [])}
    faults = check_shape(NamedValue(at, item), SPEC)
    if faults:
        return faults
    given = {key: _plain(key, value) for key, value in item.items() if value is not None}
    scheme = schemes().get(given.get("update", ""))
    if scheme is not None:
        given["update"] = scheme.update
        given.setdefault("quantization", scheme.quantization)
        if given["quantization"] and not methods().updates[scheme.update].is_module:
            what = f"{scheme.update} fine-tuning of a quantised model"
            modules = [one.id for one in methods().updates.values() if one.is_module]
            allowed = f"quantised weights are frozen: update {', '.join(modules)}"
            faults.append(
                Fault(where=NamedValue(at, item).at(("update",)), what=what, allowed=allowed)
            )
    size, active = given.get("model_params_b"), given.get("active_params_b")
    if size and active and active > size:
        what = f"active_params_b {active:g} with model_params_b {size:g}"
        faults.append(
            Fault(where=at, what=what, allowed="a token passes through a part of the weights")
        )
    if not {"model", "architecture", "model_params_b"} & set(given):
        allowed = "give model, architecture or model_params_b"
        faults.append(Fault(where=at, what="no model", allowed=allowed))
    if faults:
        return faults
    return given


def _usual(key: str, value: Any) -> Any:
    """The value in the spelling that the shape knows: 'BF16' is bfloat16."""
    if key not in _CHOICES or value is None:
        return value
    text = str(value).strip().lower()
    if key in ("weights_dtype", "compute_dtype"):
        text = text.removeprefix("torch.")
        return DTYPES.get(text, text)
    return SPELLINGS.get(text, text)


def _plain(key: str, value: Any) -> Any:
    """A value that has the shape, in the type that a Run holds."""
    shape = SPEC.keys[key]
    if shape is _COUNT or key in ("tokens_total", "rows_total"):
        return int(value)
    if shape is _SIZE:
        return float(value)
    if shape is _NAME:
        return str(value)
    if key == "lengths":
        return tuple((int(longest), int(rows)) for longest, rows in value)
    return tuple(value) if isinstance(value, list) else value
