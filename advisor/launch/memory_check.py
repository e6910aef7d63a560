"""Whether a run finds the memory it needs: what each stage is expected to need, or a dry run has
measured, against what is free on its GPUs now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.types import Gpu
from advisor.ground.units import format_gib
from advisor.launch.failure_report import smaller_hint
from advisor.launch.gpus import gpu_words
from advisor.plan.entries import Entry
from advisor.plan.measured_record import Expected
from advisor.plan.record import DRY_RUN, DryRunRecord
from advisor.plan.record_files import try_read_part
from advisor.plan.smaller import PeakOf

SHOWN_PROCESSES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFindings:
    """What the check says."""

    faults: tuple[Fault, ...] = ()  # clearly too little
    warnings: tuple[str, ...] = ()  # perhaps too little


def check_memory(
    todo: Sequence[Entry],
    expected: Mapping[str, Expected],
    gpus: Sequence[Gpu],
    *,
    measured: Mapping[str, int],
    is_chosen_folder: bool = False,
    peak_of: PeakOf | None = None,
) -> MemoryFindings:
    """What is short on the fullest of the run's GPUs.

    It is clearly too little if even the lower end of the estimate's band is not free. What a dry
    run has measured counts instead of the estimate.

    Args:
        todo: The entries that are still to be trained.
        expected: Entry -> its estimate.
        gpus: Those of the run.
        measured: Entry -> bytes that a dry run of this plan reserved.
        is_chosen_folder: The user named the run folder with --output.
        peak_of: The estimated peak of a stage, for the change that is enough.
    """
    known = [
        (gpu.memory_free_bytes, place)
        for place, gpu in enumerate(gpus)
        if gpu.memory_free_bytes is not None
    ]
    if not known:
        return MemoryFindings()
    free, place = min(known)
    gpu, faults, warnings = gpus[place], [], []
    here = (
        f"{gpu_words(gpu, place)} has {format_gib(free)} free"
        f"{'' if gpu.memory_total_bytes is None else f' of {format_gib(gpu.memory_total_bytes)}'}"
    )
    others = f"other programs hold: {_holders(gpu)}" if _holders(gpu) else ""
    for entry in todo:
        needs, low, high = _need(expected.get(entry.name), measured.get(entry.name))
        if low is None or high is None or high <= free:
            continue
        check = (
            ""
            if entry.name in measured
            else "; `advise run --dry-run` measures it, and counts instead of the estimate"
        )
        if low <= free:
            warnings.append(
                f"stage {entry.name} {needs}, {here}: it may run out of memory"
                f"{f' ({others})' if others else ''}{check}"
            )
            continue
        is_too_small = gpu.memory_total_bytes is not None and low > gpu.memory_total_bytes
        wait = "" if is_too_small or not others else "wait for them or end them, or "
        smaller = smaller_hint(entry, is_chosen_folder, peak_of=peak_of, limit_bytes=free)
        faults.append(
            Fault(
                where=f"stage {entry.name}",
                what=f"stage {entry.name} {needs}, {here}",
                allowed=others,
                hint=f"{wait}{smaller}{check}",
            )
        )
    return MemoryFindings(faults=tuple(faults), warnings=tuple(warnings))


def _need(
    expected: Expected | None, measured_bytes: int | None
) -> tuple[str, int | None, int | None]:
    """('needs about 21.0 GiB (18.9 to 23.1)', the lower end, the upper end)."""
    if measured_bytes is not None:
        return (
            f"needs {format_gib(measured_bytes)} (measured by a dry run)",
            measured_bytes,
            measured_bytes,
        )
    if expected is None or expected.need_bytes is None:
        return "", None, None
    low = expected.need_low_bytes or expected.need_bytes
    high = expected.need_high_bytes or expected.need_bytes
    band = f"{format_gib(low)} to {format_gib(high)}"
    return f"needs about {format_gib(expected.need_bytes)} ({band})", low, high


def _holders(gpu: Gpu) -> str:
    """'python (process 4242) 18.1 GiB, Xorg (process 7) 0.8 GiB'."""
    found = [
        f"{process.name or 'a program'} (process {process.pid})"
        f"{'' if process.memory_bytes is None else f' {format_gib(process.memory_bytes)}'}"
        for process in gpu.other_processes
    ]
    more = len(found) - SHOWN_PROCESSES
    return ", ".join(found[:SHOWN_PROCESSES]) + (f" and {more} more" if more > 0 else "")


def measured_need(folder: Path, digests: Iterable[str]) -> dict[str, int]:
    """Entry -> bytes that a dry run of this very plan reserved on the GPU; empty without one."""
    record = try_read_part(DryRunRecord, folder / DRY_RUN)
    if record is None or not set(digests) & set(record.digests.values()):
        return {}
    return {
        stage.name: stage.measured.reserved_bytes
        for stage in record.stages
        if stage.measured is not None and stage.measured.reserved_bytes is not None
    }
