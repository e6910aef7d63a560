"""`advise estimate --specs`: run specs as people and scripts write them -> values, and the answer
document of each.

A list is answered whole: what cannot be answered says why in its place, what is half known is read
by its known part and named in `warnings`. Looking up models and cards is the caller's
(`find_model`, `find_gpu`), so that this stays free of files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from advisor.estimate.architecture import ConfigError, shape_from_config
from advisor.estimate.dims import dims_of, targets, unknown_targets
from advisor.estimate.memory import memory_estimate
from advisor.estimate.resolved_run import COUNTERS
from advisor.estimate.time import Machine, machine_of, time_estimate
from advisor.estimate.types import RunSpec
from advisor.ground.errors import Fault, InputError, nearest
from advisor.ground.types import GpuSpec, ModelShape
from advisor.ground.units import GIB
from advisor.methods import objectives, schemes, update, updates

OPTIMIZERS = (
    "adamw", "adamw_torch", "adamw_fused", "adamw_torch_fused", "adamw_8bit", "paged_adamw",
    "paged_adamw_8bit", "adamw_cpu",
    "adafactor", "sgd", "sgd_momentum", "lion", "rmsprop", "adagrad",
)  # fmt: skip
CHOICES: Mapping[str, tuple[str, ...]] = {
    "objective": objectives(),
    "update": tuple(dict.fromkeys((*updates(), *schemes()))),
    "quantization": ("nf4", "int8"),
    "weights_dtype": ("float32", "bfloat16", "float16"),
    "precision": ("pure", "mixed"),
    "optimizer": OPTIMIZERS,
    "attention": ("eager", "sdpa", "flash_attention_2"),
    "loss": ("full", "fused", "chunked"),
    "sharding": ("ddp", "zero1", "zero2", "zero3", "fsdp"),
    "counter": COUNTERS,
}
COUNTS = ("rank", "micro_batch_size", "seq_len", "grad_accum", "gpus")
FLAGS = (
    "double_quantization",
    "kbit_prepared",
    "fp32_master_weights",
    "optimizer_in_backward",
    "offload_weights",
    "packing",
    "compile",
)
# Keys of one update or objective, which a RunSpec holds under `options`.
OPTION_CHOICES: Mapping[str, tuple[str, ...]] = {"placement": ("houlsby", "pfeiffer", "parallel")}
OPTION_COUNTS, OPTION_FLAGS, OPTION_NUMBERS = (
    ("bottleneck", "prefix_tokens", "generations", "response_tokens", "ppo_epochs"),
    ("train_embeddings",),
    ("beta",),
)
OPTIONS = (*OPTION_CHOICES, *OPTION_COUNTS, *OPTION_FLAGS, *OPTION_NUMBERS)
OTHERS = (
    "model",
    "architecture",
    "model_params_b",
    "active_params_b",
    "target_modules",
    "gradient_checkpointing",
    "gpu",
    "framework",
    "tokens_total",
    "rows_total",
)
KEYS = (*CHOICES, *COUNTS, *FLAGS, *OPTIONS, *OTHERS)
EXAMPLE = (
    'such as [{"model": "Qwen/Qwen3-8B", "update": "lora", "rank": 16, "seq_len": 2048, "gpu": "RTX'
    ' 4090"}]'
)
DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
}
SPELLINGS = {
    "flash_attention": "flash_attention_2",
    "flash": "flash_attention_2",
    "flash_attn": "flash_attention_2",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw_fused",
    "fsdp2": "fsdp",
}


class GpuMatch(Protocol):
    """What a card's name was understood as."""

    @property
    def spec(self) -> GpuSpec | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


FindModel = Callable[..., tuple[ModelShape | None, list[str]]]
FindGpu = Callable[..., GpuMatch]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One spec that was understood."""

    spec: RunSpec
    model: str
    params_b: float | None
    active_params_b: float | None
    architecture: Mapping[str, Any] | None
    gpu: str | None
    tokens_total: int | None
    rows_total: int | None
    warnings: tuple[str, ...]


def specs_from_json(items: Sequence[Any]) -> list[Request | list[Fault]]:
    """Each item understood, or what is wrong with it."""
    return [request_of(item, at=f"[{index}]") for index, item in enumerate(items)]


def request_of(item: Any, *, at: str = "spec") -> Request | list[Fault]:
    """One spec, or every fault in it.

    Unknown keys are faults, unknown wording of a known key is one too.
    """
    if not isinstance(item, Mapping):
        return [Fault(what=f"{at}: an object is expected, found {type(item).__name__}")]
    faults = [
        Fault(
            what=f"{at}.{key}: unknown key",
            allowed=f"known: {', '.join(sorted(KEYS))}",
            hint=nearest(key, KEYS),
        )
        for key in item
        if key not in KEYS
    ]
    warnings: list[str] = []
    fields: dict[str, Any] = {}
    for key, known in {**CHOICES, **OPTION_CHOICES}.items():
        value = item.get(key)
        if value is None:
            continue
        text = str(value).strip().lower()
        text = (
            DTYPES.get(text, text.removeprefix("torch."))
            if key == "weights_dtype"
            else SPELLINGS.get(text, text)
        )
        if text not in known:
            faults.append(
                Fault(
                    what=f"{at}.{key}: '{value}' is not known",
                    allowed=f"known: {', '.join(known)}",
                    hint=nearest(text, known),
                )
            )
        fields[key] = text
    for key in (*COUNTS, *OPTION_COUNTS):
        value = item.get(key)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 1 <= value <= 10**9
            or value != int(value)
        ):
            faults.append(
                Fault(what=f"{at}.{key}: {value!r}", allowed="a whole number of at least 1")
            )
        else:
            fields[key] = int(value)
    for key in (*FLAGS, *OPTION_FLAGS):
        value = item.get(key)
        if value is not None and not isinstance(value, bool):
            faults.append(Fault(what=f"{at}.{key}: {value!r}", allowed="true or false"))
        elif value is not None:
            fields[key] = value
    for key in OPTION_NUMBERS:
        value = item.get(key)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            faults.append(Fault(what=f"{at}.{key}: {value!r}", allowed="a number of 0 or more"))
        elif value is not None:
            fields[key] = value
    sizes = {}
    for key in ("model_params_b", "active_params_b", "tokens_total", "rows_total"):
        value = item.get(key)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value <= 0
        ):
            faults.append(Fault(what=f"{at}.{key}: {value!r}", allowed="a number above 0"))
        elif value is not None:
            sizes[key] = float(value)
    faults.extend(_modules(item, at, fields))
    faults.extend(_checkpointing(item, at, fields))
    scheme = schemes().get(str(fields.get("update")))
    if scheme is not None and scheme.quantization:
        fields["update"] = scheme.update
        fields.setdefault("quantization", scheme.quantization)
    trains_all = scheme is not None and not update(scheme.update).is_module
    if trains_all and fields.get("quantization"):
        faults.append(
            Fault(
                what=f"{at}: full fine-tuning of a quantised model",
                allowed="quantised weights are frozen: update lora, adapter or prefix",
            )
        )
    architecture = item.get("architecture")
    if architecture is not None and not isinstance(architecture, Mapping):
        faults.append(
            Fault(what=f"{at}.architecture: an object with config.json's keys is expected")
        )
    if not item.get("model") and architecture is None and "model_params_b" not in sizes:
        faults.append(
            Fault(what=f"{at}: no model", allowed="give model, architecture or model_params_b")
        )
    if faults:
        return faults
    options = {key: fields.pop(key) for key in OPTIONS if key in fields}
    framework = item.get("framework")
    whole = {key: int(sizes[key]) for key in ("tokens_total", "rows_total") if key in sizes}
    return Request(
        spec=RunSpec(
            **fields, framework=None if framework is None else str(framework), options=options
        ),
        model=str(item.get("model") or ""),
        params_b=sizes.get("model_params_b"),
        active_params_b=sizes.get("active_params_b"),
        architecture=architecture,
        gpu=None if item.get("gpu") is None else str(item["gpu"]),
        tokens_total=whole.get("tokens_total"),
        rows_total=whole.get("rows_total"),
        warnings=tuple(warnings),
    )


def _modules(item: Mapping[str, Any], at: str, fields: dict[str, Any]) -> list[Fault]:
    value = item.get("target_modules")
    if value is None or value == []:
        return []
    if isinstance(value, str):
        fields["target_modules"] = value
    elif isinstance(value, list) and all(isinstance(name, str) for name in value):
        fields["target_modules"] = tuple(value)
    else:
        return [
            Fault(
                what=f"{at}.target_modules: {value!r}", allowed='a list of names, or "all-linear"'
            )
        ]
    return []


def _checkpointing(item: Mapping[str, Any], at: str, fields: dict[str, Any]) -> list[Fault]:
    value = item.get("gradient_checkpointing")
    if value is None:
        return []
    if not isinstance(value, bool) and value not in ("selective", "offload", "full"):
        return [
            Fault(
                what=f"{at}.gradient_checkpointing: {value!r}",
                allowed="true, false, selective or offload",
            )
        ]
    fields["gradient_checkpointing"] = value
    return []


def answer_spec(
    request: Request, *, find_model: FindModel, find_gpu: FindGpu | None = None
) -> dict[str, Any]:
    """The answer document of one spec; `peak_gib` null with a `reason` where it cannot be said."""
    warnings = list(request.warnings)
    try:
        shape, found = _shape(request, find_model)
    except (ConfigError, InputError) as error:
        return refuse_spec(str(error))
    warnings += found
    if shape is None:
        return refuse_spec("; ".join(found) or f"model '{request.model}' is not known")
    spec = request.spec
    on_cpu = request.gpu is not None and request.gpu.strip().lower() in ("none", "cpu")
    match = None
    if (
        request.gpu is not None
        and find_gpu is not None
        and not on_cpu
        and request.gpu.strip().lower() != "unknown"
    ):
        match = find_gpu(request.gpu, lenient=True)
    machine = None
    if match is not None:
        warnings += match.warnings
        machine = machine_of(match.spec)
        if match.spec is None:
            warnings.append(f"gpu '{request.gpu}' is not in the catalogue: no speed")
        elif machine is None:
            warnings.append(f"gpu '{request.gpu}': its speed is not known")
    return document_of(
        spec, shape, cpu=on_cpu, device=None if match is None else match.spec, machine=machine,
        tokens_total=request.tokens_total, rows_total=request.rows_total, warnings=warnings,
    )  # fmt: skip


def document_of(
    spec: RunSpec,
    shape: ModelShape,
    *,
    cpu: bool,
    device: GpuSpec | None,
    machine: Machine | None,
    tokens_total: int | None,
    rows_total: int | None,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The answer document of a spec on a device: memory with its terms, and speed where the
    machine's is known; refused where it cannot be.
    """
    fault = why_impossible(spec, shape)
    if fault:
        return refuse_spec(fault)
    memory = memory_estimate(spec, shape, cpu=cpu, device=device)
    if memory is None:
        return refuse_spec(f"the dimensions of '{shape.id}' are not known")
    document: dict[str, Any] = {
        "peak_gib": _gib(memory.peak_bytes), "low_gib": _gib(memory.low_bytes),
        "high_gib": _gib(memory.high_bytes), "moment": memory.peak.name,
        "terms": [{"name": term.name, "gib": _gib(term.size_bytes), "because": term.because,
        "source": term.source.title} for term in memory.peak.terms],
    }  # fmt: skip
    time = (
        None
        if machine is None
        else time_estimate(spec, shape, machine, tokens_total=tokens_total, rows_total=rows_total)
    )
    if time is not None:
        document |= {
            "tokens_per_s_per_gpu": round(time.tokens_per_s_per_gpu, 2),
            "step_s": round(time.step_s, 5),
            "time_because": time.because,
        }
        if time.duration_s is not None:
            document["hours"] = round(time.duration_s / 3600, 3)
    document["warnings"] = list(dict.fromkeys([*warnings, *_unread(spec, shape), *memory.warnings]))
    return document


def _shape(request: Request, find_model: FindModel) -> tuple[ModelShape | None, list[str]]:
    if request.architecture is not None:
        params = None if request.params_b is None else round(request.params_b * 1e9)
        return (
            shape_from_config(
                request.architecture,
                request.model or "architecture",
                origin="folder",
                source="architecture as given",
                params=params,
            ),
            [],
        )
    shape, warnings = find_model(request.model, params_b=request.params_b)
    if (
        shape is not None
        and request.active_params_b is not None
        and shape.origin == "size"
        and request.active_params_b * 1e9 < shape.params
    ):
        text = f"{request.params_b or shape.params / 1e9:g}B-A{request.active_params_b:g}B"
        again, _ = find_model(text, params_b=request.params_b or shape.params / 1e9)
        shape = again or shape
    return shape, warnings


def _unread(spec: RunSpec, shape: ModelShape) -> list[str]:
    """What of a spec counts for nothing, as warnings."""
    dims = dims_of(shape)
    sized = update(spec.update).size_key == "rank"  # low-rank matrices beside named layers
    unknown = unknown_targets(dims, spec) if dims is not None and sized else ()
    if dims is None or not unknown:
        return []
    return [
        f"target_modules: {shape.id} has no layer called {', '.join(unknown)}: left out; counted"
        f" are {', '.join(targets(dims, spec))}"
    ]


def why_impossible(spec: RunSpec, shape: ModelShape) -> str:
    """Why no such run can exist, or an empty string."""
    if shape.origin != "size" and shape.heads and shape.kv_heads and shape.heads % shape.kv_heads:
        return f"{shape.heads} attention heads do not divide into {shape.kv_heads} key-value heads"
    if (
        update(spec.update).size_key == "rank"
        and spec.rank
        and shape.hidden_size
        and spec.rank > shape.hidden_size
    ):
        return f"rank {spec.rank} is above the hidden size {shape.hidden_size}"
    if spec.offload_weights and (spec.sharding not in ("fsdp", "zero3") or spec.gpus < 2):
        return (
            f"offload_weights with sharding {spec.sharding or 'null'} on {spec.gpus} GPU: it is"
            " estimated for fsdp and zero3 on two or more"
        )
    return ""


def refuse_spec(reason: str) -> dict[str, Any]:
    """The answer where none can be given."""
    return {"peak_gib": None, "reason": reason, "warnings": []}


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 4)


def run_specs(
    text: str, *, find_model: FindModel, find_gpu: FindGpu | None = None
) -> list[dict[str, Any]]:
    """One answer document for each spec of a JSON list, in order.

    Raises InputError where the text is not a JSON list.
    """
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"specs{where}: not valid JSON", "a JSON list of run specs", EXAMPLE
        ) from None
    if not isinstance(items, list):
        raise InputError(
            f"specs: a JSON list is expected, found {type(items).__name__}",
            allowed=EXAMPLE,
            hint="put one spec into [ ]",
        )
    documents = []
    for parsed in specs_from_json(items):
        if isinstance(parsed, Request):
            documents.append(answer_spec(parsed, find_model=find_model, find_gpu=find_gpu))
        else:
            documents.append(
                refuse_spec(
                    "; ".join(
                        fault.what
                        + (
                            f" ({fault.allowed})"
                            if fault.allowed and len(fault.allowed) < 120
                            else ""
                        )
                        for fault in parsed
                    )
                )
            )
    return documents
