"""What must be true before a run writes anything: trainers are installed, the device is there,
model and data can be read, the disk has room.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.ground.extras import Checked
from advisor.ground.files import free_bytes
from advisor.ground.resources import method_roots
from advisor.ground.types import DataProfile, Hardware, ModelShape, as_free_now
from advisor.ground.units import format_gib
from advisor.launch.base_check import base_faults, base_folder
from advisor.launch.checks import (
    cache_faults,
    kernel_faults,
    loading_faults,
    more_disk,
    optimizer_package_faults,
    package_faults,
    place_faults,
    reward_file_faults,
)
from advisor.launch.data_check import check_data
from advisor.launch.device_check import (
    VISIBLE,
    device_faults,
    differing_gpus,
    dtype_faults,
    on_fewer,
)
from advisor.launch.expected import disk_need, sum_known
from advisor.launch.generation_server import server_faults
from advisor.launch.gpus import ChosenGpus, choose_gpus
from advisor.launch.model_need import ModelNeed, asked, cache_line, model_needs
from advisor.methods import objectives, updates
from advisor.model_files.hub_cache import hub_cache
from advisor.plan.checks import launch_faults, optimizer_faults
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightResult:
    """What the checks found out."""

    gpus: ChosenGpus  # one GPU for each process; none if the plan uses none
    # path as written -> what the data is; data sets on the hub are left to the trainer
    profiles: Mapping[str, DataProfile]
    warnings: tuple[str, ...]  # what is allowed, and may be a mistake
    # Downloads, licences and disks, in words: for a person before it starts.
    needs: tuple[str, ...] = ()


def run_preflight(
    plan: Plan,
    plan_path: Path,
    run: Path,
    todo: Sequence[Entry],
    *,
    hardware: Hardware,
    shape: ModelShape | None,
    trainers: Path,
    dry_run: bool = False,
    check_extras: Callable[[], Sequence[Checked]] = list,
) -> PreflightResult:
    """What the checks found out.

    Raises InputError with everything the plan names that is not there, else MachineNotReady with
    everything the machine lacks.

    Args:
        dry_run: No server generates in it, so that none is asked for.
        check_extras: The checks of optional features, which may need the network.
    """
    folder = resolve_path(plan_path, plan.model)
    data = check_data(todo, plan_path, str(folder) if folder.is_dir() else plan.model)
    bad = [
        *_objective_faults(todo, trainers),
        *data.faults,
        *base_faults(plan, plan_path, todo),
        *reward_file_faults(plan, plan_path, todo),
        *loading_faults(todo, shape),
        *launch_faults(plan),
        *_rows_for_processes(plan, todo, data.profiles),
    ]
    chosen = choose_gpus(plan, todo, hardware, os.environ)
    bad += dtype_faults(todo, chosen.gpus)
    device = "cuda" if plan.launch.device == "rocm" else plan.launch.device
    for stage in {entry.stage.name: entry.stage for entry in todo}.values():
        bad += optimizer_faults(stage, device)
    extras = check_extras() if not bad else []
    bad += [fault for one in extras for fault in one.bad]
    if bad:
        raise InputError(faults=bad)
    need = sum_known(
        {
            entry.name: more_disk(
                disk_need(plan, entry, shape, base_folder(plan, plan_path)),
                run / "stages" / entry.name,
            )
            for entry in todo
        }
    )
    lacking = [
        *package_faults(hardware, quantized=any(map(_quantizes, todo))),
        *optimizer_package_faults(todo),
        *_device_faults(plan, plan_path, todo, shape, hardware, chosen, data.profiles),
        *kernel_faults(plan, todo, chosen.gpus, shape),
        *place_faults(run, need),
        *(fault for one in extras for fault in one.lacking),
        *(() if dry_run else server_faults(plan, plan_path, todo, hardware, run)),
    ]
    if lacking:
        raise MachineNotReady(faults=lacking)
    # Last, because it may need the network.
    models = [
        asked(one, plan.revision if one.model == plan.model else None)
        for one in model_needs(plan, plan_path, todo, shape)
    ]
    download = sum(one.download_bytes or 0 for one in models)
    full = list(cache_faults(hub_cache(), download, run, need))
    if full:
        raise MachineNotReady(faults=full)
    return PreflightResult(
        gpus=chosen,
        profiles=data.profiles,
        warnings=(*data.warnings, *filter(None, [differing_gpus(plan, chosen.gpus)])),
        needs=(
            *_needs_in_words(models, run, need),
            *(line for one in extras for line in one.needs),
        ),
    )


def _rows_for_processes(
    plan: Plan, todo: Sequence[Entry], profiles: Mapping[str, DataProfile]
) -> Iterable[Fault]:
    """Stages with fewer rows than there are processes, which could not be shared out."""
    processes = plan.launch.world_size
    for entry in todo:
        profile = profiles.get(entry.data.path)
        if processes < 2 or profile is None:
            continue
        rows = round(profile.rows * (1 - entry.stage.holdout))
        if rows < processes:
            yield Fault(
                where=f"stage {entry.name}",
                what=f"{rows} rows to train on cannot be shared by {processes} processes",
                allowed="at least one row for each",
                hint="more rows, or --set launch.processes=1 --set launch.strategy=null",
            )


def _device_faults(
    plan: Plan,
    plan_path: Path,
    todo: Sequence[Entry],
    shape: ModelShape | None,
    hardware: Hardware,
    chosen: ChosenGpus,
    profiles: Mapping[str, DataProfile],
) -> list[Fault]:
    """What keeps the processes from their devices; of a plan for more GPUs than there are, what it
    would take here.
    """
    found = device_faults(plan, hardware, chosen.gpus)
    usable = hardware.kind == plan.launch.device and hardware.gpus and plan.launch.nodes == 1
    if not usable or plan.launch.processes <= len(hardware.gpus) or not todo:
        return found
    here = on_fewer(plan, todo, shape, as_free_now(hardware), profiles)
    command = f"{VISIBLE} may hide some; advise run {shlex.quote(str(plan_path))} {here.settings}"
    hint = command if here.settings else found[0].hint
    return [replace(found[0], allowed=here.words, hint=hint), *found[1:]]


def _needs_in_words(models: Sequence[ModelNeed], run: Path, need: int | None) -> Iterable[str]:
    yield from (one.line() for one in models)
    cache = cache_line(models)
    if cache:
        yield cache
    if need:
        yield (
            f"disk: up to {format_gib(need)} for results and checkpoints,"
            f" {format_gib(free_bytes(run))} free"
        )


def _objective_faults(todo: Sequence[Entry], trainers: Path) -> Iterable[Fault]:
    """Objectives and updates without a trainer: an objective is trainers/<name>.py or
    trainers/<name>/__init__.py, an update trainers/updates/<name>.py.
    """
    roots = [trainers, *method_roots()[1:]]
    for axis, place, known in (
        ("objective", Path("trainers"), objectives()),
        ("update", Path("trainers", "updates"), updates()),
    ):
        folders = [root / place for root in roots]
        if axis == "update" and not folders[0].is_dir():
            continue
        there = [
            name
            for name in known
            if any(
                (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
                for folder in folders
            )
        ]
        for wanted in dict.fromkeys(str(getattr(entry.stage, axis)) for entry in todo):
            if wanted not in there:
                names = ", ".join(
                    entry.name for entry in todo if getattr(entry.stage, axis) == wanted
                )
                yield Fault(
                    where=f"stage {names}",
                    what=(f"this version of advise has no trainer for {axis} {wanted}"),
                    allowed=f"it trains: {', '.join(there) or 'nothing'}",
                    hint=(
                        "the plan is complete: keep it for a later version, or choose another"
                        " method with `advise --choose`"
                    ),
                )


def _quantizes(entry: Entry) -> bool:
    """Whether a stage stores a frozen model in 4 or 8 bits: its own, or its teacher's."""
    return bool(entry.stage.quantization or entry.stage.options.get("teacher_quantization"))
