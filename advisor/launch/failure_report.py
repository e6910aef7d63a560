"""Why a trainer failed, in the words of the person who started it, with the next smaller setting
where memory ran out.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.ground.errors import (
    AdviseError,
    InputError,
    MachineNotReady,
    NothingFits,
    Stopped,
    TrainingFailed,
)
from advisor.plan.entries import Entry

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
DISK_HINT = "free some space; the same command goes on from the last checkpoint"


def oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since the machine started;
    None: not told.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def read_result(path: Path) -> dict[str, Any] | None:
    """A JSON object that a trainer wrote, or None where it is missing, half-written or holds a
    number JSON has no word for.
    """

    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        value = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def failure(
    entry: Entry, *, code: int, folder: Path, oom_kills_before: int | None, in_place: bool
) -> AdviseError:
    """The error of a child that ended with a code other than 0, or without a readable result.

    Args:
        entry: What was being trained.
        code: Its exit code; negative: the signal that ended it.
        folder: The stage's folder, where the trainer leaves error.json.
        oom_kills_before: The kernel's count when the child was started.
        in_place: True where the user chose the folder with --output, so that other settings need
            another folder.
    """
    written = read_result(folder / "error.json")
    if written is not None and code != 0:
        what, allowed, hint = (str(written.get(part) or "") for part in ("what", "allowed", "hint"))
        kind = (
            KINDS.get(int(written.get("exit_code") or code), TrainingFailed)
            if str(written.get("exit_code", code)).isdigit()
            else TrainingFailed
        )
        if (
            "no space left on device" in what.lower() or "disk quota exceeded" in what.lower()
        ):  # some libraries wrap it in classes of their own
            return MachineNotReady(
                f"stage {entry.name}: the disk is full at {folder}", hint=DISK_HINT
            )
        if "out of memory" in what.lower():
            return TrainingFailed(
                f"stage {entry.name}: {what}", allowed, smaller_hint(entry, in_place)
            )
        return kind(f"stage {entry.name}: {what}", allowed, hint)
    if code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 130, 143):
        return Stopped(
            f"stage {entry.name}: stopped", hint="the same command goes on from the last checkpoint"
        )
    if code == -signal.SIGKILL or code == 137:
        before, after = oom_kills_before, oom_kills()
        killer = (
            "by the kernel's out-of-memory killer"
            if before is not None and after is not None and after > before
            else "by signal 9, usually the out-of-memory killer"
        )
        return TrainingFailed(
            f"stage {entry.name}: the trainer was ended {killer}: the machine ran out of memory",
            "",
            smaller_hint(entry, in_place),
        )
    if shutil.disk_usage(folder if folder.exists() else folder.parent.parent).free < NO_SPACE_BYTES:
        return MachineNotReady(f"stage {entry.name}: the disk is full at {folder}", hint=DISK_HINT)
    if code < 0:
        return TrainingFailed(
            f"stage {entry.name}: the trainer was ended by signal {-code} ({_signal_name(-code)})",
            hint="a crash inside a library, mostly; what it printed stands above",
        )
    if code == 0:
        return TrainingFailed(
            f"stage {entry.name}: the trainer ended without a readable result.json in {folder}",
            hint="the same command trains it again from the last checkpoint",
        )
    return KINDS.get(code, TrainingFailed)(
        f"stage {entry.name}: the trainer ended with exit code {code}",
        hint="what it printed stands above",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def smaller_hint(entry: Entry, in_place: bool) -> str:
    """The command-line settings that make the stage smaller."""
    settings, why = smaller(entry)
    if not settings:
        return "take a smaller model, or a device with more memory"
    changes = " ".join(f"--set {_place(entry, key)}={value}" for key, value in settings.items())
    return f"run again with {changes}{' and another --output DIR' if in_place else ''} ({why})"


def smaller(entry: Entry) -> tuple[Mapping[str, str], str]:
    """The next smaller setting, the one that changes the result least first, and what it does."""
    stage = entry.stage
    if stage.micro_batch_size > 1:
        half = stage.micro_batch_size // 2
        return {
            "micro_batch_size": str(half),
            "grad_accum": str(-(-stage.effective_batch_size // half)),
        }, "fewer rows at once, as many a step"
    if not stage.gradient_checkpointing:
        return {"gradient_checkpointing": "true"}, "activations are computed twice instead of kept"
    if stage.seq_len // 2 >= SHORTEST_SEQ_LEN:
        return {
            "seq_len": str(stage.seq_len // 2)
        }, "shorter rows only; longer ones are counted and follow `truncation`"
    if stage.update != "full" and stage.quantization is None:
        return {"quantization": "nf4"}, "the frozen base in 4 bits"
    if stage.update == "full":
        return {"update": "lora", "learning_rate": "null"}, "a small module instead of every weight"
    return {}, ""


def _place(entry: Entry, key: str) -> str:
    if entry.task is not None and key in entry.task.overrides:
        return f"tasks.{entry.task.name}.overrides.{key}"
    return f"stages.{entry.stage.name}.{key}"
