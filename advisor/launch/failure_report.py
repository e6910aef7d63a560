"""Why a trainer failed, in words for the person who started it; if memory ran out, with the next
smaller setting.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advisor.ground.errors import (
    AdviseError,
    InputError,
    MachineNotReady,
    NothingFits,
    Stopped,
    TrainingFailed,
)
from advisor.methods import update
from advisor.plan.entries import Entry
from advisor.plan.record import ERROR, RESULT, ErrorRecord, StageResult, read_part, try_read_part

KINDS: dict[int, type[AdviseError]] = {
    2: InputError,
    3: NothingFits,
    4: MachineNotReady,
    5: TrainingFailed,
    70: AdviseError,
    130: Stopped,
}
SHORTEST_SEQ_LEN = 256  # shorter sequences cut most conversations
NO_SPACE_BYTES = 16 * 2**20
RESUME = "run the same command again to resume from the last checkpoint"
FREE_SPACE = f"free some space, then {RESUME}"
DISK_FULL = ("no space left on device", "disk quota exceeded")  # in errors of many libraries
ERROR_OF_ANY_RANK = "error-rank*.json"
STOP_CODES = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 130, 143)


def oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since the machine started;
    None if the kernel does not say.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def explain_failure(
    entry: Entry, *, code: int, folder: Path, oom_kills_before: int | None, is_chosen_folder: bool
) -> AdviseError:
    """The error of a trainer that ended with a code other than 0, or without a readable result.

    Args:
        entry: What was being trained.
        code: Its exit code; negative: the signal that ended it.
        folder: The stage's folder, where the trainer leaves error.json, or each of several
            processes its own.
        oom_kills_before: The kernel's count when the trainer was started.
        is_chosen_folder: The user named the run folder with --output, so that other settings need
            another folder.
    """
    told = read_error(folder) if code != 0 else None
    before, after = oom_kills_before, oom_kills()
    is_certain = before is not None and after is not None and after > before
    # A process that was killed leaves no word: the others only say that it was gone.
    killed_silently = told is not None and told.lost_others and is_certain
    if told is not None and not killed_silently:
        return _told(entry, told, code, folder, is_chosen_folder)
    if code in STOP_CODES:
        return Stopped(f"stage {entry.name}: stopped", hint=RESUME)
    if code in (-signal.SIGKILL, 137) or killed_silently:
        killer = (
            "by the kernel's out-of-memory killer"
            if is_certain
            else "by signal 9, usually the out-of-memory killer"
        )
        return TrainingFailed(
            f"stage {entry.name}: the trainer was ended {killer}: the machine ran out of memory",
            hint=smaller_hint(entry, is_chosen_folder),
        )
    if shutil.disk_usage(folder if folder.exists() else folder.parent.parent).free < NO_SPACE_BYTES:
        return _disk_full(entry, folder)
    if code < 0:
        return TrainingFailed(
            f"stage {entry.name}: the trainer was ended by signal {-code} ({_signal_name(-code)})",
            hint="usually a crash inside a library; its output is above",
        )
    if code == 0:
        return TrainingFailed(
            f"stage {entry.name}: the trainer ended without a readable {RESULT} in {folder}",
            _fault_of_result(folder / RESULT),
            RESUME,
        )
    return KINDS.get(code, TrainingFailed)(
        f"stage {entry.name}: the trainer ended with exit code {code}",
        hint="its output is above",
    )


def read_error(folder: Path) -> ErrorRecord | None:
    """The error that a trainer left in the stage's folder; of several processes, the one that made
    the others fail. None if nobody left one.
    """
    records = [
        record
        for path in sorted(folder.glob(ERROR_OF_ANY_RANK))
        if (record := try_read_part(ErrorRecord, path)) is not None
    ]
    return first_cause(records) if records else try_read_part(ErrorRecord, folder / ERROR)


def forget_errors(folder: Path) -> None:
    """Remove the errors of an earlier attempt."""
    for path in [folder / ERROR, *folder.glob(ERROR_OF_ANY_RANK)]:
        path.unlink(missing_ok=True)


def first_cause(records: Sequence[ErrorRecord]) -> ErrorRecord:
    """The earliest error that is neither a lost connection nor a stop: when one process fails, the
    others lose their connection to it, and the launcher stops those that still run.

    Names the process if the others did not fail in the same way.
    """

    def order(record: ErrorRecord) -> tuple[bool, bool, float]:
        return record.exit_code == Stopped.exit_code, bool(record.lost_others), record.at_s or 0.0

    first = min(records, key=order)
    if first.rank is None or all(record.what == first.what for record in records):
        return first
    if first.lost_others or first.exit_code == Stopped.exit_code:
        return first  # nobody knows which process it was
    return replace(first, what=f"process {first.rank}: {first.what}")


def _told(
    entry: Entry, told: ErrorRecord, code: int, folder: Path, is_chosen_folder: bool
) -> AdviseError:
    """The error that the trainer itself wrote down."""
    text = told.what.lower()
    if any(words in text for words in DISK_FULL):
        return _disk_full(entry, folder)
    what = f"stage {entry.name}: {told.what}"
    if "out of memory" in text:
        return TrainingFailed(what, told.allowed, smaller_hint(entry, is_chosen_folder))
    return KINDS.get(told.exit_code or code, TrainingFailed)(what, told.allowed, told.hint)


def _disk_full(entry: Entry, folder: Path) -> AdviseError:
    return MachineNotReady(f"stage {entry.name}: the disk is full at {folder}", hint=FREE_SPACE)


def _fault_of_result(path: Path) -> str:
    """What is wrong with a result.json that cannot be used; an empty text if it is not there."""
    try:
        read_part(StageResult, path)
    except InputError as error:
        return error.text()
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def smaller_hint(entry: Entry, is_chosen_folder: bool) -> str:
    """The command-line settings that make the stage need less memory."""
    settings, why = smaller(entry)
    if not settings:
        return "take a smaller model, or a device with more memory"
    changes = " ".join(f"--set {_key_path(entry, key)}={value}" for key, value in settings.items())
    return (
        f"run again with {changes}{' and another --output DIR' if is_chosen_folder else ''} ({why})"
    )


def smaller(entry: Entry) -> tuple[Mapping[str, str], str]:
    """The next smaller setting and what it does; those that change the result least come first."""
    stage = entry.stage
    if stage.micro_batch_size > 1:
        half = stage.micro_batch_size // 2
        return {
            "micro_batch_size": str(half),
            "grad_accum": str(-(-stage.effective_batch_size // half)),
        }, "fewer rows at a time, the same effective batch size"
    if not stage.gradient_checkpointing:
        return {"gradient_checkpointing": "true"}, "recomputes activations instead of keeping them"
    if stage.seq_len // 2 >= SHORTEST_SEQ_LEN:
        why = "shorter rows only; what happens to longer ones, `truncation` says"
        return {"seq_len": str(stage.seq_len // 2)}, why
    if update(stage.update).is_module and stage.quantization is None:
        return {"quantization": "nf4"}, "stores the frozen base in 4 bits"
    if not update(stage.update).is_module:
        return {
            "update": "lora",
            "learning_rate": "null",
        }, "trains a small module instead of every weight"
    return {}, ""


def _key_path(entry: Entry, key: str) -> str:
    if entry.task is not None and key in entry.task.overrides:
        return f"tasks.{entry.task.name}.overrides.{key}"
    return f"stages.{entry.stage.name}.{key}"
