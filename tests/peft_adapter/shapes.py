"""Tiny random models of many architectures, made from their configs."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

VOCAB, HIDDEN, LAYERS = 64, 32, 3
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0, **ENDS,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
OTHER_NAMES = {"vocab_size": VOCAB, "n_layer": LAYERS, "n_head": 4, **ENDS}
# name -> (config class, settings); `attn_implementation` stays the default, sdpa.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen3": ("Qwen3Config", HEADS),
    "mistral": ("MistralConfig", HEADS),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "phi": ("PhiConfig", COMMON),
    "phi3": ("Phi3Config", GROUPED),
    "gpt2": ("GPT2Config", {**OTHER_NAMES, "n_embd": HIDDEN, "n_inner": 48}),
    "falcon": (
        "FalconConfig",
        {**COMMON, "alibi": False, "multi_query": True, "new_decoder_architecture": False},
    ),
    "olmo": ("OlmoConfig", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "bloom": ("BloomConfig", {**OTHER_NAMES, "hidden_size": HIDDEN}),
    "opt": (
        "OPTConfig",
        {
            **{key: value for key, value in COMMON.items() if key != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
    "mixtral": ("MixtralConfig", {**HEADS, "num_local_experts": 4}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", COMMON),
    "roberta": ("RobertaConfig", COMMON),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCAB, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48},
    ),
    "modernbert": ("ModernBertConfig", {**COMMON, "cls_token_id": 1, "sep_token_id": 2}),
}
ALL = [*DECODERS, *ENCODERS]


def config_of(name: str) -> Any:
    class_name, settings = (DECODERS | ENCODERS)[name]
    return getattr(transformers, class_name)(**settings)


def tiny(name: str) -> Any:
    """A model of that architecture with the same random weights every time, in evaluation mode."""
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if name in DECODERS else AutoModelForMaskedLM
    return kind.from_config(config_of(name)).eval()


def task_type(name: str) -> str | None:
    return "CAUSAL_LM" if name in DECODERS else None


def inputs(rows: int = 2, tokens: int = 7) -> dict[str, Any]:
    """Token ids without padding tokens, the same every time."""
    ids = torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def randomised(model: Any, adapter: str = "default", seed: int = 5) -> Any:
    """The model, its adapter with weights under which it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model
