"""One call of `advise run`: what was asked for, what is known, and which GPUs it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.estimate.past_runs import PastRuns
from advisor.ground.resources import trainers_root
from advisor.ground.types import Gpu, Hardware, ModelShape, as_free_now
from advisor.ground.units import format_gib
from advisor.launch.data import CheckedData, check_data
from advisor.launch.expected import StageEstimator, disk_need
from advisor.launch.folder import is_done
from advisor.launch.prepare import Options, PlanRun
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.probe import probe
from advisor.probe.software import cuda_problem
from advisor.record.run import RunRecord
from advisor.record.stage import Expected
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.past_runs import read_past_runs


class Call(Struct, frozen=True, kw_only=True, dict=True):
    """What is to be done. What is known of the machine is looked up when it is first asked for."""

    run: PlanRun
    options: Options
    selected: Sequence[Entry]  # the trainings that --only names
    record: RunRecord | None = None  # what earlier calls have left
    node: int = 0  # the number of this machine, in a run on several

    @cached_property
    def left(self) -> list[Entry]:
        """Selected trainings that are not done: what is done needs no trainer, data or disk."""
        folder, again = self.run.folder, self.options.dry_run
        return [
            entry
            for entry in self.selected
            if again or not is_done(self.record, entry.name, folder)
        ]

    @property
    def starts_servers(self) -> bool:
        """Whether this machine starts servers and asks others, which one of several does."""
        return self.node == 0

    @property
    def package_folder(self) -> Path:
        """The folder that holds the package `trainers`."""
        return self.options.trainers or trainers_root()

    @cached_property
    def machine(self) -> Hardware:
        """The whole machine."""
        return self.options.hardware or probe()

    @cached_property
    def gpus(self) -> ChosenGpus:
        """The GPUs of this run, one for each process; none if the plan uses none."""
        return choose_gpus(self.run.plan, self.left, self.machine, os.environ)

    @cached_property
    def used(self) -> Hardware:
        """The part of the machine that the run uses."""
        return device_hardware(self.run.plan, self.machine, self.gpus.gpus)

    @cached_property
    def shape(self) -> ModelShape | None:
        """The shape of the plan's model; None if it is not known."""
        return plan_shape(self.run.plan, self.run.path)

    @cached_property
    def data(self) -> CheckedData:
        """What the data of the trainings is."""
        return check_data(self.run, self.left)

    @cached_property
    def past(self) -> tuple[PastRuns, tuple[str, ...]]:
        """(earlier runs, warnings about their file)."""
        return read_past_runs()

    @cached_property
    def estimator(self) -> StageEstimator:
        """Estimates stages on the part of the machine that the run uses."""
        return StageEstimator(
            plan=self.run.plan,
            shape=self.shape,
            hardware=self.used,
            past=self.past[0],
            profiles=self.data.profiles,
            max_steps=self.options.max_steps,
            judge=self.options.judge,
        )

    @cached_property
    def expected(self) -> Mapping[str, Expected]:
        """Name of a training -> what it is expected to need of what is free now."""
        free = replace(self.estimator, hardware=as_free_now(self.used))
        return {entry.name: free.expect(entry) for entry in self.run.entries}

    @cached_property
    def bytes_to_write(self) -> int | None:
        """Bytes that the run still writes, as far as they are known; None if nothing is known."""
        run, known = self.run, []
        for entry in self.left:
            need = disk_need(run.plan, entry.stage, self.shape, run.model_folder)
            if need is not None:
                paths = (run.folder / "stages" / entry.name).rglob("*")
                there = sum(path.stat().st_size for path in paths if path.is_file())
                known.append(max(0, need - there))
        return sum(known) if known else None


CUDA_LIST, CUDA_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
HIP_LIST = "HIP_VISIBLE_DEVICES"


class ChosenGpus(Struct, frozen=True, kw_only=True):
    """The GPUs of a run."""

    gpus: tuple[Gpu, ...] = ()
    # Variables for the trainers' environment; None: unset it. Empty: whatever is visible.
    environment: Mapping[str, str | None] = field(default_factory=dict)
    why: str = ""  # empty if there was no choice
    # The same for a vLLM server that is started: the GPUs that are left over, or those of training.
    server: Mapping[str, str | None] = field(default_factory=dict)


def choose_gpus(
    plan: Plan, todo: Sequence[Entry], hardware: Hardware, environ: Mapping[str, str]
) -> ChosenGpus:
    """The GPUs with most free memory among those that can run the plan, one for each process.

    Args:
        environ: This process's environment, which may show a part of the GPUs alone.
    """
    if plan.launch.device not in ("cuda", "rocm") or hardware.kind != plan.launch.device:
        return ChosenGpus()
    places = range(len(hardware.gpus))
    unfit = {place: why for place in places if (why := _why_unfit(place, todo, hardware))}
    order = sorted(
        places, key=lambda place: (place in unfit, -(hardware.gpus[place].memory_free_bytes or 0))
    )
    processes = plan.launch.processes
    taken = sorted(order[:processes])
    more = plan.launch.vllm.gpus if plan.launch.vllm is not None else 0
    served = sorted(order[processes : processes + more]) if more else taken
    return ChosenGpus(
        gpus=tuple(hardware.gpus[place] for place in taken),
        environment=_environment(taken, hardware, environ),
        why=_why(taken, unfit, hardware),
        server=_environment(served, hardware, environ),
    )


def lacks_bfloat16(entry: Entry, gpu: Gpu) -> bool:
    """Whether the entry needs bfloat16 and the GPU has none."""
    return entry.stage.weights_dtype == "bfloat16" and gpu.bf16 is False


def _why_unfit(place: int, todo: Sequence[Entry], hardware: Hardware) -> str:
    gpu = hardware.gpus[place]
    if any(lacks_bfloat16(entry, gpu) for entry in todo):
        return "has no bfloat16"
    if cuda_problem(replace(hardware, gpus=(gpu,))) is not None:
        return "cannot be used by the installed PyTorch"
    return ""


def _environment(
    taken: Sequence[int], hardware: Hardware, environ: Mapping[str, str]
) -> dict[str, str | None]:
    """What makes the trainers see these GPUs alone.

    By UUID if NVIDIA's driver tells it. Else by number: numbers count among the GPUs that the
    user's own list shows, so the words of that list are kept.
    """
    gpus = [hardware.gpus[place] for place in taken]
    numbers = [str(gpu.index) for gpu in gpus if gpu.index is not None]
    if hardware.kind == "rocm":
        # HIP reads this before CUDA_VISIBLE_DEVICES, which could contradict it. A list in
        # ROCR_VISIBLE_DEVICES stays: the numbers count among the devices that it leaves.
        known = len(numbers) == len(gpus)
        return {HIP_LIST: ",".join(numbers), CUDA_LIST: None} if known and gpus else {}
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid]
    if gpus and len(uuids) == len(gpus):
        return {CUDA_LIST: ",".join(uuids)}
    own = [word.strip() for word in environ.get(CUDA_LIST, "").split(",") if word.strip()]
    if own and len(own) >= len(hardware.gpus):
        return {CUDA_LIST: ",".join(own[place] for place in taken)}
    if gpus and not own and len(numbers) == len(gpus):
        # The driver numbers by slot; CUDA would put the fastest first.
        return {CUDA_LIST: ",".join(numbers), CUDA_ORDER: "PCI_BUS_ID"}
    return {}


def gpu_words(gpu: Gpu, place: int) -> str:
    """'GPU 3 (NVIDIA H100 80GB HBM3)'."""
    return f"GPU {place if gpu.index is None else gpu.index} ({gpu.name})"


def _why(taken: Sequence[int], unfit: Mapping[int, str], hardware: Hardware) -> str:
    if not taken or len(taken) == len(hardware.gpus):
        return ""
    named = {place: gpu_words(gpu, place) for place, gpu in enumerate(hardware.gpus)}
    free = [hardware.gpus[place].memory_free_bytes for place in taken]
    known = [size for size in free if size is not None]
    why = "the first of those that are visible"
    if known and len(known) == len(free):
        least = "at least " if len(known) > 1 else ""
        why = f"{least}{format_gib(min(known))} free, no other of {len(named)} GPUs has more"
    left = [f"; {named[place]} {reason}" for place, reason in unfit.items() if place not in taken]
    return f"{', '.join(named[place] for place in taken)}: {why}{''.join(left)}"
