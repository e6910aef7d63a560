"""`advise estimate --specs`: run specs as people and scripts write them -> the answer document of
each.

A list is answered whole: what cannot be answered says why in its place, what is half known is read
by its known part and named in `warnings`. Looking up models and GPUs is the caller's (`find_model`,
`find_gpu`), so that this stays free of files.
A spec whose keys cannot go together gets no number (`impossible`), or a number and a warning
(`unused`). One that does not fit is answered with the largest batch that does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from msgspec.structs import asdict, replace

from advisor.estimate.memory.bands import WORDS, memory_fits
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.model.architecture import ConfigError, shape_from_config
from advisor.estimate.past_runs import (
    NO_RUNS,
    PastRuns,
    correct_memory,
    costs_of,
    gpu_machine,
    learned_document,
)
from advisor.estimate.run import Device, Run
from advisor.estimate.spec import request_of, run_of_spec
from advisor.estimate.targets import targets, unknown_targets
from advisor.estimate.time import Machine, machine_of
from advisor.estimate.types import MemoryEstimate
from advisor.estimate.whole_time import EvaluationRows
from advisor.ground.annotated import parse_json
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import ModelShape
from advisor.ground.units import GIB

# From the data sheets of Ada and Hopper (fp8), and of Blackwell (block-scaled mxfp8, nvfp4).
FIRST_CAPABILITY = {"fp8": (8, 9), "mxfp8": (10, 0), "nvfp4": (10, 0)}


def impossible(run: Run) -> Iterator[str]:
    """Every reason why no such run can exist."""
    model, stage, device, rows = run.model, run.stage, run.device, run.rows
    if model.origin != "size" and model.heads and model.kv_heads and model.heads % model.kv_heads:
        yield f"{model.heads} attention heads do not divide into {model.kv_heads} key-value heads"
    ranked = run.update.size_key == "rank"
    if ranked and run.rank and model.hidden_size and run.rank > model.hidden_size:
        yield f"rank {run.rank} is above the hidden size {model.hidden_size}"
    if device.offloads and (device.sharding not in ("fsdp", "zero3") or device.gpus < 2):
        yield (
            f"offload_weights with sharding {device.sharding or 'null'} on {device.gpus} GPU: it is"
            " estimated for fsdp and zero3 on two or more"
        )
    if run.optimizer_in_backward and stage.grad_accum > 1:
        yield (
            f"optimizer_in_backward with grad_accum {stage.grad_accum}: the step of each parameter"
            " frees its gradient, so none is left to add up (grad_accum 1, and a larger"
            " micro_batch_size)"
        )
    if run.is_ours and stage.packing and run.objective.sequences_per_row > 1:
        yield (
            f"packing with objective {stage.objective}: the two sides of a pair are compared by"
            " their place in the batch (packing false)"
        )
    for (before, _), (longest, _) in pairwise(run.lengths):
        if longest <= before:
            yield f"lengths: {longest} follows {before}; bins stand in ascending order"
            break
    first = FIRST_CAPABILITY.get(run.compute_dtype or "")
    found = None if device.gpu is None else device.gpu.compute_capability
    if device.gpu is not None and first is not None and found is not None and found < first:
        yield (
            f"compute_dtype {run.compute_dtype} with gpu {device.gpu.name}: it needs compute"
            f" capability {first[0]}.{first[1]}, that GPU has {found[0]}.{found[1]} (compute_dtype"
            " bfloat16)"
        )
    if rows.tokens_total and rows.rows_total and rows.rows_total > rows.tokens_total:
        yield (
            f"rows_total {rows.rows_total:,} with tokens_total {rows.tokens_total:,}: a row has one"
            " token at least"
        )


def unused(run: Run) -> Iterator[str]:
    """What of the run counts for nothing beside another of its keys or this model, as warnings."""
    model, stage, device, stated = run.model, run.stage, run.device, run.stated
    ranked = run.update.size_key == "rank"  # low-rank matrices beside named layers
    if ranked and run.is_sized and (unknown := unknown_targets(run)):
        yield (
            f"target_modules: {model.id} has no layer called {', '.join(unknown)}: left out;"
            f" counted are {', '.join(targets(run))}"
        )
    if run.rank is not None and not ranked:
        yield f"rank {run.rank} with update {stage.update}: it has no rank; left out"
    if stated.get("kbit_prepared") and stage.quantization is None:
        yield "kbit_prepared without quantization: nothing to prepare; left out"
    if stated.get("fp32_master_weights") and stage.weights_dtype == "float32":
        yield "fp32_master_weights with weights_dtype float32: the weights are their own masters"
    if stated.get("fp32_master_weights") is False and run.master:
        yield f"fp32_master_weights false with sharding {device.sharding}: DeepSpeed keeps them"
    half = stage.weights_dtype != "float32" or run.precision == "mixed"
    if stage.attention.startswith("flash_attention") and not half:
        yield (
            f"attention {stage.attention} with weights_dtype float32 and precision"
            f" {run.precision or 'pure'}: it computes in 16 bit alone; counted as it is said"
        )
    if (loss := stated.get("loss")) in ("fused", "chunked") and run.objective.logits == "none":
        yield f"loss {loss} with objective {stage.objective}: it has no logits; left out"
    if device.gpus < 2 and device.sharding in ("ddp", "fsdp"):
        yield f"sharding {device.sharding} with gpus {device.gpus}: nothing to divide; left out"
    if model.context_tokens and stage.seq_len > model.context_tokens:
        yield (
            f"seq_len {stage.seq_len:,} with model {model.id}: it was made for"
            f" {model.context_tokens:,} tokens"
        )
    cut = sum(rows for longest, rows in run.lengths if longest > stage.seq_len)
    if cut and not stage.packing:
        yield (
            f"lengths with seq_len {stage.seq_len:,}: up to {cut:,} rows are longer, and count as"
            " cut there"
        )
    if run.compute_dtype in FIRST_CAPABILITY:
        yield (
            f"compute_dtype {run.compute_dtype}: it counts for the time; memory is counted as with"
            " 16-bit products"
        )


NeedOf = Callable[[Run], MemoryEstimate | None]


def smallest_batch(run: Run) -> Run:
    """The run with as few rows at once as its objective takes, and activations recomputed if its
    update can.
    """
    return list(_smaller(run))[-1]


def fitting_batch(run: Run, need_of: NeedOf, limit_bytes: int) -> Run | None:
    """The run with the most rows at once that surely fit, recomputed activations last; else the
    smallest batch if that may fit; None if not.
    """
    found = list(_smaller(run))
    for one in found:
        memory = need_of(one)
        if memory is not None and memory_fits(memory, limit_bytes) in ("fits", "tight"):
            return one
    memory = need_of(found[-1])
    may = memory is not None and memory_fits(memory, limit_bytes) == "may_fit"
    return found[-1] if may else None


def _smaller(run: Run) -> Iterator[Run]:
    """The run, then with half the rows at a time, at last with recomputed activations."""
    stage = run.stage
    again = stage.gradient_checkpointing or not _refuses(run, "gradient_checkpointing", True)
    for recompute in dict.fromkeys((stage.gradient_checkpointing, again)):
        rows = stage.micro_batch_size
        while rows >= 1:
            if rows == stage.micro_batch_size or not _refuses(run, "micro_batch_size", rows):
                smaller = replace(
                    stage,
                    micro_batch_size=rows,
                    grad_accum=-(-stage.effective_batch_size // rows),
                    gradient_checkpointing=recompute,
                )
                yield replace(run, stage=smaller)
            rows //= 2


def _refuses(run: Run, key: str, value: Any) -> bool:
    methods = (run.objective, run.update)
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
    spec: Mapping[str, Any],
    *,
    find_model: FindModel,
    find_gpu: FindGpu | None = None,
    past: PastRuns = NO_RUNS,
    cpu: str | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """The answer document of a checked spec; `peak_gib` null with a `reason` if it cannot be said.

    Args:
        past: Runs that correct the estimate of a spec that names the GPU, or the CPU, they ran on.
        cpu: This machine's own processor, which `gpu: none` means.
        limit_bytes: Memory that the need is held against; None: there is no verdict.
    """
    try:
        shape, warnings = _shape(spec, find_model)
    except (ConfigError, InputError) as error:
        return refuse_spec(str(error))
    if shape is None:
        return refuse_spec("; ".join(warnings) or f"model '{spec.get('model', '')}' is not known")
    named = spec.get("gpu") or "unknown"
    on_cpu = named.strip().lower() in ("none", "cpu")
    gpu, machine = None, None
    if find_gpu is not None and not on_cpu and named.strip().lower() != "unknown":
        match = find_gpu(named, lenient=True)
        gpu, machine = match.spec, machine_of(match.spec)
        warnings = [*warnings, *match.warnings]
        if gpu is None:
            near = f" (did you mean {' or '.join(match.near)}?)" if match.near else ""
            warnings.append(f"gpu '{named}' is not in the catalogue{near}: no speed")
        elif machine is None:
            warnings.append(f"gpu '{named}': its speed is not known")
    return document_of(
        run_of_spec(spec, shape, Device(is_cpu=on_cpu, gpu=gpu, memory_bytes=limit_bytes)),
        machine,
        warnings=warnings,
        past=past,
        ran_on=cpu if on_cpu else gpu_machine(gpu),
    )


def document_of(
    run: Run,
    machine: Machine | None,
    *,
    warnings: Sequence[str],
    evaluated: EvaluationRows | None = None,
    past: PastRuns = NO_RUNS,
    ran_on: str | None = None,
) -> dict[str, Any]:
    """The answer document of a run: memory with its terms, whether that fits, and speed if the
    machine's is known; refused if it cannot be. With the rows that it is evaluated on, the whole
    time by its parts is in it; with past runs of the device `ran_on`, what they changed.

    `peak_gib` is what the run's counter would read, never above the device, `low_gib` to
    `high_gib` its band. `need_gib` must be there, and is not capped; `least_gib` is the need with
    the smallest batch and recomputed activations. With a limit, `fits` is the verdict on
    `need_low_gib` to `need_high_gib`, and `fits_with` the batch that fits where this one may not.
    """
    if fault := "; ".join(impossible(run)):
        return refuse_spec(fault)
    costs = costs_of(run, machine, evaluated=evaluated, past=past, ran_on=ran_on)
    if costs is None:
        return refuse_spec(f"the dimensions of '{run.model.id}' are not known")

    def memory_of(one: Run) -> MemoryEstimate | None:
        found = memory_estimate(one)
        return found and correct_memory(found, costs.lesson, one)[0]

    memory, time, times = costs.memory, costs.time, costs.times
    least = memory_of(smallest_batch(run)) or memory
    document: dict[str, Any] = {
        "peak_gib": _gib(memory.peak_bytes), "low_gib": _gib(memory.low_bytes),
        "high_gib": _gib(memory.high_bytes), "need_gib": _gib(memory.need_bytes),
        "need_low_gib": _gib(memory.need_low_bytes), "need_high_gib": _gib(memory.need_high_bytes),
        "least_gib": _gib(min(least.need_bytes, memory.need_bytes)),
        "band_because": [WORDS[doubt] for doubt in memory.doubts], "moment": memory.needed.name,
        "terms": [{"name": term.name, "gib": _gib(term.size_bytes), "because": term.because,
        "source": term.source.title} for term in memory.needed.terms],
    }  # fmt: skip
    if run.device.memory_bytes is not None:
        document |= _verdict(run, memory, memory_of, run.device.memory_bytes)
    if costs.learned is not None:
        document["learned"] = learned_document(costs.learned)
    if time is not None:
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
        if times is not None:
            parts = {**asdict(times), "total_s": times.total_s}
            document["times"] = {name: round(took_s, 1) for name, took_s in parts.items()}
    # Whoever looked the model up may have said the same of its shape, with the name beside it.
    more = [one for one in memory.warnings if not any(one in said for said in warnings)]
    document["warnings"] = list(dict.fromkeys([*warnings, *unused(run), *more]))
    return document


def _verdict(
    run: Run, memory: MemoryEstimate, memory_of: NeedOf, limit_bytes: int
) -> dict[str, Any]:
    fits = memory_fits(memory, limit_bytes)
    found: dict[str, Any] = {"limit_gib": _gib(limit_bytes), "fits": fits, "fits_with": None}
    if fits not in ("may_fit", "too_big"):
        return found
    instead = fitting_batch(run, memory_of, limit_bytes)
    need = None if instead is None else memory_of(instead)
    if instead is None or need is None or instead.stage == run.stage:
        return found
    return found | {
        "fits_with": {
            "micro_batch_size": instead.stage.micro_batch_size,
            "grad_accum": instead.stage.grad_accum,
            "gradient_checkpointing": instead.stage.gradient_checkpointing,
            "need_gib": _gib(need.need_bytes),
            "fits": memory_fits(need, limit_bytes),
        }
    }


def _shape(spec: Mapping[str, Any], find_model: FindModel) -> tuple[ModelShape | None, list[str]]:
    size, active = spec.get("model_params_b"), spec.get("active_params_b")
    if (config := spec.get("architecture")) is not None:
        own = shape_from_config(
            config, spec.get("model") or "architecture", origin="folder",
            source="architecture as given", params=None if size is None else round(size * 1e9),
        )  # fmt: skip
        return own, []
    shape, warnings = find_model(spec.get("model", ""), params_b=size)
    is_size = shape is not None and shape.origin == "size"
    if shape is not None and is_size and active is not None and active * 1e9 < shape.params:
        size = size or shape.params / 1e9
        again, _ = find_model(f"{size:g}B-A{active:g}B", params_b=size)
        shape = shape if again is None else replace(again, id=shape.id)
    return shape, warnings


def refuse_spec(reason: str) -> dict[str, Any]:
    """The answer if none can be given."""
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

    Raises InputError if the text is not a JSON list.
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
        spec = request_of(item, at=f"[{index}]")
        documents.append(
            refuse_spec("; ".join(map(_on_one_line, spec)))
            if isinstance(spec, list)
            else answer_spec(spec, find_model=find_model, find_gpu=find_gpu, past=past, cpu=cpu)
        )
    return documents


def _on_one_line(fault: Fault) -> str:
    more = [part for part in (fault.allowed, fault.hint) if part and len(part) < LONG]
    return f"{fault.headline} ({'; '.join(more)})" if more else fault.headline
