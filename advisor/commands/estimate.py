"""`advise estimate`: the memory and time of a plan, a single configuration, or a list."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from advisor.commands.options import Command, json_option
from advisor.commands.output import console, print_json, put
from advisor.data import profile
from advisor.data.templates.tokenizer import model_tokenizer
from advisor.estimate import hardware_machine
from advisor.estimate.answers import answer_spec, document_of, run_specs
from advisor.estimate.past_runs import PastRuns, machine_name
from advisor.estimate.spec import USUAL, request_of
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.extras import extras
from advisor.ground.files import MOST_BYTES, read_at_most
from advisor.ground.terminal import print_warning
from advisor.ground.types import DataProfile
from advisor.plan.entries import entries
from advisor.plan.read import read_plan, resolve_path
from advisor.probe import cpu_hardware
from advisor.probe.catalogue import find_gpu
from advisor.probe.names import count_and_name
from advisor.render.estimate import estimates_text
from advisor.situation.models import model_shape
from advisor.situation.names import shape_meant
from advisor.situation.of_plan import evaluation_rows, plan_hardware, plan_run
from advisor.situation.past_runs import read_past_runs

# The keys of a run spec that have a flag -> its type; the others are given with --specs.
SPEC_FLAGS: Mapping[str, tuple[type, str]] = {
    "model": (str, "A name from the model hub, or a folder."),
    "model_params_b": (float, "Its parameters in billions, where only that is known."),
    "objective": (str, "sft (default), cpt, dpo, ...: `advise rules` explains each."),
    "update": (str, "full, lora (default), qlora, prefix, adapter, ..."),
    "quantization": (str, "Of the frozen base: nf4 or int8."),
    "rank": (int, "Of a LoRA."),
    "optimizer": (str, "adamw, adamw_8bit, ...; default: what a plan would take."),
    "micro_batch_size": (int, "Rows at a time on one GPU; default 1."),
    "seq_len": (int, "Tokens of a row; default 1024."),
    "grad_accum": (int, "Micro-batches of an optimizer step; default 1."),
    "weights_dtype": (str, "float32, bfloat16 or float16."),
    "gradient_checkpointing": (str, "true or false: recompute activations."),
    "gpu": (str, "The graphics card, such as 'RTX 4090' or '2 x A100 80GB'."),
    "gpus": (int, "How many of them."),
    "sharding": (str, "Of several: ddp, fsdp, zero1, zero2 or zero3."),
}

FORMS = "give one of: a plan (--gpu may go with it), --specs, or the flags of one configuration"
WHOLE_PROCESS = "nvidia-smi"  # counts all memory of the process, which is what has to fit


def spec_options(command: Command) -> Command:
    """Add one option for each key of a run spec that has a flag."""
    for key, (kind, help_) in reversed(list(SPEC_FLAGS.items())):
        command = click.option(
            f"--{key.replace('_', '-')}",
            f"spec_{key}",
            type=kind,
            metavar="N" if kind in (int, float) else "TEXT",
            help=help_,
        )(command)
    return command


@click.command()
@click.argument("plan", required=False, metavar="[PLAN]", type=click.Path())
@click.option(
    "--specs",
    metavar="FILE",
    type=click.Path(),
    help="A JSON list of run specs, `-` for standard input; the answer is a list too.",
)
@spec_options
@json_option
def estimate(plan: str | None, specs: str | None, as_json: bool, **flags: Any) -> None:
    """Estimate memory and time for a plan, a single configuration, or a list.

    With --gpu a plan is estimated on that GPU.
    """
    documents = documents_of(
        plan, specs, {key.removeprefix("spec_"): value for key, value in flags.items()}
    )
    if as_json:
        print_json(documents if specs is not None or plan is not None else documents[0])
    else:
        put(estimates_text(documents, width=min(console().width, 120)))


def documents_of(
    plan: str | None, specs: str | None, flags: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The answers to whichever form was given.

    Raises InputError if two forms are mixed; only a GPU may go with a plan.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if specs:
        if plan or given:
            raise InputError(FORMS)
        return estimate_list(specs)
    if plan:
        if given.keys() - {"gpu"}:
            raise InputError(
                FORMS, hint="to change a plan, edit it; --gpu says whether it would fit that GPU"
            )
        return estimate_plan(Path(plan), given.get("gpu"))
    return [estimate_one(given)]


def estimate_list(source: str) -> list[dict[str, Any]]:
    """The answers to a JSON list of specs in a file, or on standard input (`-`).

    Raises InputError if the list cannot be read.
    """
    try:
        text = (
            sys.stdin.buffer.read() if source == "-" else read_at_most(Path(source), MOST_BYTES)
        ).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=f"--specs {source}") from None
    past, notes = read_past_runs()
    for note in notes:
        print_warning(note)
    return run_specs(text, find_model=shape_meant, find_gpu=find_gpu, past=past, cpu=own_cpu(past))


def estimate_one(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to the configuration that the flags describe. With a named GPU it counts the
    memory of the whole process, as nvidia-smi shows it.

    Raises InputError naming the field that cannot be used.
    """
    spec = {key: value for key, value in flags.items() if value is not None}
    if spec.get("gradient_checkpointing") in ("true", "false"):
        spec["gradient_checkpointing"] = spec["gradient_checkpointing"] == "true"
    if "model" not in spec and "model_params_b" not in spec:
        raise InputError(
            "nothing to estimate",
            allowed="a plan, a model (--model), or a list of specs in a file (--specs)",
            hint="such as:\n    advise estimate --model Qwen/Qwen3-8B --gpu 'RTX 4090'",
        )
    card = None
    if "gpu" in spec:
        count, spec["gpu"] = count_and_name(str(spec["gpu"]))
        if count is not None and spec.setdefault("gpus", count) != count:
            raise InputError(
                f"--gpu names {count} GPUs, --gpus names {spec['gpus']}",
                where="--gpu",
                hint="keep one of them",
            )
        card = find_gpu(spec["gpu"], lenient=True)
    limit = card.memory_bytes if card is not None else None
    request = request_of({**spec, "counter": WHOLE_PROCESS} if limit else spec, at="--")
    if isinstance(request, list):
        raise InputError(faults=request)
    past, notes = read_past_runs()
    document = answer_spec(
        request,
        find_model=shape_meant,
        find_gpu=find_gpu,
        past=past,
        cpu=own_cpu(past),
        limit_bytes=limit,
    )
    document["warnings"] += notes
    if document.get("peak_gib") is None:
        raise InputError(document["reason"], where="--model")
    document["warnings"] = [*_assumed(spec), *document["warnings"]]
    if limit is not None:
        document["counter"] = WHOLE_PROCESS
    elif card is not None:
        document["fits"] = "unknown"
    return document


def own_cpu(past: PastRuns) -> str | None:
    """This machine's processor, as past runs name it; asked of the system only if there are any."""
    return machine_name(cpu_hardware()) if past else None


def _assumed(stated: Mapping[str, Any]) -> list[str]:
    decides = ("update", "micro_batch_size", "seq_len", "gradient_checkpointing")
    missing = [
        f"--{key.replace('_', '-')} {str(USUAL[key]).lower()}"
        for key in decides
        if key not in stated
    ]
    return [f"not stated, so assumed: {', '.join(missing)}"] if missing else []


def estimate_plan(path: Path, gpu: str | None) -> list[dict[str, Any]]:
    """The answer for each stage of a launch file, by name: on the named GPU, else on the hardware
    that the plan was made for.

    Raises InputError if no stage can be estimated.
    """
    plan = read_plan(path)
    hardware, notes = plan_hardware(plan, gpu)
    folder = resolve_path(path, plan.model)
    shape, found = model_shape(str(folder) if folder.is_dir() else plan.model)
    if shape is None:
        raise InputError(
            f"{'; '.join(found) or f'model {plan.model} is not known'}",
            where=str(path),
            hint="`model:` in the plan is a directory, relative to the plan's own, or a hub id",
        )
    count_tokens = model_tokenizer(str(folder) if folder.is_dir() else plan.model)[0]
    past, unread = read_past_runs()
    documents = []
    untimed = (extras()[name].UNTIMED for name in plan.extras)
    unread = (*unread, *(f"{what} are not in these times" for what in untimed if what))
    for entry in entries(plan):
        data = resolve_path(path, entry.data.path)
        measured, missing = _profile(
            str(data) if data.exists() else entry.data.path, entry.data.mapping, count_tokens
        )
        run = plan_run(plan, entry.stage, shape, hardware, measured)
        run = replace(run, device=replace(run.device, counter=WHOLE_PROCESS))
        is_measured = measured is not None and measured.tokens is not None
        document = document_of(
            run,
            hardware_machine(hardware),
            warnings=[*notes, *found, *missing, *unread],
            evaluated=evaluation_rows(entry.stage, measured) if measured and is_measured else None,
            past=past,
            ran_on=machine_name(hardware),
        )
        if document["peak_gib"] is not None and hardware.kind != "cpu":
            document["counter"] = WHOLE_PROCESS
        if document.get("fits") == "may_fit":
            document["find_out"] = f"advise run {shlex.quote(str(path))} --dry-run"
        documents.append({"name": entry.name, **document})
    if all(document["peak_gib"] is None for document in documents):
        raise InputError(documents[0]["reason"], where=str(path))
    return documents


def _profile(
    path: str, mapping: Mapping[str, str] | None, count_tokens: Callable[[str], int] | None
) -> tuple[DataProfile | None, list[str]]:
    try:
        return profile(path, mapping=mapping, count_tokens=count_tokens), []
    except AdviseError as error:
        return None, [f"no duration of the whole run, since the data cannot be read: {error}"]
