"""config.json -> ModelShape: the dimensions under their many names, and the parameter count worked
out from them.

The count follows the layer definitions of transformers. It is exact for the families in `EXACT`;
any other family is counted as a gated decoder without biases and the shape's note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from advisor.estimate import gemma4, seq2seq
from advisor.estimate.mixtures import mixture_parts, one_layer, routed_layers
from advisor.ground.model_config import NAMES, REQUIRED, read, text_config
from advisor.ground.model_structure import config_faults
from advisor.ground.types import ModelShape
from advisor.methods.families import DECODER, SEQ2SEQ, is_encoder, kind_of_type


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Families whose parameter count below was compared with transformers' own modules.
EXACT = _set(
    "llama mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma gemma2 gemma3 gemma3_text gemma4"
    " gemma4_text phi phi3 gpt2 gpt_neox gpt_bigcode opt olmo2 olmo3 olmoe smollm3 granite"
    " granitemoe gpt_oss deepseek_v2 deepseek_v3 falcon bert roberta xlm-roberta distilbert"
    " modernbert stablelm"
)
# An MLP of two matrices instead of three.
PLAIN_MLP = _set(
    "gpt2 gpt_neo gpt_neox gpt_bigcode gptj bloom falcon mpt opt phi starcoder2 apertus bert"
    " roberta xlm-roberta camembert distilbert electra deberta deberta-v2 albert mpnet bart mbart"
    " led plbart m2m_100 marian pegasus pegasus_x bigbird_pegasus blenderbot"
)
# `tie_word_embeddings` is left out of config.json where it equals the class default; these families
# tie by default, and so does every encoder and sequence-to-sequence model.
TIED = _set(
    "gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text gpt2 gpt_neo gpt_bigcode falcon bloom"
    " opt mpt cohere cohere2 smollm3 starcoder2"
)
OWN_ATTENTION = _set(
    "chatglm"
)  # the checkpoint's own code passes a mask of its own, which no fused kernel takes
# transformers 5.24 has no sdpa for them (`_supports_sdpa = False`): capped scores, sinks.
NO_SDPA = _set(
    "bloom deepseek_v4 falcon_mamba gemma2 gpt_neo gpt_neox_japanese gpt_oss granite_swa"
    " granitemoe_swa hy_v4 mamba mamba2 mimo_v2_flash mpt openai-gpt rwkv vaultgemma xglm xlm"
    " xlnet xlstm"
)
# Layers that carry a state from token to token (state space, linear attention, short convolutions),
# or positions that are made from the attention mask: packed rows would see each other, at least
# without kernels of their own. What is not named here is tried on the model before it trains.
MIXES_PACKED_ROWS = _set(
    "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen3_next granitemoehybrid mamba mamba2"
    " falcon_mamba falcon_h1 jamba bamba zamba zamba2 nemotron_h lfm2 lfm2_moe recurrent_gemma rwkv"
    " minimax olmo_hybrid kimi_linear bloom mpt chatglm"
)
FOUR_NORMS = _set(
    "gemma2 gemma3 gemma3_text gemma4 gemma4_text glm4"
)  # one after attention and MLP too
LEARNED_POSITIONS = _set(
    "gpt2 gpt_neo gpt_bigcode opt bert roberta xlm-roberta camembert distilbert electra"
)


CONFIG = "config.json"
MOST_PARAMS = 10**15  # a thousand times the largest model


class ConfigError(ValueError):
    """The configuration does not describe a transformer's shape."""


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters held, and parameters one token passes through."""

    total: int
    active: int


def shape_from_config(
    config: Mapping[str, Any],
    id_: str,
    *,
    origin: Literal["folder", "catalogue", "hub"],
    source: str,
    params: int | None = None,
) -> ModelShape:
    """The shape a config.json describes.

    `params` is a count known better (from the checkpoint's own index).

    Raises ConfigError where hidden size, layers or vocabulary are missing, and for numbers that no
    model can have.
    """
    wrong = config_faults(config, CONFIG)
    if wrong:
        raise ConfigError(wrong[0].what.removeprefix(f"{CONFIG}: "))
    try:
        shape = _shape(config, id_, origin=origin, source=source, params=params)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"its numbers describe no model ({error})") from error
    if shape.params > MOST_PARAMS or shape.lookup_params > MOST_PARAMS:
        raise ConfigError("its numbers describe no model (it would be too large)")
    return shape


def _shape(
    config: Mapping[str, Any],
    id_: str,
    *,
    origin: Literal["folder", "catalogue", "hub"],
    source: str,
    params: int | None,
) -> ModelShape:
    """The shape, from numbers that were checked one by one and not together."""
    notes: list[str] = []
    outer = str(config.get("model_type") or "")
    inner = text_config(config)
    if inner is not config:
        config = inner
        notes.append("multimodal: the text tower is counted, vision or audio towers are not")
    family = str(config.get("model_type") or outer or "unknown")
    seq2seq_model = kind_of_type(family) == SEQ2SEQ
    if seq2seq_model:
        config = seq2seq.as_one_stack(config)
        params = params or _counted_seq2seq(config, family)
        notes.append(seq2seq.ABOUT)
    missing = [field for field in REQUIRED if read(config, field) is None]
    if missing:
        raise ConfigError(f"needs {', '.join('/'.join(NAMES[field][:2]) for field in missing)}")
    hidden, layers, vocab = (read(config, field) or 0 for field in REQUIRED)
    heads = read(config, "heads") or max(1, hidden // 128)
    kv_heads = (
        1
        if config.get("multi_query") and not config.get("new_decoder_architecture")
        else read(config, "kv_heads") or heads
    )
    experts, per_token, expert_size = (
        read(config, "experts"),
        read(config, "experts_per_token"),
        read(config, "expert_size"),
    )
    width = read(config, "intermediate_size")
    if width is None:
        width = expert_size or 4 * hidden
    if family == "qwen":  # the first Qwen states the sum of the two halves of its gated MLP
        width //= 2
    if experts is not None and experts > 1:
        expert_size = expert_size or width
        per_token = per_token or 1
    else:
        experts = per_token = expert_size = None
    tied = config.get("tie_word_embeddings")
    tied = family in TIED or kind_of_type(family) != DECODER if tied is None else bool(tied)
    shape = ModelShape(
        id=id_, origin=origin, params=0, architecture=family, hidden_size=hidden, layers=layers,
        heads=heads, kv_heads=kv_heads,
        head_dim=read(config, "head_dim") or hidden // heads, intermediate_size=width,
        vocab_size=vocab, tied_embeddings=tied,
        context_tokens=read(config, "context_tokens"), experts=experts, experts_per_token=per_token,
        expert_size=expert_size, source=source,
    )  # fmt: skip
    per_layer = int(config.get("hidden_size_per_layer_input") or 0)
    shape = replace(
        shape,
        lookup_params=layers * per_layer * int(config.get("vocab_size_per_layer_input") or vocab),
    )
    count = count_parameters(shape, config)
    if (
        params and config.get("tie_word_embeddings") is None and not seq2seq_model
    ):  # not stated: whichever agrees with the known count
        other = replace(shape, tied_embeddings=not tied)
        if abs(count_parameters(other, config).total - params) < abs(count.total - params):
            shape, count = other, count_parameters(other, config)
    if params is None and family not in EXACT:
        notes.append(f"parameters of '{family}' counted as a plain decoder, good to a few percent")
    stored = _stored(config)
    if stored is not None:
        notes.append("the checkpoint is quantised already")
    total = params or count.total
    # A checkpoint's own total is exact; what is active scales with it.
    active = None if experts is None else min(total, round(count.active * total / count.total))
    shape = replace(shape, params=total, active_params=active, stored=stored, note="; ".join(notes))
    if experts is None:
        return shape
    parts = mixture_parts(shape, config)
    return replace(
        shape,
        routed_params=parts.routed_params,
        routed_layers=parts.routed_layers,
        shared_size=parts.shared_size,
        shared_ends=parts.shared_ends,
    )


def _counted_seq2seq(config: Mapping[str, Any], family: str) -> int | None:
    """The parameters of encoder and decoder; None where dimensions are missing."""
    if any(read(config, field) is None for field in REQUIRED):
        return None
    return seq2seq.count(config, family)


def _stored(config: Mapping[str, Any]) -> str | None:
    """How a quantised checkpoint says that it is stored."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return str(method).lower() if method else "an unnamed format"


def count_parameters(shape: ModelShape, config: Mapping[str, Any] | None = None) -> Count:
    """Parameters of a causal language model (or of an encoder's body) of this shape; `config` adds
    what a shape does not hold.
    """
    config = config or {}
    family = shape.architecture or "llama"
    hidden, layers, vocab = shape.hidden_size or 0, shape.layers or 0, shape.vocab_size or 0
    rest = _embeddings(shape, family, config, vocab, hidden)
    if family in gemma4.FAMILIES:
        held, used = gemma4.layer_parameters(shape, config)
        return Count(total=held + rest, active=used + rest)
    attention = _attention(shape, config, family)
    routed = routed_layers(shape, config)
    dense = _mlp(hidden, shape.intermediate_size or 4 * hidden, family, config)
    per_layer = attention + _norms(shape, family, config)
    total = layers * per_layer + (layers - routed) * dense
    active = total
    if routed:
        layer = one_layer(shape, config)
        total, active = total + routed * layer.held, active + routed * layer.used
    return Count(total=total + rest, active=active + rest)


def _attention(shape: ModelShape, config: Mapping[str, Any], family: str) -> int:
    """Projections of one attention layer with their biases; hybrid models take the mean over their
    layer kinds.
    """
    hidden, heads, kv_heads, dim = (
        shape.hidden_size or 0,
        shape.heads or 1,
        shape.kv_heads or 1,
        shape.head_dim or 0,
    )
    if config.get("kv_lora_rank"):  # DeepSeek's latent attention
        rank, rope, nope, value = (
            int(config.get(key) or 0)
            for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        )
        q_rank = config.get("q_lora_rank")
        query = (
            hidden * heads * (nope + rope)
            if not q_rank
            else hidden * int(q_rank) + int(q_rank) + int(q_rank) * heads * (nope + rope)
        )
        return (
            query
            + hidden * (rank + rope)
            + rank
            + rank * heads * (nope + value)
            + heads * value * hidden
        )
    q_size, kv_size = heads * dim, kv_heads * dim
    full = hidden * (q_size + 2 * kv_size) + q_size * hidden
    if family in ("qwen2", "qwen2_moe", "qwen", "chatglm"):
        full += q_size + 2 * kv_size
    elif family in (
        "gpt2",
        "gpt_neox",
        "gpt_bigcode",
        "opt",
        "phi",
        "bloom",
        "starcoder2",
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "distilbert",
        "electra",
    ) or (family == "gpt_oss" or config.get("attention_bias")):
        full += q_size + 2 * kv_size + hidden
    if family in (
        "qwen3",
        "qwen3_moe",
        "gemma3",
        "gemma3_text",
        "qwen3_vl",
        "qwen3_next",
        "qwen3_5",
        "qwen3_5_moe",
    ):
        full += 2 * dim
    elif family in ("olmo2", "olmo3", "olmoe"):
        full += q_size + kv_size
    if family == "gpt_oss":
        full += heads  # attention sinks
    interval = config.get("full_attention_interval")
    if interval and config.get(
        "linear_num_value_heads"
    ):  # gated DeltaNet on the other layers; q_proj is doubled by the output gate
        keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
        values = int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"])
        linear = (
            hidden * (2 * keys + 2 * values + 2 * int(config["linear_num_value_heads"]))
            + 4 * (2 * keys + values)
            + values * hidden
        )
        return round((linear * (int(interval) - 1) + full + hidden * q_size) / int(interval))
    return full


def _mlp(hidden: int, width: int, family: str, config: Mapping[str, Any]) -> int:
    if family in PLAIN_MLP:
        bias = 0 if family == "falcon" and not config.get("bias") else width + hidden
        return 2 * hidden * width + bias
    return 3 * hidden * width + (2 * width + hidden if config.get("mlp_bias") else 0)


def _norms(shape: ModelShape, family: str, config: Mapping[str, Any]) -> int:
    hidden = shape.hidden_size or 0
    if family in ("gemma2", "gemma3", "gemma3_text", "gemma4"):
        return 4 * hidden
    if family in (
        "gpt2",
        "gpt_neox",
        "gpt_bigcode",
        "opt",
        "bloom",
        "stablelm",
        "starcoder2",
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "distilbert",
        "electra",
    ):
        return 4 * hidden  # two LayerNorms with a weight and a bias
    if family == "phi":
        return 2 * hidden
    if family == "falcon":
        return (
            4 * hidden
            if config.get("new_decoder_architecture") and config.get("num_ln_in_parallel_attn") != 1
            else 2 * hidden
        )
    return 2 * hidden


def _embeddings(
    shape: ModelShape, family: str, config: Mapping[str, Any], vocab: int, hidden: int
) -> int:
    """Embeddings, output matrix, positions and the last norm."""
    size = vocab * hidden
    if config.get(
        "hidden_size_per_layer_input"
    ):  # Gemma's per-layer embeddings with their projections and norms
        width, layers = int(config["hidden_size_per_layer_input"]), shape.layers or 0
        size += shape.lookup_params + layers * (3 * hidden * width + hidden) + width
    if family in LEARNED_POSITIONS:
        # OPT and RoBERTa shift positions: OPT adds two rows, RoBERTa's configuration counts them
        # already.
        size += ((shape.context_tokens or 0) + (2 if family == "opt" else 0)) * hidden
    if is_encoder(family):
        if family in ("bert", "roberta", "xlm-roberta", "camembert", "electra"):
            size += int(config.get("type_vocab_size", 2)) * hidden + 2 * hidden
            size += hidden * hidden + hidden  # the pooler
        elif family == "distilbert":
            size += 2 * hidden
        elif family == "modernbert":
            size += (
                2 * hidden - hidden
            )  # norms of embeddings and output; the first layer has no attention norm
        return size
    if not shape.tied_embeddings:
        size += vocab * hidden
        if family == "phi":
            size += vocab
    return size + (
        2 * hidden
        if family
        in (
            "gpt2",
            "gpt_neox",
            "gpt_bigcode",
            "opt",
            "phi",
            "bloom",
            "falcon",
            "stablelm",
            "starcoder2",
        )
        else hidden
    )
