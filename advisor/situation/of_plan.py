"""A stage of a plan as the estimator takes it: its settings, the rows it reads, the model's shape
and the part of the machine that it uses. Nothing is asked of the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.estimate.padding import tokens_read, with_replay
from advisor.estimate.run import Device, Rows, Run
from advisor.estimate.whole_time import EvaluationRows
from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile, Gpu, Hardware, ModelShape, TokenStats
from advisor.methods import objective, update
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from advisor.plan.read import resolve_path
from advisor.plan.vllm import asks_server
from advisor.probe import probe, stated_hardware
from advisor.situation.models import usable_shape


def plan_run(
    plan: Plan,
    stage: Stage,
    model: ModelShape,
    hardware: Hardware,
    profile: DataProfile | None = None,
    max_steps: int | None = None,
) -> Run:
    """What the estimate of a stage is about, with the rows that it reads if its data is known.

    Args:
        model: The plan's.
        hardware: That it trains on.
        profile: The data of the stage.
        max_steps: The limit of a trial run, which may not meet the longest rows.
    """
    whole, launch = _with_defaults(stage), plan.launch
    options = dict(whole.options)
    if options.get("teacher"):
        options["teacher_params"] = teacher_params(plan, stage)
    if asks_server(stage) and launch.vllm is not None and launch.vllm.python:
        options["server_memory"] = None if launch.vllm.gpus else launch.vllm.memory
    options = {key: value for key, value in options.items() if value is not None}
    offloads = bool(launch.offload)
    device = Device.of(hardware, launch.world_size, launch.strategy, offloads=offloads)
    tokens, rows = amounts(plan, stage, profile, max_steps)
    share = 1.0
    if profile is not None and profile.rows and rows is not None:
        share = min(1.0, rows / profile.rows)
    stats = None if profile is None else profile.tokens
    in_epoch = None if profile is None else profile.rows
    read = Rows(stats=stats, share=share, tokens_total=tokens, rows_total=rows, in_epoch=in_epoch)
    return Run(stage=replace(whole, options=options), model=model, device=device, rows=read)


def _with_defaults(stage: Stage) -> Stage:
    return replace(stage, options=key_specs().effective(stage))


def teacher_params(plan: Plan, stage: Stage) -> int | None:
    """Parameters of the model that a stage learns from; 0 if it is the frozen base of the module
    that is trained, and None if it is not known.
    """
    named = str(stage.options["teacher"])
    own_base = named == plan.model and update(stage.update).is_module
    if own_base and stage.options.get("teacher_quantization") == stage.quantization:
        return 0
    shape = usable_shape(named)
    return None if shape is None else shape.params


def amounts(
    plan: Plan, stage: Stage, profile: DataProfile | None, max_steps: int | None
) -> tuple[int | None, int | None]:
    """Tokens and rows that the whole stage reads in all epochs; None if the data is not known."""
    if profile is None or profile.tokens is None:
        return None, None
    mean, share = read_of(stage, profile.tokens)
    rows = profile.rows * share * (1 - stage.holdout) * stage.epochs
    if rows:
        tokens, rows = with_replay(_with_defaults(stage), rows * mean, rows, passes=stage.epochs)
        mean = tokens / rows
    row_tokens = (
        objective(stage.objective).sequences_per_row * stage.seq_len if stage.packing else mean
    )
    a_step = stage.effective_batch_size * plan.launch.world_size * row_tokens / mean
    if stage.max_steps is not None:
        rows = stage.max_steps * a_step
    if max_steps is not None:
        rows = min(rows, max_steps * a_step)
    return max(1, round(rows * mean)), max(1, round(rows))


def read_of(stage: Stage, tokens: TokenStats) -> tuple[float, float]:
    """(tokens of a row that the stage reads, share of the rows that it reads)."""
    return tokens_read(tokens, _with_defaults(stage))


def evaluation_rows(stage: Stage, profile: DataProfile) -> EvaluationRows:
    """What the stage is measured on before and after."""
    assert profile.tokens is not None
    mean, share = read_of(stage, profile.tokens)
    request = profile.tokens.request_mean
    return EvaluationRows(
        rows=profile.rows * share * stage.holdout,
        row_tokens=min(float(stage.seq_len), mean / objective(stage.objective).sequences_per_row),
        answer_tokens=profile.tokens.mean - request if request else None,
        all_rows=profile.rows * share,
    )


def plan_shape(plan: Plan, plan_path: Path) -> ModelShape | None:
    """The shape of the plan's model, without asking the network; None if it is not known."""
    folder = resolve_path(plan_path, plan.model)
    return usable_shape(str(folder) if folder.is_dir() else plan.model)


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
        name, count, gib = card.get("name"), card.get("count"), card.get("vram_gib")
        hardware, notes = stated_hardware(name, count=count, memory_gib=gib, from_flag=False)
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
