"""Whether the GPUs of the run have enough free memory."""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.types import Gpu
from advisor.ground.units import format_gib
from advisor.launch.call import Call, gpu_words
from advisor.launch.failure_report import smaller_hint
from advisor.record.files import try_read_part
from advisor.record.run import DRY_RUN, DryRunRecord
from advisor.record.stage import Expected

PHASE = "machine"
SHOWN_PROCESSES = 4


def check(call: Call) -> Checked:
    """What is short on the fullest of the run's GPUs; a dry run shows how much is really needed, so
    that it is only warned.

    It is clearly too little if even the lower end of the estimate's band is not free. What a dry
    run has measured counts instead of the estimate.
    """
    known = [
        (gpu.memory_free_bytes, place)
        for place, gpu in enumerate(call.gpus.gpus)
        if gpu.memory_free_bytes is not None
    ]
    if not known:
        return Checked()
    free, place = min(known)
    gpu, measured = call.gpus.gpus[place], measured_need(call)
    of_all = "" if gpu.memory_total_bytes is None else f" of {format_gib(gpu.memory_total_bytes)}"
    here = f"{gpu_words(gpu, place)} has {format_gib(free)} free{of_all}"
    others = f"other programs hold: {_holders(gpu)}" if gpu.other_processes else ""
    faults, warnings = [], []
    for entry in call.left:
        needs, low, high = _need(call.expected[entry.name], measured.get(entry.name))
        if low is None or high is None or high <= free:
            continue
        what, dry = f"stage {entry.name} {needs}, {here}", ""
        if entry.name not in measured:
            dry = "; `advise run --dry-run` measures it, and counts instead of the estimate"
        if low <= free:
            held = f" ({others})" if others else ""
            warnings.append(f"{what}: it may run out of memory{held}{dry}")
            continue
        smaller = smaller_hint(
            entry, call.run.is_chosen_folder, peak_of=call.estimator.peak_bytes, limit_bytes=free
        )
        frees = others and low <= (gpu.memory_total_bytes or low)
        hint = f"{'wait for them or end them, or ' if frees else ''}{smaller}{dry}"
        faults.append(Fault(what=what, where=f"stage {entry.name}", allowed=others, hint=hint))
    if call.options.dry_run:
        return Checked(warnings=[*warnings, *(fault.headline for fault in faults)])
    return Checked(lacking=faults, warnings=warnings)


def _need(expected: Expected, measured: int | None) -> tuple[str, int | None, int | None]:
    """('needs about 21.0 GiB (18.9 to 23.1)', the lower end, the upper end)."""
    if measured is not None:
        return f"needs {format_gib(measured)} (measured by a dry run)", measured, measured
    if expected.need_bytes is None:
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


def measured_need(call: Call) -> dict[str, int]:
    """Name of a training -> bytes that a dry run of this very plan reserved on the GPU."""
    record = try_read_part(DryRunRecord, call.run.folder / DRY_RUN)
    if record is None or set(call.run.digests.values()).isdisjoint(record.digests.values()):
        return {}
    return {
        stage.name: stage.measured.reserved_bytes
        for stage in record.stages
        if stage.measured is not None and stage.measured.reserved_bytes is not None
    }
