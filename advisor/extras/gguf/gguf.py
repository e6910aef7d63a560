"""A result as a GGUF file for llama.cpp, LM Studio and Ollama, compared with the model."""

from __future__ import annotations

from typing import Literal

from advisor.export.exporter import Wanted
from advisor.ground.files import DISK, TEMPORARY
from advisor.record.files import device_of

NAME = "gguf"
HELP = "a GGUF file for llama.cpp, 16 bit; also gguf:Q8_0, gguf:Q4_K_M"
TAKES: Literal["plan", "run"] = "run"
NEEDS = ("torch", "transformers", "peft", "gguf")
VARIANTS = True


def export(wanted: Wanted) -> int:
    """Write and compare the results of a run folder; nothing half-written is left. Returns the exit
    code of the tool.
    """
    out = wanted.out or wanted.source / "export" / NAME
    was_there = out.exists()
    try:
        return wanted.run_tool(
            "gguf.export",
            str(wanted.source),
            *("--out", str(out), "--device", device_of(wanted.source)),
            *(["--kind", wanted.variant] if wanted.variant else []),
            *(["--only", wanted.only] if wanted.only else []),
        )
    finally:
        for left in out.glob(f"{TEMPORARY}*"):  # of a tool that was killed
            DISK.remove(left)
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
