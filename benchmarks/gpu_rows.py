"""What a run measured on a GPU as rows of the table in docs/gpu.md. No paths, no names of data."""

from __future__ import annotations

import re

from advisor.ground.units import GIB
from advisor.record.run import ResolvedSettings, RunRecord, StageRecord

COLUMNS = (
    "GPU",
    "driver",
    "model",
    "method",
    "settings",
    "expected GiB",
    "allocated GiB",
    "reserved GiB",
    "expected time",
    "measured time",
    "tokens/s",
    "versions",
)
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
UNKNOWN = "?"


def gpu_row(record: RunRecord, stage: StageRecord) -> tuple[str, ...]:
    """The values of a stage's row, in the order of COLUMNS."""
    machine, measured, expected = record.hardware, stage.measured, stage.expected
    assert machine is not None
    assert measured is not None
    names = machine.gpus
    resolved = record.resolved.get(stage.name)
    scheme = f"{stage.update} on {stage.quantization}" if stage.quantization else stage.update
    versions = [
        f"{name} {record.versions[name]}" for name in LIBRARIES if record.versions.get(name)
    ]
    return (
        f"{len(names)} x {names[0]}" if len(names) > 1 else names[0],
        machine.driver_version or UNKNOWN,
        model_name(record, resolved),
        f"{stage.objective}, {scheme}",
        settings_of(resolved, stage),
        in_gib(expected.counted_bytes if expected else None),
        in_gib(measured.peak_bytes),
        in_gib(measured.reserved_bytes),
        in_seconds(expected.duration_s if expected else None),
        in_seconds(measured.train_s),
        UNKNOWN if measured.tokens_per_s is None else f"{measured.tokens_per_s:.0f}",
        ", ".join(versions) or UNKNOWN,
    )


def table_row(values: tuple[str, ...]) -> str:
    """The values as a line of a Markdown table."""
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"


def model_name(record: RunRecord, resolved: ResolvedSettings | None) -> str:
    """The model's hub id; of a folder only how large the model is."""
    if record.model and HUB_ID.fullmatch(record.model):
        return record.model
    count = resolved.parameters if resolved else None
    return f"a local model, {count / 1e9:.2f} B" if count else "a local model"


def settings_of(resolved: ResolvedSettings | None, stage: StageRecord) -> str:
    """What decides memory and time, in a few words."""
    if resolved is None:
        return UNKNOWN
    found = [str(resolved.weights_dtype)]
    found += [f"autocast {resolved.autocast}"] if resolved.autocast else []
    arguments = resolved.trl or {}
    micro, accumulated = (
        arguments.get("per_device_train_batch_size"), arguments.get("gradient_accumulation_steps")
    )  # fmt: skip
    found += [f"batch {micro} x {accumulated}"] if micro else []
    found += [f"{resolved.seq_len} tokens"] if resolved.seq_len else []
    found += [f"rank {resolved.options['rank']}"] if resolved.options.get("rank") else []
    found += ["packed"] if resolved.packing else []
    found += ["grouped by length"] if resolved.group_by_length else []
    found += ["recomputed"] if arguments.get("gradient_checkpointing") else []
    found += [str(arguments["optim"])] if arguments.get("optim") else []
    found += [str(resolved.attention)] if resolved.attention else []
    return ", ".join(found) + (f", {stage.steps} steps" if stage.steps else "")


def in_gib(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / GIB:.2f}"


def in_seconds(duration_s: float | None) -> str:
    return UNKNOWN if duration_s is None else f"{duration_s:.0f} s"
