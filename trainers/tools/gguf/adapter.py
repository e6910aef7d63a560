"""A LoRA adapter as a GGUF file, to be put on that of its base: one base, many adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from advisor.ground.gguf import GgufFamily
from trainers.frame.files import read_json
from trainers.tools.gguf.tensors import change_of, neighbours
from trainers.tools.gguf.write import add_info, add_value, packed, whole_file

OF_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# What a LoRA may have besides its two matrices, and GGUF has no place for.
NOT_HELD = {
    "use_dora": "DoRA scales whole columns",
    "lora_bias": "it has biases",
    "modules_to_save": "it replaces whole layers",
    "trainable_token_indices": "it replaces embeddings",
    "layer_replication": "it repeats layers",
    "target_parameters": "it changes single parameters",
}


def why_no_file(folder: Path, family: GgufFamily, config: Any) -> str:
    """Why an adapter cannot be a GGUF file of its own; empty if it can."""
    settings = read_json(folder / "adapter_config.json")
    if settings["peft_type"] != "LORA":
        return f"it is no LoRA adapter ({settings['peft_type']})"
    for key, why in NOT_HELD.items():
        if settings.get(key):
            return why
    if settings.get("bias", "none") != "none":
        return "it has biases"
    for name in _names(folder):
        match = OF_PEFT.fullmatch(name)
        if match is None or change_of(f"{match.group(1)}.weight", family, config) is None:
            return f"GGUF has no place for {name}"
    return ""


def write_adapter(folder: Path, path: Path, family: GgufFamily, config: Any, *, name: str) -> None:
    """Write the adapter of a folder. Ask `why_no_file` before.

    llama.cpp multiplies by alpha / rank. What PEFT multiplies by instead (rank-stabilised LoRA,
    ranks of single layers) goes into the second matrix.
    """
    import gguf
    from peft import LoraConfig
    from safetensors import safe_open

    settings = LoraConfig.from_pretrained(str(folder))
    alpha = float(settings.lora_alpha)
    types = gguf.GGMLQuantizationType
    with (
        whole_file(path) as temporary,
        safe_open(folder / "adapter_model.safetensors", framework="pt") as file,
    ):
        writer = gguf.GGUFWriter(temporary, family.architecture)
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        add_value(writer, gguf.Keys.Adapter.TYPE, "lora")
        add_value(writer, gguf.Keys.Adapter.LORA_ALPHA, alpha)
        tensors: dict[str, Any] = {}
        for key in sorted(file.keys()):
            match = OF_PEFT.fullmatch(key)
            assert match is not None, key
            module, which = match.groups()
            change = change_of(f"{module}.weight", family, config)
            assert change is not None, key
            tensor = file.get_tensor(key).float()
            if which == "B":
                rank = tensor.shape[1]
                tensor = tensor * (_scale(settings, module, rank) * rank / alpha)
                if change.heads:
                    tensor = neighbours(tensor, change.heads)
            tensors[f"{change.name}.lora_{which.lower()}"] = tensor
        for key, tensor in tensors.items():
            add_info(writer, key, tuple(tensor.shape), types.F32)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors.values():
                writer.write_tensor_data(packed(tensor, types.F32))
        finally:
            writer.close()


def _scale(settings: Any, module: str, rank: int) -> float:
    """What PEFT multiplies the product of a module's two matrices by."""
    alpha = float(settings.lora_alpha)
    for pattern, value in (settings.alpha_pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if settings.use_rslora else rank)


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sorted(file.keys())
