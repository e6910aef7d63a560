"""A stage of a plan as the estimator takes it: its settings, the rows it reads, the model's shape
and the part of the machine that it uses. Nothing is asked of the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from advisor.estimate.padding import padded_tokens
from advisor.estimate.types import RunSpec
from advisor.estimate.whole_time import Looked
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import DataProfile, Gpu, Hardware, ModelShape, TokenStats
from advisor.methods import objective, update
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from advisor.plan.read import resolve_path
from advisor.plan.vllm import asks_server
from advisor.probe import probe, stated_hardware


def run_spec(
    plan: Plan,
    stage: Stage,
    *,
    profile: DataProfile | None = None,
    shape: ModelShape | None = None,
    cpu: bool = False,
    max_steps: int | None = None,
) -> RunSpec:
    """The settings of a stage in the form the estimator takes, with the lengths of its rows where
    its data is known.

    Args:
        profile: The data of the stage.
        shape: The plan's model.
        cpu: It trains on the processor.
        max_steps: The limit of a trial run, which may not meet the longest rows.
    """
    from advisor.estimate.stages import stage_spec, with_rows

    options = key_specs().effective(stage.options, objective=stage.objective, update=stage.update)
    own = {field.name: getattr(stage, field.name) for field in fields(stage)}
    if options.get("teacher"):
        own["teacher_params"] = teacher_params(plan, stage)
    server = plan.launch.vllm
    if asks_server(stage) and server is not None and server.python and not server.gpus:
        own["server_memory"] = server.memory
    spec = stage_spec(
        stage.objective,
        stage.update,
        stage.quantization,
        {**own, **options, "offload": plan.launch.offload},
        gpus=plan.launch.world_size,
        sharding=plan.launch.strategy,
    )
    if profile is None:
        return spec
    _, rows = amounts(plan, stage, profile, max_steps)
    share = 1.0 if rows is None or not profile.rows else min(1.0, rows / profile.rows)
    return with_rows(spec, profile.tokens, shape, cpu=cpu, share=share)


def teacher_params(plan: Plan, stage: Stage) -> int | None:
    """Parameters of the model that a stage learns from; 0 if it is the frozen base of the module
    that is trained, and None if it is not known.
    """
    from advisor.situation.models import model_shape

    named = str(stage.options["teacher"])
    own_base = named == plan.model and update(stage.update).is_module
    if own_base and stage.options.get("teacher_quantization") == stage.quantization:
        return 0
    try:
        shape = model_shape(named)[0]
    except AdviseError:
        return None
    return None if shape is None else shape.params


def amounts(
    plan: Plan, stage: Stage, profile: DataProfile | None, max_steps: int | None
) -> tuple[int | None, int | None]:
    """Tokens and rows that the whole stage reads, all epochs together; None if the data is not
    known.
    """
    if profile is None or profile.tokens is None:
        return None, None
    mean, share = read_of(stage, run_spec(plan, stage), profile.tokens)
    rows = profile.rows * share * (1 - stage.holdout) * stage.epochs
    row_tokens = (
        objective(stage.objective).sequences_per_row * stage.seq_len if stage.packing else mean
    )
    a_step = stage.effective_batch_size * plan.launch.world_size * row_tokens / mean
    if stage.max_steps is not None:
        rows = stage.max_steps * a_step
    if max_steps is not None:
        rows = min(rows, max_steps * a_step)
    return max(1, round(rows * mean)), max(1, round(rows))


def read_of(stage: Stage, spec: RunSpec, tokens: TokenStats) -> tuple[float, float]:
    """(tokens of a row that the stage reads, share of the rows that it reads)."""
    from advisor.estimate.reading import tokens_read

    return tokens_read(
        tokens,
        objective=stage.objective,
        seq_len=stage.seq_len,
        truncation=stage.truncation,
        packing=stage.packing,
        response_tokens=spec.options.get("response_tokens"),
    )


def looked_at(stage: Stage, spec: RunSpec, profile: DataProfile) -> Looked:
    """What the stage is measured on before and after."""
    assert profile.tokens is not None
    mean, share = read_of(stage, spec, profile.tokens)
    request = profile.tokens.request_mean
    return Looked(
        rows=profile.rows * share * stage.holdout,
        row_tokens=min(float(stage.seq_len), mean / objective(stage.objective).sequences_per_row),
        answer_tokens=profile.tokens.mean - request if request else None,
        all_rows=profile.rows * share,
    )


def padded_length(
    plan: Plan, stage: Stage, profile: DataProfile | None, *, unpadded: bool = False
) -> float | None:
    """Tokens of a sequence of a micro-batch, on average, padding included; None if not known."""
    if unpadded:
        return 1.0  # as long as the rows are
    what = objective(stage.objective)
    if profile is None or profile.tokens is None or stage.packing or what.generates:
        return None
    return padded_tokens(
        profile.tokens,
        seq_len=stage.seq_len,
        micro=stage.micro_batch_size,
        per_step=stage.effective_batch_size * plan.launch.world_size,
        rows=profile.rows,
        grouped=stage.group_by_length,
    )


def plan_shape(plan: Plan, plan_path: Path) -> ModelShape | None:
    """The shape of the plan's model, without asking the network; None if it is not known."""
    from advisor.situation.models import model_shape

    folder = resolve_path(plan_path, plan.model)
    try:
        return model_shape(str(folder) if folder.is_dir() else plan.model)[0]
    except AdviseError:
        return None


def device_hardware(plan: Plan, hardware: Hardware, gpus: Sequence[Gpu] = ()) -> Hardware:
    """The part of the machine that the plan uses: a plan for the CPU sees no GPU, another one the
    GPUs that were chosen for it.
    """
    if plan.launch.device == "cpu":
        return replace(hardware, kind="cpu", gpus=())
    hardware = replace(hardware, machines=plan.launch.nodes)
    return replace(hardware, gpus=tuple(gpus)) if gpus else hardware


# In a plan: '2 x RTX 4090 (probed)', '16 x H100 SXM5 80GB in 2 machines (stated)'.
GPUS_OF_ORIGIN = re.compile(r"(\d+ x .+?)(?: in \d+ machines)? \([a-z]+\)$")


def plan_hardware(
    plan: Plan, gpu: str | None = None, *, is_elsewhere: bool = False
) -> tuple[Hardware, list[str]]:
    """The hardware to estimate the plan on, and notes: the named GPU, else the hardware stated when
    the plan was made, else this machine, else the GPUs the plan was made for.

    Args:
        gpu: The name of a GPU, from a flag.
        is_elsewhere: The plan will run on another machine: the GPUs it was made for come before
            this machine's.

    Raises InputError if the name is not known, or names another number of GPUs than the plan.
    """
    if gpu is not None:
        hardware, notes = stated_hardware(gpu, from_flag=True)
        if len(hardware.gpus) not in (0, 1, plan.launch.world_size):
            raise InputError(
                f"--gpu names {len(hardware.gpus)} GPUs, the plan starts {plan.launch.world_size}"
                " processes (launch.processes x launch.nodes)",
                where="--gpu",
                hint="name one GPU, or edit the plan",
            )
        gpus = hardware.gpus[:1] * plan.launch.world_size
        return device_hardware(plan, hardware, gpus), list(notes)
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
    made_for = GPUS_OF_ORIGIN.match(plan.origin.hardware or "")
    hardware, notes = stated_hardware(made_for[1] if made_for else "unknown", from_flag=False)
    if is_elsewhere and plan.launch.device != "cpu" and hardware.gpus:
        return hardware, list(notes)
    here = device_hardware(plan, probe())
    if here.gpus or plan.launch.device == "cpu":
        return here, []
    why = "the plan is for a GPU, and this machine has none"
    instead = "estimated on the GPU it was made for" if hardware.gpus else "name one with --gpu"
    return hardware, [f"{why}: {instead}", *notes]
