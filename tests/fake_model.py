"""A folder that is a model to all that does not load it, with tensors of zeros and no torch."""

import json
import math
from pathlib import Path
from typing import Any


def llama_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a Llama with this configuration."""
    hidden, width, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    shared = (config.get("num_key_value_heads") or heads) * size
    layer = {
        "self_attn.q_proj.weight": (heads * size, hidden),
        "self_attn.k_proj.weight": (shared, hidden),
        "self_attn.v_proj.weight": (shared, hidden),
        "self_attn.o_proj.weight": (hidden, heads * size),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        ends["lm_head.weight"] = (vocabulary, hidden)
    return ends | {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """Write zeros of these shapes, as a file with holes: of no size on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        after = end + math.prod(shape) * {"BF16": 2, "F32": 4, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, after]}
        end = after
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_fake_model(folder: Path, config: dict[str, Any]) -> None:
    """Fill the folder with a Llama that can be advised on and checked, and that nobody can train."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", llama_tensors(config))
