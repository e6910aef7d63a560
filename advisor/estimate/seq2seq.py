"""Sequence-to-sequence models (T5, BART, NLLB, Marian, Pegasus): the dimensions and the parameters
of an encoder and a decoder that a config.json describes.

An estimate takes them as one stack of all layers, each of which reads the whole row. Of a real run
the encoder reads the input alone and the decoder the output, so that activations are counted
somewhat too high, and never too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.model_config import read

ABOUT = (
    "encoder and decoder are counted as one stack that reads input and output: activations are"
    " somewhat too high"
)
# Positions are computed in these, learned in the other families with LayerNorm.
COMPUTED_POSITIONS = frozenset(("marian", "m2m_100", "pegasus", "fsmt"))
# One LayerNorm more behind the last layer of encoder and decoder.
NORM_AT_END = frozenset(("mbart", "m2m_100", "pegasus"))
NORM_AT_EMBEDDING = frozenset(("bart", "mbart", "plbart", "mvp", "led"))
OFFSET = 2  # positions that BART's tables hold beyond the longest text


def as_one_stack(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the names that decoders use: layers of encoder and decoder together.

    Parts that the configuration does not hold are left out.
    """
    encoder = _first(config, "encoder_layers", "num_layers", "num_hidden_layers")
    decoder = _first(config, "decoder_layers", "num_decoder_layers") or encoder
    found: dict[str, Any] = {
        "hidden_size": _first(config, "d_model", "hidden_size"),
        "num_hidden_layers": None if encoder is None else encoder + (decoder or encoder),
        "num_attention_heads": _first(
            config, "encoder_attention_heads", "num_heads", "num_attention_heads"
        ),
        "head_dim": _first(config, "d_kv", "head_dim"),
        "intermediate_size": _first(config, "encoder_ffn_dim", "d_ff", "intermediate_size"),
    }
    return {**config, **{name: value for name, value in found.items() if value is not None}}


def count(config: Mapping[str, Any], family: str) -> int:
    """Parameters of encoder, decoder, embeddings and, where it is not tied, the output matrix.

    Formula: transformers 5.24, modeling_t5.py and modeling_bart.py.
    """
    hidden, width = read(config, "hidden_size") or 0, read(config, "intermediate_size") or 0
    heads, vocab = read(config, "heads") or 1, read(config, "vocab_size") or 0
    inner = heads * (read(config, "head_dim") or hidden // heads)
    both = read(config, "layers") or 0
    encoder = _first(config, "encoder_layers", "num_layers") or both // 2
    decoder = both - encoder
    if "d_kv" in config or family in ("t5", "mt5", "umt5", "longt5"):
        gated = str(config.get("feed_forward_proj") or "").startswith("gated")
        mlp = (3 if gated else 2) * hidden * width
        attention = 4 * hidden * inner
        buckets = int(config.get("relative_attention_num_buckets") or 32)
        tables = (both if family == "umt5" else 2) * buckets * heads
        layers = encoder * (attention + mlp + 2 * hidden)
        layers += decoder * (2 * attention + mlp + 3 * hidden)
        matrices = 1 if config.get("tie_word_embeddings", True) else 2
        return layers + tables + 2 * hidden + matrices * vocab * hidden
    attention = 4 * (hidden * inner + hidden)
    mlp = 2 * hidden * width + width + hidden
    layers = encoder * (attention + mlp + 4 * hidden) + decoder * (2 * attention + mlp + 6 * hidden)
    positions = read(config, "context_tokens") or 1024
    tables = 2 * (positions + OFFSET) * hidden
    if family in COMPUTED_POSITIONS:
        # Marian and Pegasus hold them as frozen weights, M2M-100 as buffers.
        tables = 0 if family == "m2m_100" else 2 * positions * hidden
    norms = 4 * hidden * (family in NORM_AT_END) + 4 * hidden * (family in NORM_AT_EMBEDDING)
    return layers + tables + norms + vocab * hidden


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
