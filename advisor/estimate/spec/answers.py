"""`advise estimate --specs`: run specs as people and scripts write them -> values, and the answer
document of each.

A list is answered whole: what cannot be answered says why in its place, what is half known is read
by its known part and named in `warnings`. Looking up models and cards is the caller's
(`find_model`, `find_gpu`), so that this stays free of files.
A spec whose keys cannot go together gets no number (`impossible`), or a number and a warning
(`unused`). One that does not fit is answered with the largest batch that does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from advisor.estimate.memory.bands import WORDS
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.memory.verdict import memory_fits
from advisor.estimate.model.architecture import ConfigError, shape_from_config
from advisor.estimate.model.dims import dims_of, targets, unknown_targets
from advisor.estimate.past.corrections import (
    learned,
    learned_document,
    time_with_lesson,
    with_lesson,
)
from advisor.estimate.past.runs import NO_RUNS, PastRuns, gpu_machine
from advisor.estimate.spec.read import Request, request_of
from advisor.estimate.time import Machine, machine_of, time_estimate
from advisor.estimate.types import MemoryEstimate, RunSpec
from advisor.estimate.whole_time import Looked, time_by_parts
from advisor.ground.annotated import parse_json
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import GpuSpec, ModelShape
from advisor.ground.units import GIB
from advisor.methods import objective, update

# From the data sheets of Ada and Hopper (fp8), and of Blackwell (block-scaled mxfp8, nvfp4).
FIRST_CAPABILITY = {"fp8": (8, 9), "mxfp8": (10, 0), "nvfp4": (10, 0)}


def impossible(
    spec: RunSpec,
    shape: ModelShape,
    *,
    device: GpuSpec | None = None,
    tokens_total: int | None = None,
    rows_total: int | None = None,
) -> Iterator[str]:
    """Every reason why no such run can exist."""
    if shape.origin != "size" and shape.heads and shape.kv_heads and shape.heads % shape.kv_heads:
        yield f"{shape.heads} attention heads do not divide into {shape.kv_heads} key-value heads"
    ranked = update(spec.update).size_key == "rank"
    if ranked and spec.rank and shape.hidden_size and spec.rank > shape.hidden_size:
        yield f"rank {spec.rank} is above the hidden size {shape.hidden_size}"
    if spec.offload_weights and (spec.sharding not in ("fsdp", "zero3") or spec.gpus < 2):
        yield (
            f"offload_weights with sharding {spec.sharding or 'null'} on {spec.gpus} GPU: it is"
            " estimated for fsdp and zero3 on two or more"
        )
    if spec.optimizer_in_backward and spec.grad_accum > 1:
        yield (
            f"optimizer_in_backward with grad_accum {spec.grad_accum}: the step of each parameter"
            " frees its gradient, so none is left to add up (grad_accum 1, and a larger"
            " micro_batch_size)"
        )
    if spec.packing and objective(spec.objective).sequences_per_row > 1:
        yield (
            f"packing with objective {spec.objective}: the two sides of a pair are compared by"
            " their place in the batch (packing false)"
        )
    for (before, _), (longest, _) in pairwise(spec.lengths):
        if longest <= before:
            yield f"lengths: {longest} follows {before}; bins stand in ascending order"
            break
    first = FIRST_CAPABILITY.get(spec.compute_dtype or "")
    found = None if device is None else device.compute_capability
    if device is not None and first is not None and found is not None and found < first:
        yield (
            f"compute_dtype {spec.compute_dtype} with gpu {device.name}: it needs compute"
            f" capability {first[0]}.{first[1]}, that GPU has {found[0]}.{found[1]} (compute_dtype"
            " bfloat16)"
        )
    if tokens_total and rows_total and rows_total > tokens_total:
        yield (
            f"rows_total {rows_total:,} with tokens_total {tokens_total:,}: a row has one token at"
            " least"
        )


def unused(spec: RunSpec, shape: ModelShape) -> Iterator[str]:
    """What of the spec counts for nothing beside another of its keys or this model, as warnings."""
    dims = dims_of(shape)
    ranked = update(spec.update).size_key == "rank"  # low-rank matrices beside named layers
    unknown = unknown_targets(dims, spec) if dims is not None and ranked else ()
    if dims is not None and unknown:
        yield (
            f"target_modules: {shape.id} has no layer called {', '.join(unknown)}: left out;"
            f" counted are {', '.join(targets(dims, spec))}"
        )
    if spec.rank is not None and not ranked:
        yield f"rank {spec.rank} with update {spec.update}: it has no rank; left out"
    if spec.kbit_prepared and spec.quantization is None:
        yield "kbit_prepared without quantization: nothing to prepare; left out"
    if spec.fp32_master_weights and spec.weights_dtype == "float32":
        yield "fp32_master_weights with weights_dtype float32: the weights are their own masters"
    half = spec.weights_dtype != "float32" or spec.precision == "mixed"
    if spec.attention.startswith("flash_attention") and not half:
        yield (
            f"attention {spec.attention} with weights_dtype float32 and precision"
            f" {spec.precision or 'pure'}: it computes in 16 bit alone; counted as it is said"
        )
    if spec.loss in ("fused", "chunked") and objective(spec.objective).logits == "none":
        yield f"loss {spec.loss} with objective {spec.objective}: it has no logits; left out"
    if spec.gpus < 2 and spec.sharding in ("ddp", "fsdp"):
        yield f"sharding {spec.sharding} with gpus {spec.gpus}: nothing to divide; left out"
    if shape.context_tokens and spec.seq_len > shape.context_tokens:
        yield (
            f"seq_len {spec.seq_len:,} with model {shape.id}: it was made for"
            f" {shape.context_tokens:,} tokens"
        )
    cut = sum(rows for longest, rows in spec.lengths if longest > spec.seq_len)
    if cut and not spec.packing:
        yield (
            f"lengths with seq_len {spec.seq_len:,}: up to {cut:,} rows are longer, and count as"
            " cut there"
        )
    if spec.compute_dtype in FIRST_CAPABILITY:
        yield (
            f"compute_dtype {spec.compute_dtype}: it counts for the time; memory is counted as with"
            " 16-bit products"
        )


NeedOf = Callable[[RunSpec], MemoryEstimate | None]


def smallest_batch(spec: RunSpec) -> RunSpec:
    """The spec with as few rows at once as its objective takes, and activations recomputed if its
    update can.
    """
    return list(_smaller(spec))[-1]


def fitting_batch(spec: RunSpec, need_of: NeedOf, limit_bytes: int) -> RunSpec | None:
    """The spec with the most rows at once that surely fit, recomputed activations last; else the
    smallest batch if that may fit; None if not.
    """
    found = list(_smaller(spec))
    for one in found:
        memory = need_of(one)
        if memory is not None and memory_fits(memory, limit_bytes) in ("fits", "tight"):
            return one
    memory = need_of(found[-1])
    may = memory is not None and memory_fits(memory, limit_bytes) == "may_fit"
    return found[-1] if may else None


def _smaller(spec: RunSpec) -> Iterator[RunSpec]:
    """The spec, then with half the rows at a time, at last with recomputed activations."""
    again = spec.gradient_checkpointing or not _refused(spec, "gradient_checkpointing", True)
    kinds = dict.fromkeys((spec.gradient_checkpointing, spec.gradient_checkpointing or again))
    for recompute in kinds:
        rows = spec.micro_batch_size
        while rows >= 1:
            accum = -(-spec.grad_accum * spec.micro_batch_size // rows)
            if rows == spec.micro_batch_size or not _refused(spec, "micro_batch_size", rows):
                yield replace(
                    spec,
                    micro_batch_size=rows,
                    grad_accum=accum,
                    gradient_checkpointing=recompute,
                )
            rows //= 2


def _refused(spec: RunSpec, key: str, value: Any) -> bool:
    methods = (objective(spec.objective), update(spec.update))
    return any(
        one.key == key and value in one.values for method in methods for one in method.refuses
    )


LONG = 120  # characters: a list of all keys does not go into a reason
EXAMPLE = (
    'such as [{"model": "Qwen/Qwen3-8B", "update": "lora", "rank": 16, "seq_len": 2048, "gpu": "RTX'
    ' 4090"}]'
)

FindModel = Callable[..., tuple[ModelShape | None, list[str]]]
FindGpu = Callable[..., Any]  # -> a value with `spec` and `warnings`


def answer_spec(
    request: Request,
    *,
    find_model: FindModel,
    find_gpu: FindGpu | None = None,
    past: PastRuns = NO_RUNS,
    cpu: str | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """The answer document of one spec; `peak_gib` null with a `reason` where it cannot be said.

    Args:
        past: Runs that correct the estimate of a spec that names the GPU, or the CPU, they ran on.
        cpu: This machine's own processor, which `gpu: none` means.
        limit_bytes: Memory that the need is held against; None: there is no verdict.
    """
    warnings: list[str] = []
    try:
        shape, found = _shape(request, find_model)
    except (ConfigError, InputError) as error:
        return refuse_spec(str(error))
    warnings += found
    if shape is None:
        return refuse_spec("; ".join(found) or f"model '{request.model}' is not known")
    named = (request.gpu or "unknown").strip().lower()
    on_cpu = named in ("none", "cpu")
    card, machine = None, None
    if find_gpu is not None and not on_cpu and named != "unknown":
        match = find_gpu(request.gpu, lenient=True)
        card, machine = match.spec, machine_of(match.spec)
        warnings += match.warnings
        if card is None:
            warnings.append(f"gpu '{request.gpu}' is not in the catalogue: no speed")
        elif machine is None:
            warnings.append(f"gpu '{request.gpu}': its speed is not known")
    return document_of(
        request.spec, shape, cpu=on_cpu, device=card, machine=machine,
        tokens_total=request.tokens_total, rows_total=request.rows_total, warnings=warnings,
        unpacked=request.unpacked, past=past,
        ran_on=cpu if on_cpu else gpu_machine(card), limit_bytes=limit_bytes,
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
    unpacked: bool = False,
    looked: Looked | None = None,
    past: PastRuns = NO_RUNS,
    ran_on: str | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """The answer document of a spec on a device: memory with its terms, whether that fits, and
    speed where the machine's is known; refused where it cannot be. With `looked`, what the stage is
    measured on, the whole time by its parts is in it; with past runs of the device `ran_on`, what
    they changed.

    `peak_gib` is what the spec's counter would read, never above the device, `low_gib` to
    `high_gib` its band. `need_gib` must be there, and is not capped; `least_gib` is the need with
    the smallest batch and recomputed activations. With a limit, `fits` is the verdict on
    `need_low_gib` to `need_high_gib`, and `fits_with` the batch that fits where this one may not.
    """
    reasons = impossible(
        spec, shape, device=device, tokens_total=tokens_total, rows_total=rows_total
    )
    if fault := "; ".join(reasons):
        return refuse_spec(fault)

    lesson = past.lesson(spec, shape, ran_on) if past else None

    def by_formula(one: RunSpec) -> MemoryEstimate | None:
        return memory_estimate(one, shape, cpu=cpu, device=device, device_bytes=limit_bytes)

    def memory_of(one: RunSpec) -> MemoryEstimate | None:
        found = by_formula(one)
        return found and with_lesson(found, lesson, counter=spec.counter, cpu=cpu)[0]

    untaught = by_formula(spec)
    if untaught is None:
        return refuse_spec(f"the dimensions of '{shape.id}' are not known")
    memory, correction = with_lesson(untaught, lesson, counter=spec.counter, cpu=cpu)
    taught = learned(
        lesson,
        correction,
        untaught.peak.total_bytes,
        memory.peak.total_bytes,
        timed=machine is not None,
    )
    least = memory_of(smallest_batch(spec)) or memory
    document: dict[str, Any] = {
        "peak_gib": _gib(memory.peak_bytes), "low_gib": _gib(memory.low_bytes),
        "high_gib": _gib(memory.high_bytes), "need_gib": _gib(memory.need_bytes),
        "need_low_gib": _gib(memory.need_low_bytes), "need_high_gib": _gib(memory.need_high_bytes),
        "least_gib": _gib(min(least.need_bytes, memory.need_bytes)),
        "band_because": [WORDS[doubt] for doubt in memory.doubts], "moment": memory.needed.name,
        "terms": [{"name": term.name, "gib": _gib(term.size_bytes), "because": term.because,
        "source": term.source.title} for term in memory.needed.terms],
    }  # fmt: skip
    if limit_bytes is not None:
        document |= _verdict(spec, memory, memory_of, limit_bytes)
    if taught is not None:
        document["learned"] = learned_document(taught)
    time = None
    if machine is not None:
        time = time_estimate(
            spec, shape, machine,
            tokens_total=tokens_total, rows_total=rows_total, unpacked=unpacked,
        )  # fmt: skip
    if time is not None and machine is not None:
        time = time_with_lesson(time, lesson)
        document |= {
            "tokens_per_s_per_gpu": round(time.tokens_per_s_per_gpu, 2),
            "step_s": round(time.step_s, 5),
            "step_low_s": round(time.low_s, 5),
            "step_high_s": round(time.high_s, 5),
            "parts": [{"name": name, "s": round(took_s, 6)} for name, took_s in time.parts],
            "time_because": time.because,
        }
        warnings = [*warnings, *time.warnings]
        if time.duration_s is not None:
            document["hours"] = round(time.duration_s / 3600, 3)
            if looked is not None:
                whole = time_by_parts(
                    spec, shape, machine, looked, train_s=time.duration_s, steps=time.steps,
                    low=time.low_s / time.step_s, high=time.high_s / time.step_s,
                )  # fmt: skip
                document["times"] = {
                    name: round(took_s, 1) for name, took_s in asdict(whole).items()
                } | {"total_s": round(whole.total_s, 1)}
    # Whoever looked the model up may have said the same of its shape, with the name beside it.
    more = [one for one in memory.warnings if not any(one in said for said in warnings)]
    document["warnings"] = list(dict.fromkeys([*warnings, *unused(spec, shape), *more]))
    return document


def _verdict(
    spec: RunSpec, memory: MemoryEstimate, memory_of: NeedOf, limit_bytes: int
) -> dict[str, Any]:
    """The limit, the verdict, and the batch that fits where this one may not."""
    fits = memory_fits(memory, limit_bytes)
    instead = (
        fitting_batch(spec, memory_of, limit_bytes) if fits in ("may_fit", "too_big") else None
    )
    need = None if instead is None else memory_of(instead)
    found: dict[str, Any] = {"limit_gib": _gib(limit_bytes), "fits": fits, "fits_with": None}
    if instead is None or need is None or instead == spec:
        return found
    return found | {
        "fits_with": {
            "micro_batch_size": instead.micro_batch_size,
            "grad_accum": instead.grad_accum,
            "gradient_checkpointing": bool(instead.gradient_checkpointing),
            "need_gib": _gib(need.need_bytes),
            "fits": memory_fits(need, limit_bytes),
        }
    }


def _shape(request: Request, find_model: FindModel) -> tuple[ModelShape | None, list[str]]:
    if request.architecture is not None:
        params = None if request.params_b is None else round(request.params_b * 1e9)
        own = shape_from_config(
            request.architecture, request.model or "architecture", origin="folder",
            source="architecture as given", params=params,
        )  # fmt: skip
        return own, []
    shape, warnings = find_model(request.model, params_b=request.params_b)
    if (
        shape is not None
        and request.active_params_b is not None
        and shape.origin == "size"
        and request.active_params_b * 1e9 < shape.params
    ):
        text = f"{request.params_b or shape.params / 1e9:g}B-A{request.active_params_b:g}B"
        again, _ = find_model(text, params_b=request.params_b or shape.params / 1e9)
        shape = shape if again is None else replace(again, id=shape.id)
    return shape, warnings


def refuse_spec(reason: str) -> dict[str, Any]:
    """The answer where none can be given."""
    return {"peak_gib": None, "reason": reason, "warnings": []}


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 4)


def run_specs(
    text: str,
    *,
    find_model: FindModel,
    find_gpu: FindGpu | None = None,
    past: PastRuns = NO_RUNS,
    cpu: str | None = None,
) -> list[dict[str, Any]]:
    """One answer document for each spec of a JSON list, in order; `past` and `cpu` as for one.

    Raises InputError where the text is not a JSON list.
    """
    try:
        items = parse_json(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            "not valid JSON", "a JSON list of run specs", EXAMPLE, where=f"specs{where}"
        ) from None
    if not isinstance(items, list):
        raise InputError(
            f"a JSON list is expected, found {type(items).__name__}",
            where="specs",
            allowed=EXAMPLE,
            hint="put one spec into [ ]",
        )
    documents = []
    for index, item in enumerate(items):
        request = request_of(item, at=f"[{index}]")
        documents.append(
            refuse_spec("; ".join(map(_on_one_line, request)))
            if isinstance(request, list)
            else answer_spec(request, find_model=find_model, find_gpu=find_gpu, past=past, cpu=cpu)
        )
    return documents


def _on_one_line(fault: Fault) -> str:
    more = [part for part in (fault.allowed, fault.hint) if part and len(part) < LONG]
    return f"{fault.headline} ({'; '.join(more)})" if more else fault.headline
