"""Results as files for llama.cpp and Ollama (docs/serving.md)."""

from __future__ import annotations

from advisor.extras.protocol import Extra


class Gguf(Extra):
    """The forms gguf and ollama."""

    NAME = "gguf"
    HELP = "makes GGUF files, and what Ollama reads beside them"
    EXPORTERS = ("gguf", "ollama")


EXTRA = Gguf()
