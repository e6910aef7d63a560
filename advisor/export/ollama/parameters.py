"""PARAMETER lines: only what the result or the plan says."""

from __future__ import annotations

from pathlib import Path

from advisor.export.ollama.stops import generation_config

# Key of generation_config.json -> Ollama's.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
OLLAMAS_CONTEXT = 2048  # tokens, where a Modelfile names no number (Ollama's documentation)


def parameters(folder: Path, *, seq_len: int | None) -> list[tuple[str, str, str]]:
    """(name, value, why) of each.

    Args:
        folder: Of the result.
        seq_len: Tokens of the longest sequence of the training; None: not known.
    """
    config = generation_config(folder)
    found = []
    if seq_len is not None and seq_len > OLLAMAS_CONTEXT:
        why = f"it was trained on up to {seq_len} tokens; Ollama would forget what is older"
        found.append(("num_ctx", str(seq_len), why))
    for key, name in SAMPLING.items():
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((name, f"{value:g}", f"generation_config.json: {key}"))
    if config.get("do_sample") is False and "temperature" not in config:
        found.append(("temperature", "0", "generation_config.json: do_sample is false"))
    return found
