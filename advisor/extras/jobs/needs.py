"""What a plan asks of the machines that a scheduler gives it: GPUs, time, memory, money, and how
long a stop may take. Everything is an estimate, or is said not to be known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from advisor.data import profile
from advisor.estimate import cost_estimate, estimate
from advisor.estimate.time import weights_bytes
from advisor.estimate.types import Estimate, RunSpec
from advisor.estimate.whole_time import WITH_MOMENTS
from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.types import DataProfile, GpuSpec, Hardware, ModelShape
from advisor.ground.units import GIB, format_duration, format_usd
from advisor.plan.entries import Entry, entries
from advisor.plan.launch_checks import launch_faults
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path
from advisor.plan.rollouts import asks_server
from advisor.situation.of_plan import amounts, looked_at, padded_length, plan_shape, run_spec
from advisor.situation.of_plan_hardware import plan_hardware
from advisor.situation.past_runs import read_past_runs

# Assumed, of storage that machines share: a link of two gigabits.
SHARED_BYTES_PER_S = 2e8
# Allowed for what no estimate covers: installing packages, loading them from shared storage.
SET_UP_S = 1800
QUARTER_S = 900  # limits are rounded up to it
# Between the signal and the end of a process that has saved: Python and torch take some seconds.
ENDING_S = 30
LEAST_GRACE_S, UNKNOWN_GRACE_S = 120, 600
# Assumed, of a GPU: one core trains, the others read rows, copy and save.
CORES_A_GPU = 4
# Assumed, of a process beside what the estimate counts.
PROCESS_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one entry of a plan takes; None where it is not known."""

    entry: Entry
    expected_s: float | None  # with loading and measuring
    high_s: float | None  # the upper end of its band
    stop_s: float | None  # one step and one save, at their upper ends
    memory_bytes: int | None  # of a process, at the upper end of its band: on the CPU alone
    base_bytes: float | None  # of the model it starts from
    saved_bytes: float | None  # checkpoints and result
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a plan asks of a scheduler."""

    plan: Plan
    gpu: GpuSpec | None
    gpus: int  # on each machine; 0: it trains on the processor
    cores: int  # on each machine
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()  # what the estimate leaves out or takes for granted

    @property
    def nodes(self) -> int:
        return self.plan.launch.nodes

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the plan, each with a model of its own; none if it has no tasks."""
        return tuple(task.name for task in self.plan.tasks)

    @property
    def _groups(self) -> list[list[Part]]:
        """The parts that follow each other in one job: all, or those of one task."""
        if not self.tasks:
            return [list(self.parts)]
        return [
            [part for part in self.parts if part.entry.task and part.entry.task.name == name]
            for name in self.tasks
        ]

    @property
    def limit_s(self) -> int | None:
        """The time limit of a job: the upper end of the estimate and the set-up, rounded up to a
        quarter of an hour; of several tasks the longest. None if it is not known.
        """
        highs = [_sum(part.high_s for part in group) for group in self._groups]
        if any(high is None for high in highs):
            return None
        longest = max(high for high in highs if high is not None)
        return math.ceil((longest + SET_UP_S) / QUARTER_S) * QUARTER_S

    @property
    def grace_s(self) -> int:
        """How long before the limit a job is asked to stop: one step and one save by the estimate,
        in whole ten seconds.
        """
        stops = [part.stop_s for part in self.parts]
        if any(stop is None for stop in stops):
            return UNKNOWN_GRACE_S
        longest = max(stop for stop in stops if stop is not None) + ENDING_S
        return max(LEAST_GRACE_S, math.ceil(longest / 10) * 10)

    @property
    def memory_bytes(self) -> int | None:
        """Memory of each machine; None for a plan on GPUs, whose host memory is not estimated."""
        needs = [part.memory_bytes for part in self.parts]
        if any(need is None for need in needs):
            return None
        largest = max(need for need in needs if need is not None)
        return (largest + PROCESS_BYTES) * self.plan.launch.processes

    @property
    def disk_bytes(self) -> float | None:
        """Of the base, and of the checkpoints and results of all entries."""
        base = _sum(part.base_bytes for part in self.parts[:1])
        saved = _sum(part.saved_bytes for part in self.parts)
        return None if base is None or saved is None else base + saved

    def time_words(self) -> str:
        """'1 h 20 min by the estimate, at most 2 h 5 min'; of several tasks the longest one."""
        known = [
            (sum(part.expected_s or 0 for part in group), sum(part.high_s or 0 for part in group))
            for group in self._groups
        ]
        expected, high = max(known, key=lambda pair: pair[1])
        each = " (the longest task)" if self.tasks else ""
        return (
            f"{format_duration(expected)} by the estimate, at most {format_duration(high)}{each},"
            f" and {format_duration(SET_UP_S)} for the set-up"
        )

    def price_words(self) -> str:
        """What the whole plan costs at the lowest listed price, with provider and date."""
        if self.gpu is None:
            return "no price: it trains on the processor" if not self.gpus else "not known"
        count = self.gpus * self.nodes
        times = ([part.expected_s for part in self.parts], [part.high_s for part in self.parts])
        (expected, note), (high, _) = (cost_estimate(_sum(s), count, self.gpu) for s in times)
        if expected is None or high is None:
            return f"not known; {note}"
        return (
            f"{format_usd(expected)} by the estimate, at most {format_usd(high)}: {count} x {note}"
        )


def plan_needs(plan: Plan, plan_path: Path, *, gpu: str | None = None) -> Needs:
    """What the plan asks of a scheduler.

    Args:
        gpu: The GPU to estimate it on; None: that of the plan.

    Raises InputError for a plan that `advise run` would not start.
    """
    faults = launch_faults(plan)
    if plan.launch.device == "mps":
        faults.append(
            Fault(
                where="launch.device",
                what="the plan is for an Apple GPU, and no scheduler has one",
                allowed="device: cuda, rocm or cpu",
                hint="make the plan for the GPU it will run on: advise --gpu NAME",
            )
        )
    if faults:
        raise InputError(faults=faults)
    hardware, notes = plan_hardware(plan, gpu, is_elsewhere=True)
    shape = plan_shape(plan, plan_path)
    past, _ = read_past_runs()
    on_cpu = plan.launch.device == "cpu"
    profiles: dict[str, DataProfile | None] = {}
    parts = []
    for entry in entries(plan):
        path = entry.data.path
        if path not in profiles:
            profiles[path] = _profile(plan_path, entry, notes)
        rows = profiles[path]
        spec = run_spec(plan, entry.stage, profile=rows, shape=shape, cpu=on_cpu)
        tokens, count = amounts(plan, entry.stage, rows, None)
        found = estimate(
            spec,
            shape,
            hardware,
            tokens_total=tokens,
            rows_total=count,
            looked=looked_at(entry.stage, spec, rows) if rows and rows.tokens else None,
            padded_length=padded_length(plan, entry.stage, rows, unpadded=spec.unpadded),
            past=past,
        )
        parts.append(_part(entry, found, spec, shape, on_cpu=on_cpu))
    untimed = (extras()[name].UNTIMED for name in plan.extras)
    notes += [f"{what} are not in the time" for what in untimed if what]
    processes = plan.launch.processes
    return Needs(
        plan=plan,
        gpu=hardware.gpus[0].spec if hardware.gpus else None,
        gpus=0 if on_cpu else processes + _server_gpus(plan),
        cores=_cores(hardware, processes, on_cpu=on_cpu),
        parts=tuple(parts),
        notes=tuple(notes),
    )


def _profile(plan_path: Path, entry: Entry, notes: list[str]) -> DataProfile | None:
    """The data of an entry; None where it cannot be read, with a note that says why."""
    data = resolve_path(plan_path, entry.data.path)
    try:
        return profile(str(data) if data.exists() else entry.data.path, mapping=entry.data.mapping)
    except AdviseError as error:
        notes.append(f"no time, since the data cannot be read: {error.faults[0].headline}")
        return None


def _part(
    entry: Entry, found: Estimate, spec: RunSpec, shape: ModelShape | None, *, on_cpu: bool
) -> Part:
    times, stop_s, saved, read = found.times, None, None, None
    if shape is not None:
        read, written = weights_bytes(spec, shape)
        saved = WITH_MOMENTS * written
    if times is not None and found.step_s is not None and saved is not None:
        ratio = times.train_high_s / times.train_s if times.train_high_s else 1.0
        stop_s = found.step_s * ratio + saved / SHARED_BYTES_PER_S
    return Part(
        entry=entry,
        expected_s=times.total_s if times is not None else None,
        high_s=times.high_s if times is not None else None,
        stop_s=stop_s,
        memory_bytes=found.memory.high_bytes if on_cpu and found.memory is not None else None,
        base_bytes=read,
        saved_bytes=None if saved is None else 4 * saved,  # three checkpoints for a moment
        unknown=found.unknown,
    )


def _server_gpus(plan: Plan) -> int:
    """GPUs of a server that the run starts for the answers it learns from."""
    server = plan.launch.vllm
    if server is None or not server.python or not any(map(asks_server, plan.stages)):
        return 0
    return server.gpus


def _cores(hardware: Hardware, processes: int, *, on_cpu: bool) -> int:
    """Of each machine: on the processor those that the time is estimated with."""
    return (hardware.cpu_cores or processes) if on_cpu else CORES_A_GPU * processes


def why_online(plan: Plan) -> str | None:
    """Why a run needs a connection although models and data are there; None: it needs none."""
    for name, keys in plan.extras.items():
        if why := extras()[name].network(keys):
            return str(why)
    return None


def _sum(parts: Iterable[float | None]) -> float | None:
    """The sum; None where a part is not known."""
    known = list(parts)
    return None if None in known else sum(part or 0.0 for part in known)
