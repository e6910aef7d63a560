"""`advise estimate`: run specs from a list, from flags or from a plan -> answer documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.errors import InputError
from advisor.types import ModelShape

# The keys of a run spec that have a flag; the others are given with --specs.
SPEC_FLAGS: Mapping[str, type] = {
    "model": str, "model_params_b": float, "objective": str, "update": str, "quantization": str, "rank": int, "optimizer": str,
    "micro_batch_size": int, "seq_len": int, "grad_accum": int, "weights_dtype": str, "gradient_checkpointing": str, "gpu": str, "gpus": int, "sharding": str,
}  # fmt: skip


def find_model(name: str, params_b: float | None) -> tuple[ModelShape | None, list[str]]:
    """A model's shape without asking the network."""
    from advisor.shapes import model_shape

    shape, notes = model_shape(name, params_b=params_b)
    return shape, list(notes)


def listed_estimates(source: str) -> list[dict[str, Any]]:
    """The answers to a JSON list of specs, read from a file or from standard input (`-`)."""
    from advisor.estimate.specs import run_specs
    from advisor.probe.catalogue import find_gpu

    try:
        text = (sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--specs {source}: cannot be read: {error}") from None
    return run_specs(text, find_model=find_model, find_gpu=find_gpu)


def single_estimate(flags: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The answer to one spec and the card's memory in GiB. Raises InputError naming the field that cannot be."""
    from advisor.estimate.specs import answer, request_of
    from advisor.probe.catalogue import find_gpu
    from advisor.units import gib

    spec = {key: value for key, value in flags.items() if value is not None}
    if spec.get("gradient_checkpointing") in ("true", "false"):
        spec["gradient_checkpointing"] = spec["gradient_checkpointing"] == "true"
    if "model" not in spec and "model_params_b" not in spec:
        raise InputError("nothing to estimate", allowed="advise estimate PLAN, advise estimate --model NAME ..., or advise estimate --specs FILE")
    request = request_of(spec, at="estimate")
    if isinstance(request, list):
        raise InputError(faults=request)
    document = answer(request, find_model=find_model, find_gpu=find_gpu)
    if document.get("peak_gib") is None:
        raise InputError(f"estimate: {document['reason']}")
    card = find_gpu(str(spec["gpu"])).spec if "gpu" in spec else None
    return document, gib(card.memory_bytes) if card is not None and card.memory_bytes else None


def plan_estimates(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and answers of a launch file's stages."""
    from advisor.estimate.specs import Request, answer
    from advisor.launch.expect import run_spec
    from advisor.plan.entries import entries
    from advisor.plan.read import read_plan, resolved_path

    plan = read_plan(path)
    folder = resolved_path(path, plan.model)
    names, documents = [], []
    for entry in entries(plan):
        request = Request(
            spec=run_spec(plan, entry.stage), model=str(folder) if folder.is_dir() else plan.model, params_b=None, active_params_b=None, architecture=None,
            gpu="none" if plan.launch.device == "cpu" else None, tokens_total=None, rows_total=None, warnings=(),
        )  # fmt: skip
        names.append(entry.name)
        documents.append(answer(request, find_model=find_model))
    return names, documents


def documents_of(plan: str | None, specs: str | None, flags: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]], float | None]:
    """Titles, answers and the card's memory, of whichever form was given. Raises InputError where two forms are mixed."""
    given = [bool(plan), bool(specs), any(value is not None for value in flags.values())]
    if sum(given) > 1:
        raise InputError("give one of: a plan, --specs, or the flags of one spec")
    if specs:
        return [], listed_estimates(specs), None
    if plan:
        names, documents = plan_estimates(Path(plan))
        return names, documents, None
    document, limit_gib = single_estimate(flags)
    return [], [document], limit_gib


def as_json(documents: list[dict[str, Any]], *, listed: bool) -> str:
    """One document for one spec, a list for a list."""
    return json.dumps(documents if listed else documents[0], ensure_ascii=False, allow_nan=False, indent=1)
