"""What a run needs that can be looked up before anything is written: packages, a model that can be
loaded, reward files, disks, kernels.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from advisor.estimate.model.architecture import NO_SDPA
from advisor.estimate.model.dims import WITH_EXPERTS
from advisor.estimate.model.stored import WRITTEN_OUT, why_not_loadable
from advisor.ground.errors import Fault, MachineNotReady, nearest
from advisor.ground.files import ELSEWHERE, bytes_of, free_bytes, nearest_place
from advisor.ground.install import install_line
from advisor.ground.types import Gpu, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.methods import update
from advisor.methods.installed import (
    CPP_NEEDS,
    HUB_PACKAGE,
    TRITON_NEEDS,
    hub_install,
    triton_is_interpreted,
    why_no_torch_compile,
    why_no_triton,
)
from advisor.methods.kernels import Kernel, kernel
from advisor.methods.optimizers import missing, optimizer
from advisor.methods.rewards import RewardPart, reward_parts
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path
from advisor.record.smaller import key_path

NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def refuse_without_trainers(hardware: Hardware) -> None:
    """Raise MachineNotReady with the line to install if the training extra is missing."""
    faults = list(package_faults(hardware, quantized=False))
    if faults:
        raise MachineNotReady(faults=faults)


def package_faults(hardware: Hardware, *, quantized: bool) -> Iterable[Fault]:
    """The packages that training needs and that are not installed."""
    wanted = (*NEEDED, "bitsandbytes") if quantized else NEEDED
    missing = [name for name in wanted if hardware.software.get(name) is None]
    if missing:
        yield Fault(
            what=f"training needs packages that are not installed: {', '.join(missing)}",
            hint=install_line(),
        )


def optimizer_package_faults(todo: Sequence[Entry]) -> list[Fault]:
    """Packages of the stages' optimizers that are not installed."""
    import importlib.metadata

    entries = [optimizer(entry.stage.optimizer) for entry in todo]
    versions: dict[str, str | None] = {}
    for name in {one.library.name for one in entries if one.library is not None}:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return missing(entries, versions)


def loading_faults(todo: Sequence[Entry], shape: ModelShape | None) -> Iterable[Fault]:
    """The faults of every stage that is still to be trained; none where the model is not known."""
    if shape is None:
        return
    for entry in todo:
        yield from _stored_faults(entry, shape)
        stage = entry.stage
        if stage.attention == "sdpa" and shape.architecture in NO_SDPA:
            yield Fault(
                where=f"stage {entry.name}",
                what=f"transformers has no sdpa attention for {shape.architecture} models",
                allowed="attention: eager",
            )
        is_dense = shape.origin != "size" and not shape.is_mixture  # "size": a guess by its name
        if stage.options.get("target_modules") == WITH_EXPERTS and is_dense:
            yield Fault(
                where=f"stage {entry.name}",
                what=f"target_modules: {WITH_EXPERTS} needs a mixture of experts,"
                f" and {shape.id} is none",
                allowed="target_modules: all-linear, or a list of names",
            )


def _stored_faults(entry: Entry, shape: ModelShape) -> Iterable[Fault]:
    """What a quantised checkpoint cannot be: quantised again, or trained whole."""
    stage = entry.stage
    reason = why_not_loadable(
        shape.stored,
        trains_all=not update(stage.update).is_module,
        quantization=stage.quantization,
    )
    if reason:
        of_few_bits = shape.stored in WRITTEN_OUT
        wanted = f"quantization {stage.quantization}" if stage.quantization else stage.update
        yield Fault(
            where=f"stage {entry.name}",
            what=f"{wanted} does not go with {shape.id}: {reason}",
            allowed="quantization: null" if of_few_bits else "update: lora with quantization: null",
            hint="`advise estimate` shows what 2 bytes a weight need"
            if of_few_bits
            else "name the model that the checkpoint was made from",
        )


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def reward_file_faults(plan: Plan, plan_path: Path, todo: Sequence[Entry]) -> Iterable[Fault]:
    """What the rewards of the stages name that is not there, each once."""
    told: set[str] = set()
    stages = {stage.name for stage in plan.stages}
    for entry in todo:
        for part in reward_parts(entry.stage.options):
            for fault in _part_faults(plan_path, part, stages):
                what = fault.headline
                if what not in told:
                    told.add(what)
                    yield replace(fault, where=f"stage {entry.stage.name}", what=what)


def _part_faults(plan_path: Path, part: RewardPart, stages: Collection[str]) -> Iterable[Fault]:
    schema = part.options.get("schema")
    if schema is not None and not resolve_path(plan_path, str(schema)).is_file():
        what = f"schema: no such file: {resolve_path(plan_path, str(schema))}"
        yield Fault(what=what, allowed="a file with a JSON schema, relative to the plan")
    if part.source == "reward_model" and part.value not in stages:
        folder = resolve_path(plan_path, part.value)
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            yield Fault(
                where="reward_model",
                what=f"reward_model: {folder} holds no model",
                allowed="a stage with objective rm, or the folder of a reward model",
            )
    if part.source == "reward":
        file, _, name = part.value.rpartition(":")
        path = resolve_path(plan_path, file)
        if not path.is_file():
            allowed = "file.py:function, relative to the plan"
            yield Fault(where="reward", what=f"no such file: {path}", allowed=allowed)
        else:
            yield from _function_faults(path, name)


def _function_faults(path: Path, name: str) -> Iterable[Fault]:
    """A function that the file neither defines nor imports; the file is read, not run."""
    try:
        tree = ast.parse(bytes_of(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Fault(where="reward", what=f"{path} cannot be read as Python: {error}")
        return
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if name not in names and "*" not in names:
        own = (node.name for node in tree.body if isinstance(node, FUNCTIONS))
        known = ", ".join(sorted(own)[:12]) or "no function"
        yield Fault(
            where="reward",
            what=f"{path} has no function '{name}'",
            allowed=f"it defines: {known}",
            hint=nearest(name, sorted(names)),
        )


SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write


def more_disk(need: int | None, folder: Path) -> int | None:
    """Bytes still to be written: a stage that is resumed has part of them on the disk already."""
    if need is None or not folder.is_dir():
        return need
    return max(0, need - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def place_faults(run: Path, need: int | None) -> Iterable[Fault]:
    """Why the run folder cannot be written, or has no room for so many bytes."""
    place = nearest_place(run)
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
    free = free_bytes(place)
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


def cache_faults(cache: Path, download: int, run: Path, need: int | None) -> Iterable[Fault]:
    """Why the model cache cannot take a download of so many bytes, beside what the run writes where
    both lie on one disk.
    """
    if not download:
        return
    place = nearest_place(cache)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Fault(
            where=str(place),
            what=f"no permission to write here, and the model cache is to be {cache}",
            hint="choose another place with HF_HOME=DIR",
        )
        return
    is_same_disk = place.stat().st_dev == nearest_place(run).stat().st_dev
    beside = (need or 0) if is_same_disk else 0
    free, wanted = free_bytes(place), download + beside + SPARE_BYTES
    if free < wanted:
        parts = [f"{format_gib(download)} to download"]
        parts += [f"{format_gib(beside)} for results and checkpoints"] if beside else []
        yield Fault(
            where=str(cache),
            what=(
                f"{format_gib(free)} free on the disk of the model cache, about"
                f" {format_gib(wanted)} needed"
            ),
            allowed=", ".join([*parts, f"{format_gib(SPARE_BYTES)} to spare"]),
            hint="free some space, or put the cache on another disk with HF_HOME=DIR",
        )


INSTEAD = {"attention": "sdpa", "kernels": "none"}
ALLOWED = {
    "attention": "attention: sdpa or eager need no package; auto takes what works",
    "kernels": "kernels: none, or auto, which takes what works",
}


def kernel_faults(
    plan: Plan, todo: Sequence[Entry], gpus: Sequence[Gpu], shape: ModelShape | None
) -> Iterable[Fault]:
    """The kernels of every stage that cannot run on this machine.

    Whether a package fits the installed PyTorch shows when the trainer imports it, before it loads
    the model.
    """
    device = plan.launch.device
    for entry in todo:
        for key in ("attention", "kernels"):
            one = kernel(getattr(entry.stage, key))
            if one is None:
                continue
            at, allowed = f"stage {entry.name}: {key} is {one.name}", ALLOWED[key]
            back = f"--set {key_path(entry, key)}={INSTEAD[key]}"
            if device in ("cuda", "rocm"):
                for why, way_in in _obstacles(one, device, gpus, shape):
                    yield Fault(where=at, what=f"{at}, {why}", allowed=allowed, hint=way_in + back)
            elif not (one.name == "liger" and triton_is_interpreted()):
                yield Fault(
                    where=f"stage {entry.name}", allowed=allowed, hint=back,
                    what=f"{key} is {one.name}, which needs a CUDA or ROCm GPU,"
                    f" and `launch.device` is {device}",
                )  # fmt: skip
        if entry.stage.compile and (why := why_no_torch_compile(device)):
            yield Fault(
                where=f"stage {entry.name}", what=f"compile is true, and {why}",
                allowed="compile: false trains the same without",
                hint=f"{TRITON_NEEDS if device != 'cpu' else CPP_NEEDS}; or"
                f" --set {key_path(entry, 'compile')}=false",
            )  # fmt: skip


def _obstacles(
    one: Kernel, device: str, gpus: Sequence[Gpu], shape: ModelShape | None
) -> Iterable[tuple[str, str]]:
    """(why a kernel cannot run on these GPUs, what to install for it), for each reason."""
    if device not in one.devices:
        yield f"which has no kernels for {device}", ""
        return
    old = next((gpu for gpu in gpus if not one.runs_on(gpu.compute_capability)), None)
    if old is not None:
        has = ".".join(map(str, old.compute_capability or ()))
        yield f"which needs {one.needs}, and {old.name} has {has}", ""
    width = shape.head_dim if shape is not None else None
    if one.widest_head and width and width > one.widest_head:
        widest = f"whose heads are at most {one.widest_head} wide"
        yield f"{widest}, and those of the model are {width}", ""
    if why := one.why_not_installed:
        yield f"which needs {packages(one)}: {why}", f"pip install {install(one)}, or "
    elif one.triton and (why := why_no_triton()):
        yield f"which is compiled here, and {why}", f"{TRITON_NEEDS}; or "


def packages(one: Kernel) -> str:
    """'the package flash-attn or kernels'."""
    return f"the package {' or '.join(one.packages)}"


def install(one: Kernel) -> str:
    """The words after `pip install` that bring the kernel."""
    return hub_install() if HUB_PACKAGE in one.packages else str(one.package)
