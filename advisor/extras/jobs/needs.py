"""What a plan asks of the machines that a scheduler gives it: GPUs, time, memory, money, and how
long a stop may take. Everything is an estimate, or is said not to be known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.data import profile
from advisor.estimate import NO_MODEL, cost_estimate, estimate
from advisor.estimate.time import weights_bytes
from advisor.estimate.whole_time import WITH_MOMENTS
from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.types import DataProfile, GpuSpec
from advisor.ground.units import GIB, format_duration, format_usd
from advisor.plan.checks import launch_faults
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path
from advisor.plan.vllm import asks_server
from advisor.plan.write import plan_digest
from advisor.situation.of_plan import evaluation_rows, plan_hardware, plan_run, plan_shape
from advisor.situation.past_runs import read_past_runs

# Not known, and so is every sum and maximum that it is a part of.
UNKNOWN = math.inf
# Assumed, of storage that machines share: a link of two gigabits.
SHARED_BYTES_PER_S = 2e8
# Allowed for what no estimate covers: installing packages, loading them from shared storage.
SET_UP_S = 1800
QUARTER_S = 900  # limits are rounded up to it
# Between the signal and the end of a process that has saved: Python and torch take some seconds.
ENDING_S = 30
LEAST_GRACE_S = 120
# Assumed, of a GPU: one core trains, the others read rows, copy and save.
CORES_A_GPU = 4
# Assumed, of a process beside what the estimate counts.
PROCESS_BYTES = 2 * GIB


class JobNeeds(Struct, frozen=True, kw_only=True):
    """What a plan asks of a scheduler."""

    plan: Plan
    gpu: GpuSpec | None
    gpus: int  # on each machine; 0: it trains on the processor
    cores: int  # on each machine
    memory_bytes: int | None  # of each machine; None: not known, as for a plan on GPUs
    disk_bytes: float  # of the base, and of all checkpoints and results; 0: not known
    expected_s: float  # of a job; of several tasks the one that takes longest
    high_s: float  # the upper end of its band
    limit_s: int | None  # of a job: that and the set-up, in whole quarters of an hour
    stop_s: float  # one step and one save, at their upper ends
    grace_s: int | None  # how long before the limit a job is asked to stop, in whole ten seconds
    price: str  # what the whole plan costs at the lowest listed price, with provider and date
    unknown: tuple[str, ...]  # what the estimate lacks
    notes: tuple[str, ...]  # what it leaves out or takes for granted

    @property
    def nodes(self) -> int:
        return self.plan.launch.nodes

    @property
    def tasks(self) -> list[str]:
        return [task.name for task in self.plan.tasks]

    @property
    def digest(self) -> str:
        """Of the plan: in names that another plan must not have."""
        return plan_digest(self.plan)[:8]

    @property
    def facts(self) -> dict[str, Any]:
        """What the JSON of every scheduler says."""
        gpu = self.gpu.id if self.gpu is not None else None
        return {"nodes": self.nodes, "gpu": gpu, "tasks": self.tasks, "price": self.price}

    def time_words(self) -> str:
        """'1 h 20 min by the estimate, at most 2 h 5 min'; of several tasks the longest one."""
        if self.high_s == UNKNOWN:
            why = "; ".join(self.unknown)
            return f"not known ({why})" if why else "not known"
        each = " (the longest task)" if self.tasks else ""
        return (
            f"{format_duration(self.expected_s)} by the estimate, at most"
            f" {format_duration(self.high_s)}{each}, and {format_duration(SET_UP_S)} for the set-up"
        )

    def offline_line(self) -> str:
        """The line of a job's script that keeps it off the network, or says why it needs one."""
        for name, keys in self.plan.extras.items():
            if why := extras()[name].network(keys):
                return f"# Not offline: {why}."
        return "export HF_HUB_OFFLINE=1 # all of it is there now"


def plan_needs(plan: Plan, plan_path: Path, *, gpu: str | None = None) -> JobNeeds:
    """What the plan asks of a scheduler. Raises InputError if it cannot be started."""
    faults = launch_faults(plan)
    if plan.launch.device == "mps":
        what = "the plan is for an Apple GPU, and no scheduler has one"
        hint = "make the plan for the GPU it will run on: --gpu names it"
        faults.append(Fault(where="launch.device", what=what, hint=hint))
    if faults:
        raise InputError(faults=faults)
    hardware, notes = plan_hardware(plan, gpu, is_elsewhere=True)
    shape = plan_shape(plan, plan_path)
    past, _ = read_past_runs()
    processes, server = plan.launch.processes, plan.launch.vllm
    on_cpu = plan.launch.device == "cpu"
    profiles: dict[str, DataProfile | None] = {}
    expected_s, high_s = defaultdict[str, float](float), defaultdict[str, float](float)
    stop_s = memory = base = saved = 0.0
    unknown: list[str] = []
    for entry in entries(plan):
        path = entry.data.path
        if path not in profiles:
            profiles[path] = _profile(plan_path, entry, notes)
        rows = profiles[path]
        found, read, written = NO_MODEL, UNKNOWN, UNKNOWN
        if shape is not None:
            run = plan_run(plan, entry.stage, shape, hardware, rows)
            evaluated = None
            if rows is not None:
                evaluated = evaluation_rows(entry.stage, rows) if rows.tokens else None
            found = estimate(run, hardware, evaluated=evaluated, past=past)
            read, written = weights_bytes(run)
        unknown += found.unknown
        task, times = entry.task.name if entry.task else "", found.times
        expected_s[task] += times.total_s if times else UNKNOWN
        high_s[task] += times.high_s if times else UNKNOWN
        memory = max(memory, found.memory.high_bytes if on_cpu and found.memory else UNKNOWN)
        base = base or read
        saved += 4 * WITH_MOMENTS * written  # three checkpoints for a moment, and the result
        step_s = UNKNOWN if found.step_s is None or times is None else found.step_s
        if times and times.train_high_s:
            step_s *= times.train_high_s / times.train_s
        stop_s = max(stop_s, step_s + WITH_MOMENTS * written / SHARED_BYTES_PER_S)
    untimed = (extras()[name].UNTIMED for name in plan.extras)
    notes += [f"{what} are not in the time" for what in untimed if what]
    gpus, cores = processes, CORES_A_GPU * processes
    if on_cpu:  # with those cores that the time is estimated with
        gpus, cores = 0, hardware.cpu_cores or processes
    elif server is not None and server.python and any(map(asks_server, plan.stages)):
        gpus += server.gpus  # the run starts it
    card = hardware.gpus[0].spec if hardware.gpus else None
    whole_s = sum(expected_s.values()), sum(high_s.values())
    longest = max(high_s, key=lambda task: high_s[task])
    return JobNeeds(
        plan=plan,
        gpu=card,
        gpus=gpus,
        cores=cores,
        memory_bytes=None if memory == UNKNOWN else (int(memory) + PROCESS_BYTES) * processes,
        disk_bytes=0 if base + saved == UNKNOWN else base + saved,
        expected_s=expected_s[longest],
        high_s=high_s[longest],
        limit_s=_rounded_up(high_s[longest] + SET_UP_S, QUARTER_S),
        stop_s=stop_s,
        grace_s=_rounded_up(max(LEAST_GRACE_S, stop_s + ENDING_S), 10),
        price=_price(card, gpus * plan.launch.nodes, *whole_s, SET_UP_S * len(high_s)),
        unknown=tuple(dict.fromkeys(unknown)),
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


def _price(
    gpu: GpuSpec | None, count: int, expected_s: float, high_s: float, set_up_s: float
) -> str:
    """Of the time that `time_words` says, part by part."""
    if gpu is None:
        return "not known" if count else "no price: it trains on the processor"
    expected, note = cost_estimate(None if expected_s == UNKNOWN else expected_s, count, gpu)
    high, _ = cost_estimate(None if high_s == UNKNOWN else high_s, count, gpu)
    if expected is None or high is None:
        return f"not known; {note}"
    besides, _ = cost_estimate(set_up_s, count, gpu)
    return (
        f"{format_usd(expected)} by the estimate, at most {format_usd(high)}, and"
        f" {format_usd(besides or 0.0)} for the set-up: {count} x {note}"
    )


def _rounded_up(seconds: float, unit_s: int) -> int | None:
    return None if seconds == UNKNOWN else math.ceil(seconds / unit_s) * unit_s
