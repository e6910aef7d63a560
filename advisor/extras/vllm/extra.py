"""A result as the folder of a vLLM server (docs/results.md)."""

from __future__ import annotations

from advisor.extras.protocol import Extra, Form


class VLLM(Extra):
    """The form vllm."""

    NAME = "vllm"
    HELP = "makes a folder that a vLLM server starts from"
    EXPORTERS = (
        Form(
            NAME="vllm",
            HELP="a folder that a vLLM server starts from",
            TAKES="run",
            NEEDS=("jinja2",),
            function="advisor.extras.vllm.folder:export",
        ),
    )


EXTRA = VLLM()
