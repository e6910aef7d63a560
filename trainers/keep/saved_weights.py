"""The weights of a saved result, put into a model that is built already."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_saved(model: Any, folder: Path, *, adapter: str = "default") -> None:
    """Give the model the saved weights; of a PeftModel, the adapter of that name alone.

    Raises RuntimeError if they do not fit the model.
    """
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(folder), device="cpu")
        set_peft_model_state_dict(model, weights, adapter_name=adapter)
    else:
        _load_whole(model, folder)


def _load_whole(model: Any, folder: Path) -> None:
    """The files one after the other, so that no second copy of the model is in memory; but if they
    have other names than the model in memory (transformers keeps the experts of a mixture in one
    tensor, and saves each by itself), as transformers reads them.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    stored: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if set(model.state_dict()) - tied <= stored:
        for path in files:
            model.load_state_dict(load_file(path), strict=False)
        return
    # Of the class that is there already: no code is looked for.
    read = type(model).from_pretrained(
        str(folder), dtype=next(model.parameters()).dtype, trust_remote_code=False
    )
    model.load_state_dict(read.state_dict())
