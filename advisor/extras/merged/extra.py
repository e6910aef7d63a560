"""A LoRA result as one plain model, compared with the unmerged one."""

from __future__ import annotations

import shlex

from advisor.export.exporter import ExportRequest
from advisor.extras.protocol import Extra, Form
from advisor.ground.files import shown_path
from advisor.record.files import device_of, record_of, writing_stages


class Merged(Extra):
    """The form merged."""

    NAME = "merged"
    HELP = "merges a result into one plain model"
    EXPORTERS = (
        Form(
            NAME="merged",
            HELP="a LoRA result as one plain model",
            TAKES="run",
            NEEDS=("torch", "transformers", "peft"),
            function="advisor.extras.merged.extra:export",
        ),
    )


def export(wanted: ExportRequest) -> int:
    """Merge the results of a run folder. Returns the exit code of the tool that does it."""
    writing_stages(wanted.source, record_of(wanted.source), only=wanted.only)  # or refused at once
    code = wanted.run_tool(
        "merge",
        str(wanted.source),
        *("--out", str(wanted.out or wanted.source / "export" / "merged")),
        *("--device", device_of(wanted.source)),
        *(["--only", wanted.only] if wanted.only else []),
    )
    if code == 0:
        out = wanted.out or wanted.source / "export" / "merged"
        for merged in sorted(out.rglob("merge.json")):
            wanted.say(f"Serve it:  vllm serve {shlex.quote(shown_path(merged.parent))}")
        wanted.say("vLLM needs an environment of its own: pip install vllm")
    return code


EXTRA = Merged()
