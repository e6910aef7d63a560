"""What must be true before a run writes anything: trainers are installed, the device is there,
model and data can be read, the disk has room.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.data.read.hub import offline
from advisor.ground.errors import AdviseError, Fault, InputError, MachineNotReady
from advisor.ground.files import ELSEWHERE
from advisor.ground.resources import PACKAGE, method_roots, resource_root
from advisor.ground.types import DataProfile, Gpu, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.launch.base_check import base_faults, base_folder, is_cached
from advisor.launch.data_check import check_data
from advisor.launch.expected import disk_need, sum_known
from advisor.launch.generation_server import server_faults
from advisor.launch.gpus import ChosenGpus, choose_gpus, lacks_bfloat16
from advisor.launch.kernel_check import kernel_faults
from advisor.launch.loadable import loading_faults
from advisor.launch.reward_check import reward_file_faults
from advisor.methods import objectives, update, updates
from advisor.methods.optimizers import missing, optimizer
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.optimizer_checks import optimizer_faults
from advisor.plan.read import resolve_path
from advisor.plan.smaller import key_path

HUB_TIMEOUT_S = 5.0
SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightResult:
    """What the checks found out."""

    disk_need_bytes: int | None
    gpus: ChosenGpus  # one GPU for each process; none if the plan uses none
    # path as written -> what the data is; data sets on the hub are left to the trainer
    profiles: Mapping[str, DataProfile]
    warnings: tuple[str, ...]  # what is allowed, and may be a mistake


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
) -> PreflightResult:
    """What the checks found out.

    Raises InputError with everything the plan names that is not there, else MachineNotReady with
    everything the machine lacks.

    Args:
        plan_path: The plan file; relative paths start from its folder.
        run: The run folder.
        todo: The entries that are still to be trained.
        shape: The model's shape, if it is known.
        trainers: The folder that holds the package `trainers`.
        dry_run: No server generates in it, so that none is asked for.
    """
    folder = resolve_path(plan_path, plan.model)
    data = check_data(todo, plan_path, str(folder) if folder.is_dir() else plan.model)
    bad = [
        *_objective_faults(todo, trainers),
        *data.faults,
        *base_faults(plan, plan_path, todo),
        *reward_file_faults(plan, plan_path, todo),
        *loading_faults(todo, shape),
    ]
    if not plan.launch.startable:
        bad.append(
            Fault(
                where="launch.strategy",
                what=f"launch.strategy is {plan.launch.strategy}",
                allowed="`advise run` starts one process, or several with ddp",
                hint=(
                    "use a smaller model or QLoRA, which need no sharding, or a GPU with more"
                    " memory"
                ),
            )
        )
    chosen = choose_gpus(plan, todo, hardware, os.environ)
    bad += _dtype_faults(todo, chosen.gpus)
    device = "cuda" if plan.launch.device == "rocm" else plan.launch.device
    for stage in {entry.stage.name: entry.stage for entry in todo}.values():
        bad += optimizer_faults(stage, device)
    if bad:
        raise InputError(faults=bad)
    need = sum_known(
        {
            entry.name: _more_disk(
                disk_need(plan, entry, shape, base_folder(plan, plan_path)),
                run / "stages" / entry.name,
            )
            for entry in todo
        }
    )
    lacking = [
        *_extra_faults(hardware, quantized=any(map(_quantizes, todo))),
        *_optimizer_faults(todo),
        *_device_faults(plan, hardware, chosen.gpus),
        *kernel_faults(plan, todo, chosen.gpus, shape),
        *_place_faults(run, need),
        *(() if dry_run else server_faults(plan, plan_path, todo, hardware, run)),
    ]
    if lacking:
        raise MachineNotReady(faults=lacking)
    for fault in _hub_faults(plan, plan_path, todo):
        raise fault
    return PreflightResult(
        disk_need_bytes=need, gpus=chosen, profiles=data.profiles, warnings=tuple(data.warnings)
    )


# --------------------------------------------------------------------------- what the plan names


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


def _hub_faults(plan: Plan, plan_path: Path, todo: Sequence[Entry]) -> Iterable[AdviseError]:
    """The errors of hub models that are neither cached nor available: the plan's, and teachers.

    Checked last, because it needs the network.
    """
    named = {plan.model: (f"model {plan.model}", plan.revision)}
    for entry in todo:
        teacher = entry.stage.options.get("teacher")
        if teacher:
            what = f"stage {entry.name}: teacher {teacher}"
            named.setdefault(str(teacher), (what, None))
    for model, (what, revision) in named.items():
        if not resolve_path(plan_path, model).is_dir() and not is_cached(model, revision):
            yield from _download_faults(model, what)


def _download_faults(model: str, what: str) -> Iterable[AdviseError]:
    """The error of a hub model that cannot be downloaded now.

    Args:
        what: How messages call it.
    """
    if offline():
        yield MachineNotReady(
            f"{what} is not in the hub cache, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE, or name a model folder",
        )
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        yield MachineNotReady(f"HF_ENDPOINT is '{endpoint}', not a web address")
        return
    address = f"{endpoint}/api/models/{model}"
    try:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310 (http: see above)
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            if _has_login():  # maybe private or gated: the trainer asks with the user's token
                return
            yield InputError(
                "the hub has no such public model",
                where=what,
                hint="check the name; for a private or gated model: hf auth login",
            )
            return
        yield MachineNotReady(
            f"the hub answers with code {error.code}",
            where=what,
            hint="try again later, or name a model folder",
        )
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        yield MachineNotReady(
            f"{what} is not in the hub cache, and the hub cannot be reached ({reason})",
            hint="check the connection, or name a model folder",
        )


def _quantizes(entry: Entry) -> bool:
    """Whether a stage stores a frozen model in 4 or 8 bits: its own, or its teacher's."""
    return bool(entry.stage.quantization or entry.stage.options.get("teacher_quantization"))


def _has_login() -> bool:
    home = Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    return (
        bool(os.environ.get("HF_TOKEN"))
        or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()
    )


# --------------------------------------------------------------------------- what the machine has


def install_line() -> str:
    """The one line that installs the training extra, for an installed package or a checkout."""
    checkout = resource_root() == PACKAGE.parent and (PACKAGE.parent / "pyproject.toml").is_file()
    return (
        f"pip install -e '{'.' if Path.cwd() == PACKAGE.parent else PACKAGE.parent}[train]'"
        if checkout
        else "pip install 'finetune-advisor[train]'"
    )


def refuse_without_trainers(hardware: Hardware) -> None:
    """Raise MachineNotReady with the line to install if the training extra is missing."""
    faults = list(_extra_faults(hardware, quantized=False))
    if faults:
        raise MachineNotReady(faults=faults)


def _extra_faults(hardware: Hardware, *, quantized: bool) -> Iterable[Fault]:
    wanted = (*NEEDED, "bitsandbytes") if quantized else NEEDED
    missing = [name for name in wanted if hardware.software.get(name) is None]
    if missing:
        yield Fault(
            what=f"training needs packages that are not installed: {', '.join(missing)}",
            hint=install_line(),
        )


def _optimizer_faults(todo: Sequence[Entry]) -> list[Fault]:
    """Packages of the stages' optimizers that are not installed."""
    import importlib.metadata

    entries = [optimizer(entry.stage.optimizer) for entry in todo]
    versions: dict[str, str | None] = {}
    for name in {one.library.name for one in entries if one.library is not None}:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return missing(entries, versions)


def _device_faults(plan: Plan, hardware: Hardware, chosen: Sequence[Gpu]) -> Iterable[Fault]:
    from advisor.probe.software import cuda_problem

    device, processes = plan.launch.device, plan.launch.processes
    name = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "mps": "an Apple GPU"}.get(
        device, "the CPU"
    )
    if device == "cpu":
        return
    notes = f" ({'; '.join(hardware.notes)})" if hardware.notes and not hardware.gpus else ""
    if hardware.kind != device:
        here = (
            f"this machine has {hardware.gpus[0].name}"
            if hardware.gpus
            else f"this machine has no usable GPU{notes}"
        )
        yield Fault(
            what=f"the plan is for {name} (launch.device: {device}), and {here}",
            allowed="`advise probe` shows what there is",
            hint=(
                "make a plan for this machine with `advise`, or train this one on the CPU: --set"
                " launch.device=cpu (much slower)"
            ),
        )
        return
    if processes > len(hardware.gpus):
        yield Fault(
            what=(
                f"the plan wants {processes} processes, one per GPU, and"
                f" {len(hardware.gpus)} can be used here"
            ),
            hint=(
                f"--set launch.processes={len(hardware.gpus)}, or check CUDA_VISIBLE_DEVICES"
                " (ROCm: HIP_VISIBLE_DEVICES)"
            ),
        )
    problem = cuda_problem(replace(hardware, gpus=tuple(chosen)) if chosen else hardware)
    if problem is not None:
        what, _, install = problem.partition(" Install: ")
        yield Fault(
            what=what, hint=install or "see above; --set launch.device=cpu trains on the CPU"
        )


def _dtype_faults(todo: Sequence[Entry], gpus: Sequence[Gpu]) -> Iterable[Fault]:
    """Stages in bfloat16 on a GPU that is too old for it."""
    for entry in todo:
        old = next((gpu for gpu in gpus if lacks_bfloat16(entry, gpu)), None)
        if old is None:
            continue
        level = (
            f" (compute capability {'.'.join(map(str, old.compute_capability))}; from 8.0 on)"
            if old.compute_capability
            else ""
        )
        # Trained weights in float16 have no loss scaling; a module stays in float32 beside them.
        dtype = "float16" if update(entry.stage.update).is_module else "float32"
        dtype_at, precision_at = (key_path(entry, key) for key in ("weights_dtype", "precision"))
        yield Fault(
            where=f"stage {entry.name}",
            what=f"weights_dtype is bfloat16, and {old.name}{level} has none",
            allowed=f"weights_dtype: {dtype} with precision: mixed",
            hint=f"--set {dtype_at}={dtype} --set {precision_at}=mixed",
        )


def _more_disk(need: int | None, folder: Path) -> int | None:
    """Bytes still to be written: a stage that is resumed has part of them on the disk already."""
    if need is None or not folder.is_dir():
        return need
    return max(0, need - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def _place_faults(run: Path, need: int | None) -> Iterable[Fault]:
    place = run
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Fault(
            where=str(run),
            what=f"{place} is a file, so no folder can be created there",
            hint="choose another one with --output DIR",
        )
        return
    if not os.access(place, os.W_OK | os.X_OK):
        yield Fault(where=str(place), what="no permission to write here", hint=ELSEWHERE)
        return
    free = shutil.disk_usage(place).free
    wanted = (need or 0) + SPARE_BYTES
    if free < wanted:
        parts = (
            f"{format_gib(need)} for results and checkpoints and {format_gib(SPARE_BYTES)} to spare"
            if need
            else f"{format_gib(SPARE_BYTES)} to spare"
        )
        yield Fault(
            where=str(place),
            what=(f"{format_gib(free)} free on the disk, the run needs about {format_gib(wanted)}"),
            allowed=parts,
            hint="free some space, or choose another disk with --output DIR",
        )
