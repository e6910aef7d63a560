"""Small random models of each family that GGUF knows, with a tokenizer of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainers.families import CHATML, GEMMA, LLAMA2, byte_level, piece_level

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
OTHER = {
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 32},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 32,
        "sliding_window": 32,
    },
}


def tiny(
    family: str,
    folder: Path,
    dtype: Any = None,
    *,
    louder: float = 1.0,
    pieces: bool = False,
    **keys: Any,
) -> Path:
    """The folder of a random model of a family.

    Args:
        dtype: Of the weights; default: float32.
        louder: Matrices are multiplied by it. Those of a new model are so small that attention
            hardly matters.
        pieces: With a tokenizer like that of Llama 2 in place of one over bytes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    also = "<|endoftext|>"  # llama.cpp stops there whatever the file says
    if family.startswith("gemma"):
        tokenizer, also = gemma_tokenizer(), "<end_of_turn>"
    elif pieces:
        tokenizer = piece_level(("<s>", "</s>"), eos="</s>", bos="<s>")
        tokenizer.chat_template, also = LLAMA2, "<s>"
    else:
        tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
        tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    own = {key: value for key, value in SIZES.items() if family != "qwen2" or key != "head_dim"}
    config = AutoConfig.for_model(
        family,
        **{
            **own,
            "vocab_size": len(tokenizer),
            "eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(also)],
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **OTHER.get(family, {}),
            **keys,
        },
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones, or all zeros, would hide a mistake
                parameter.add_(torch.rand_like(parameter) / 2)
            elif parameter.dim() == 1:  # biases are zeros
                parameter.add_(torch.randn_like(parameter) / 4)
            else:
                parameter.mul_(louder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gemma_tokenizer() -> Any:
    """Pieces without a space before the text, as Gemma has them."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    made = piece_level(names, eos="<eos>", bos="<bos>")
    raw = Tokenizer.from_str(made.backend_tokenizer.to_str())
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>",
    )
    tokenizer.chat_template = GEMMA
    return tokenizer
