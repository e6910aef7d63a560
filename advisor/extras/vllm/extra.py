"""A result as the folder of a vLLM server (docs/serving.md)."""

from __future__ import annotations

from advisor.extras.protocol import Extra


class VLLM(Extra):
    """The form vllm."""

    NAME = "vllm"
    HELP = "makes a folder that a vLLM server starts from"
    EXPORTERS = ("folder",)


EXTRA = VLLM()
