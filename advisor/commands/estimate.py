"""`advise estimate`: run specs from a list, from flags or from a plan -> answer documents."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import Hardware, ModelShape

if TYPE_CHECKING:
    from advisor.ground.types import DataProfile
    from advisor.plan.model import Plan

# The keys of a run spec that have a flag; the others are given with --specs.
SPEC_FLAGS: Mapping[str, type] = {
    "model": str, "model_params_b": float, "objective": str, "update": str, "quantization": str,
    "rank": int, "optimizer": str,
    "micro_batch_size": int, "seq_len": int, "grad_accum": int, "weights_dtype": str,
    "gradient_checkpointing": str, "gpu": str, "gpus": int, "sharding": str,
}  # fmt: skip

FORMS = "give one of: a plan (with --gpu or without), --specs, or the flags of one spec"
WHOLE_PROCESS = "nvidia-smi"  # the counter of what has to fit: all that the process occupies
CARDS_OF_ORIGIN = re.compile(
    r"(\d+ x .+) \([a-z]+\)$"
)  # as a plan writes them: '2 x RTX 4090 (probed)'


def find_model(name: str, params_b: float | None) -> tuple[ModelShape | None, list[str]]:
    """A model's shape without asking the network."""
    from advisor.situation.shapes import model_shape

    shape, notes = model_shape(name, params_b=params_b)
    return shape, list(notes)


def estimate_list(source: str) -> list[dict[str, Any]]:
    """The answers to a JSON list of specs, read from a file or from standard input (`-`)."""
    from advisor.estimate.specs import run_specs
    from advisor.probe.catalogue import find_gpu

    try:
        text = (sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()).decode(
            "utf-8-sig"
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--specs {source}: cannot be read: {error}") from None
    return run_specs(text, find_model=find_model, find_gpu=find_gpu)


def estimate_one(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one spec; beside a named card it is what the card's own tool would show.

    Raises InputError naming the field that cannot be.
    """
    from advisor.estimate.specs import answer_spec, request_of
    from advisor.probe.catalogue import find_gpu
    from advisor.probe.names import count_and_name

    spec = {key: value for key, value in flags.items() if value is not None}
    if spec.get("gradient_checkpointing") in ("true", "false"):
        spec["gradient_checkpointing"] = spec["gradient_checkpointing"] == "true"
    if "model" not in spec and "model_params_b" not in spec:
        raise InputError(
            "nothing to estimate",
            allowed=(
                "advise estimate PLAN, advise estimate --model NAME ..., or advise estimate --specs"
                " FILE"
            ),
        )
    card = None
    if "gpu" in spec:
        count, spec["gpu"] = count_and_name(str(spec["gpu"]))
        if count is not None and spec.setdefault("gpus", count) != count:
            raise InputError(
                f"--gpu says {count} cards, --gpus says {spec['gpus']}", hint="keep one of them"
            )
        card = find_gpu(spec["gpu"], lenient=True)
    limit = card.memory_bytes if card is not None else None
    request = request_of({**spec, "counter": WHOLE_PROCESS} if limit else spec, at="estimate")
    if isinstance(request, list):
        raise InputError(faults=request)
    document = answer_spec(request, find_model=find_model, find_gpu=find_gpu)
    if document.get("peak_gib") is None:
        raise InputError(f"estimate: {document['reason']}")
    return _held_against(document, limit, counter=request.spec.counter if limit else None)


def _held_against(
    document: dict[str, Any], limit_bytes: int | None, *, counter: str | None
) -> dict[str, Any]:
    """The answer with the counter of the card that it is of, and whether it fits the device, judged
    as advice judges it.
    """
    from advisor.estimate import fits_in
    from advisor.ground.units import GIB

    limit = (
        {}
        if limit_bytes is None
        else {
            "limit_gib": round(limit_bytes / GIB, 4),
            "fits": fits_in(round(document["peak_gib"] * GIB), limit_bytes),
        }
    )
    return {**document, **({} if counter is None else {"counter": counter}), **limit}


def estimate_plan(path: Path, gpu: str | None) -> list[dict[str, Any]]:
    """The answer for each stage of a launch file, by name: on the card that is named, else on what
    the plan was made for. Raises InputError where none can be given.
    """
    from advisor.estimate import hardware_machine
    from advisor.estimate.specs import document_of
    from advisor.launch.expected import amounts, run_spec
    from advisor.plan.entries import entries
    from advisor.plan.read import read_plan, resolve_path

    plan = read_plan(path)
    hardware, notes = _hardware_of(plan, gpu)
    folder = resolve_path(path, plan.model)
    shape, found = find_model(str(folder) if folder.is_dir() else plan.model, None)
    if shape is None:
        raise InputError(
            f"{path}: {'; '.join(found) or f'model {plan.model} is not known'}",
            hint="`model:` in the plan names a folder, relative to the plan's own, or a hub id",
        )
    device = hardware.gpus[0].spec if hardware.gpus else None
    documents = []
    for entry in entries(plan):
        data, spec = (
            resolve_path(path, entry.data.path),
            replace(run_spec(plan, entry.stage), counter=WHOLE_PROCESS),
        )
        profile, missing = _profile(
            str(data) if data.exists() else entry.data.path, entry.data.mapping
        )
        tokens, rows = amounts(plan, entry.stage, profile, None)
        document = document_of(
            spec, shape, cpu=hardware.kind == "cpu", device=device,
            machine=hardware_machine(hardware),
            tokens_total=tokens, rows_total=rows, warnings=[*notes, *found, *missing],
        )  # fmt: skip
        if document["peak_gib"] is not None:
            document = _held_against(
                document,
                hardware.device_memory_bytes,
                counter=None if hardware.kind == "cpu" else spec.counter,
            )
        documents.append({"name": entry.name, **document})
    if all(document["peak_gib"] is None for document in documents):
        raise InputError(f"{path}: {documents[0]['reason']}")
    return documents


def _profile(path: str, mapping: Mapping[str, str] | None) -> tuple[DataProfile | None, list[str]]:
    """The data of a stage measured, or why there is no whole time."""
    from advisor.data import profile

    try:
        return profile(path, mapping=mapping), []
    except AdviseError as error:
        return None, [f"no time of the whole run, since the data cannot be read: {error}"]


def _hardware_of(plan: Plan, gpu: str | None) -> tuple[Hardware, list[str]]:
    """What the plan is held against: the named card, the hardware that was stated when it was made,
    this machine, or the cards it was made for.
    """
    from advisor.launch.expected import device_hardware
    from advisor.probe import probe, stated_hardware

    if gpu is not None:
        hardware, notes = stated_hardware(gpu, from_flag=True)
        if len(hardware.gpus) not in (0, 1, plan.launch.processes):
            raise InputError(
                f"--gpu says {len(hardware.gpus)} cards, the plan starts {plan.launch.processes}"
                " processes (launch.processes)",
                hint="name one card, or edit the plan",
            )
        return replace(hardware, gpus=hardware.gpus[:1] * plan.launch.processes), list(notes)
    stated = plan.origin.answers.get("gpu")
    if stated is not None:
        card: dict[str, Any] = {"name": stated} if isinstance(stated, str) else dict(stated)
        hardware, notes = stated_hardware(
            card.get("name"),
            count=card.get("count"),
            memory_gib=card.get("vram_gib"),
            from_flag=False,
        )
        return device_hardware(plan, hardware), list(notes)
    here = device_hardware(plan, probe())
    if here.gpus or plan.launch.device == "cpu":
        return here, []
    cards = CARDS_OF_ORIGIN.match(plan.origin.hardware or "")
    hardware, notes = stated_hardware(cards[1] if cards else "unknown", from_flag=False)
    why = "the plan is for a graphics card, and this machine has none"
    return hardware, [
        (
            f"{why}: held against what it was made for"
            if hardware.gpus
            else f"{why}: --gpu NAME holds it against one"
        ),
        *notes,
    ]


def documents_of(
    plan: str | None, specs: str | None, flags: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The answers of whichever form was given.

    Raises InputError where two forms are mixed; a plan goes with a card.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if specs:
        if plan or given:
            raise InputError(FORMS)
        return estimate_list(specs)
    if plan:
        if given.keys() - {"gpu"}:
            raise InputError(
                FORMS,
                hint="to change a plan, edit it; --gpu NAME tells whether it would fit that card",
            )
        return estimate_plan(Path(plan), given.get("gpu"))
    return [estimate_one(given)]


def as_json(documents: list[dict[str, Any]], *, listed: bool) -> str:
    """One document for one spec, a list for a list."""
    return json.dumps(
        documents if listed else documents[0], ensure_ascii=False, allow_nan=False, indent=1
    )
