"""Small random models of each family that GGUF knows, with a tokenizer of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainers.families import CHATML, byte_level

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}


def sizes(family: str) -> dict[str, int]:
    """Of a tiny model. Qwen2 has no width of a head."""
    return {key: value for key, value in SIZES.items() if family != "qwen2" or key != "head_dim"}


def tiny(family: str, folder: Path, dtype: Any = None, *, louder: float = 1.0, **keys: Any) -> Path:
    """The folder of a random model of a family.

    Args:
        dtype: Of the weights; default: float32.
        louder: Matrices are multiplied by it. Those of a new model are so small that attention
            hardly matters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    # llama.cpp stops at <|endoftext|> whatever the file says.
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    config = AutoConfig.for_model(
        family,
        **{
            **sizes(family),
            "vocab_size": len(tokenizer),
            "eos_token_id": ends,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **keys,
        },
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a mistake
                parameter.add_(torch.rand_like(parameter) / 2)
            elif parameter.dim() == 1:  # biases are zeros
                parameter.add_(torch.randn_like(parameter) / 4)
            else:
                parameter.mul_(louder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
