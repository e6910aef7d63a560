"""Sequence-to-sequence models (T5, BART, NLLB, Marian, Pegasus): the dimensions of the encoder and
the decoder that a config.json describes.

An estimate takes them as one stack of all layers, each of which reads the whole row. Of a real run
the encoder reads the input alone and the decoder the output, so that activations are counted
somewhat too high, and never too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.estimate.model.layer_patterns import CROSS_ATTENTION, FULL

ABOUT = (
    "encoder and decoder are counted as one stack that reads input and output: activations are"
    " somewhat too high"
)


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
    if encoder is not None:
        found["layer_types"] = [FULL] * encoder + [CROSS_ATTENTION] * (decoder or encoder)
    return {**config, **{name: value for name, value in found.items() if value is not None}}


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
