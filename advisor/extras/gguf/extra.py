"""Results as files for llama.cpp, LM Studio and Ollama, compared with the model."""

from __future__ import annotations

from advisor.export.exporter import ExportRequest
from advisor.extras.protocol import Extra, Form
from advisor.ground.files import DISK, TEMPORARY
from advisor.record.files import device_of, record_of, writing_stages

NEEDS = ("torch", "transformers", "peft", "gguf")


class Gguf(Extra):
    """The forms gguf and ollama."""

    NAME = "gguf"
    HELP = "makes GGUF files, and what Ollama reads beside them"
    EXPORTERS = (
        Form(
            NAME="gguf",
            HELP="a GGUF file for llama.cpp, 16 bit; also gguf:Q8_0, gguf:Q4_K_M",
            TAKES="run",
            NEEDS=NEEDS,
            VARIANTS=True,
            function="advisor.extras.gguf.extra:export",
        ),
        Form(
            NAME="ollama",
            HELP="a GGUF file and a Modelfile for Ollama; also ollama:Q8_0",
            TAKES="run",
            NEEDS=(*NEEDS, "jinja2"),
            VARIANTS=True,
            function="advisor.extras.gguf.ollama:export",
        ),
    )


def export(wanted: ExportRequest) -> int:
    """Write and compare the results of a run folder. Returns the exit code."""
    writing_stages(wanted.source, record_of(wanted.source), only=wanted.only)  # or refused at once
    out = wanted.out or wanted.source / "export" / "gguf"
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


EXTRA = Gguf()
