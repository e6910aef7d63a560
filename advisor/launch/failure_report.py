"""Why a trainer failed, in words for the person who started it. A stage that ran out of memory is
started again with the next smaller micro-batch, or gets the change that a person has to make.

The setting stands in the stage's adjusted.json, which the trainer reads when it starts and writes
when it changes it by itself; run.json says the same.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.errors import (
    AdviseError,
    InputError,
    MachineNotReady,
    NodeLost,
    NothingFits,
    OutOfMemory,
    Stopped,
    TrainingFailed,
)
from advisor.ground.files import free_bytes, text_of
from advisor.ground.memory_errors import memory_error
from advisor.launch.child import Ended
from advisor.launch.folder import last_logged
from advisor.plan.entries import Entry
from advisor.plan.model import Stage
from advisor.record.files import read_part, try_read_part, write_record
from advisor.record.run import ADJUSTED, DOING, ERROR, RESULT, StageResult
from advisor.record.smaller import (
    NOTHING_SMALLER,
    PeakOf,
    adjustment_of,
    as_settings,
    next_batch,
    next_change,
    valid_adjustments,
)
from advisor.record.stage import Adjusted, Adjustment, Doing, ErrorRecord

KINDS: dict[int, type[AdviseError]] = {
    2: InputError,
    3: NothingFits,
    4: MachineNotReady,
    5: TrainingFailed,
    70: AdviseError,
    75: NodeLost,
    130: Stopped,
}
NO_SPACE_BYTES = 16 * 2**20
FREE_SPACE = "free some space"
DISK_FULL = ("no space left", "disk quota exceeded")  # in errors of many libraries
ERROR_OF_ANY_RANK = "error-rank*.json"
SIGNALS = {one.value: one.name for one in signal.Signals}
# Windows, where advice runs and training does not, has no SIGHUP and no SIGKILL.
SIGHUP, SIGKILL = 1, 9
STOP_CODES = (-signal.SIGTERM, -signal.SIGINT, -SIGHUP, 129, 130, 143)
KILLED = (-SIGKILL, 137)  # the trainer; or one of several processes, as its launcher says


def oom_kills() -> int | None:
    """Processes that the kernel has killed for memory since it started; None: it does not say."""
    try:
        lines = text_of(Path("/proc/vmstat")).splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def explain_failure(
    entry: Entry,
    *,
    ended: Ended,
    folder: Path,
    oom_kills_before: int | None,
    smaller: Callable[[str], str],
) -> AdviseError:
    """The error of a trainer that ended with a code other than 0, or without a readable result.

    Args:
        folder: The stage's folder, where the trainer leaves error.json, or each of several
            processes its own.
        oom_kills_before: The kernel's count when the trainer was started.
        smaller: Names the change that makes the stage need less memory, by what it was doing as
            memory ran out (an empty text: not known).
    """
    at, code = f"stage {entry.name}", ended.code
    told = read_error(folder) if code != 0 else None
    if (ended.was_stopped or code in STOP_CODES) and (told is None or told.lost_others):
        doing = doing_of(folder)
        what = f"stopped while {doing}: no step is lost" if doing else "stopped: no step is lost"
        if doing == "training":
            what = "stopped at once: the steps since the last checkpoint are lost"
        return Stopped(what, where=at)
    kills = oom_kills()
    is_certain = None if None in (kills, oom_kills_before) else kills != oom_kills_before
    # A process that was killed leaves no word: the others, if any, only say that it was gone.
    killed_silently = is_certain and (bool(told.lost_others) if told is not None else code > 0)
    if told is not None and not killed_silently:
        return _told(entry, told, code, folder, smaller)
    if code in KILLED or killed_silently:
        if is_certain is False:
            what = (
                "the trainer was ended by signal 9, not by the kernel's out-of-memory killer: by a"
                " person, or a scheduler that saw too much memory"
            )
            return TrainingFailed(what, where=at, hint=smaller(doing_of(folder)))
        by = "the kernel's" if is_certain else "signal 9, usually the"
        doing = doing_of(folder)
        during = f" while {doing}" if doing else ""
        what = f"the trainer was ended by {by} out-of-memory killer{during}"
        return OutOfMemory(what, where=at, hint=smaller(doing))
    if free_bytes(folder) < NO_SPACE_BYTES:
        return _disk_full(entry, folder)
    if code < 0:
        what = f"the trainer was ended by signal {-code} ({SIGNALS.get(-code, 'unknown')})"
        hint = "usually a crash inside a library; its output is above"
        return TrainingFailed(what, where=at, hint=hint)
    if code == 0:
        try:
            why = "" if read_part(StageResult, folder / RESULT) else "there is none"
        except InputError as error:
            why = error.text()
        what = f"the trainer ended without a readable {RESULT} in {folder}"
        return TrainingFailed(what, why, where=at)
    known = KINDS.get(code, TrainingFailed)
    return known(f"the trainer ended with exit code {code}", where=at, hint="its output is above")


def doing_of(folder: Path) -> str:
    """What a trainer was at when it ended; an empty text if it did not say."""
    told = read_error(folder)
    if told is not None and told.doing:
        return told.doing
    found = try_read_part(Doing, folder / DOING)
    return found.doing if found is not None else ""


def read_error(folder: Path) -> ErrorRecord | None:
    """The error that a trainer, or the first of several processes, left; None without one."""
    left = [try_read_part(ErrorRecord, path) for path in sorted(folder.glob(ERROR_OF_ANY_RANK))]
    records = [record for record in left if record is not None]
    return first_cause(records) if records else try_read_part(ErrorRecord, folder / ERROR)


def forget_errors(folder: Path) -> None:
    """Remove the errors of an earlier attempt, and what it was at."""
    for path in [folder / ERROR, folder / DOING, *folder.glob(ERROR_OF_ANY_RANK)]:
        path.unlink(missing_ok=True)


def first_cause(records: Sequence[ErrorRecord]) -> ErrorRecord:
    """The earliest error that is neither a lost connection nor a stop: when one process fails, the
    others lose their connection to it, and the launcher stops those that still run.

    Names the process if the others did not fail in the same way.
    """

    def order(record: ErrorRecord) -> tuple[bool, bool, float]:
        return record.exit_code == Stopped.exit_code, bool(record.lost_others), record.at_s or 0.0

    first = min(records, key=order)
    # Whoever was ended meanwhile leaves no word; a fault of the plan is that of all on a machine.
    is_input = first.exit_code == InputError.exit_code and not first.host
    is_of_all = len(records) > 1 or is_input
    is_unclear = first.lost_others or first.exit_code == Stopped.exit_code or first.rank is None
    if is_unclear or (is_of_all and all(one.what == first.what for one in records)):
        return first
    where = f"process {first.rank}{f' on {first.host}' if first.host else ''}"
    return replace(first, what=f"{where}: {first.what}")


def _told(
    entry: Entry, told: ErrorRecord, code: int, folder: Path, smaller: Callable[[str], str]
) -> AdviseError:
    text = told.what.lower()
    if any(words in text for words in DISK_FULL):
        return _disk_full(entry, folder)
    stage = f"stage {entry.name}"
    kind, hint = KINDS.get(told.exit_code or code, TrainingFailed), told.hint
    if told.kind == OutOfMemory.__name__ or "out of memory" in text or memory_error(told.what):
        kind, hint = OutOfMemory, smaller(doing_of(folder))
    return kind(told.what.removeprefix(f"{stage}: "), told.allowed, hint, where=stage)


def _disk_full(entry: Entry, folder: Path) -> AdviseError:
    return MachineNotReady(
        f"the disk is full at {folder}", where=f"stage {entry.name}", hint=FREE_SPACE
    )


def smaller_hint(
    entry: Entry,
    is_chosen_folder: bool,
    *,
    peak_of: PeakOf | None = None,
    limit_bytes: int | None = None,
    loading: bool = False,
) -> str:
    """The command-line settings that make the stage need less memory.

    Args:
        peak_of: The estimated peak of a stage; None: the first change is named, whatever it saves.
        limit_bytes: What the device had.
        loading: It ran out as the model was loaded, which fewer rows do not change.
    """
    change = next_change(entry.stage, peak_of=peak_of, limit_bytes=limit_bytes, loading=loading)
    if change is None:
        return NOTHING_SMALLER
    return (
        f"run again with {as_settings(entry, change)}"
        f"{' and another --output DIR' if is_chosen_folder else ''} ({change.why})"
    )


def adjustments(entry: Entry, folder: Path) -> list[Adjustment]:
    """What the stage has changed by itself so far."""
    return valid_adjustments(entry.stage, try_read_part(Adjusted, folder / ADJUSTED))


def stage_as_run(entry: Entry, folder: Path) -> Stage:
    """The stage with the micro-batch that it had come to."""
    done = adjustments(entry, folder)
    if not done:
        return entry.stage
    return replace(
        entry.stage, micro_batch_size=done[-1].micro_batch_size, grad_accum=done[-1].grad_accum
    )


def next_attempt(entry: Entry, folder: Path, why: str) -> Adjustment | None:
    """The smaller micro-batch that the stage is started again with, written down for its trainer;
    None if there is none, or it would not help: memory ran out as the model was loaded, or saved.

    Raises MachineNotReady if it cannot be written down.
    """
    done = adjustments(entry, folder)
    rows = done[-1].micro_batch_size if done else entry.stage.micro_batch_size
    change = next_batch(entry.stage, rows)
    if change is None or doing_of(folder) not in ("training", "evaluating", ""):
        return None
    task = entry.task.name if entry.task else None
    logged = last_logged(folder.parent.parent, entry.stage.name, task)
    adjustment = adjustment_of(entry, change, why, at_step=logged["step"] if logged else None)
    write_record(folder / ADJUSTED, Adjusted(adjusted=(*done, adjustment)))
    return adjustment
