"""config.json -> ModelShape: the dimensions under their many names, and the parameter count worked
out from them.

The count follows the layer definitions of transformers (`rules/layouts.yaml`). It is exact for the
families that are `exact` there; any other is counted as a gated decoder without biases, and the
shape's note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec.structs import replace

from advisor.estimate.model.layouts import CROSS_ATTENTION, FULL, flat, layout_of, pattern_of
from advisor.estimate.model.structure import structure_of
from advisor.ground.types import ModelShape
from advisor.methods.families import DECODER, SEQ2SEQ, kind_of_type
from advisor.model_files.config import NAMES, REQUIRED, config_faults, read, text_config

ABOUT_SEQ2SEQ = (
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


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


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
CONFIG = "config.json"
# Keys by which single layers differ that are not read: Nemotron Super, Kimi Linear.
UNREAD = ("block_configs", "linear_attn_config")
MOST_PARAMS = 10**15  # a thousand times the largest model


class ConfigError(ValueError):
    """The configuration does not describe a transformer's shape."""


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
        raise ConfigError(wrong[0].what)
    try:
        shape = _shape(config, id_, origin=origin, source=source, params=params)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"its numbers describe no model ({error})") from error
    if shape.params > MOST_PARAMS:
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
    writes_from_reading = kind_of_type(family) == SEQ2SEQ
    if writes_from_reading:
        config = as_one_stack(config)
        notes.append(ABOUT_SEQ2SEQ)
    config = flat(config)
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
    head_dim = read(config, "head_dim") or hidden // heads
    if not head_dim:
        raise ConfigError(f"{heads} attention heads do not divide a hidden_size of {hidden}")
    stated_width = _mlp_width(config, family)
    width = stated_width or expert_size or 4 * hidden
    if experts is not None and experts > 1:
        expert_size = expert_size or width
        per_token = per_token or 1
    else:
        experts = per_token = expert_size = None
    layout = layout_of(family)
    tied = config.get("tie_word_embeddings")
    tied = layout.tied or kind_of_type(family) != DECODER if tied is None else bool(tied)
    pattern = pattern_of(config, family, layers=layers, mixture=experts is not None)
    shape = ModelShape(
        id=id_, origin=origin, params=0, architecture=family, hidden_size=hidden, layers=layers,
        heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, intermediate_size=width,
        vocab_size=vocab, tied_embeddings=tied,
        context_tokens=read(config, "context_tokens"), experts=experts, experts_per_token=per_token,
        expert_size=expert_size, source=source, mixers=pattern.mixers, mlps=pattern.mlps,
        sizes=pattern.sizes,
    )  # fmt: skip
    if params and experts is None and stated_width is None:
        shape = _with_width(shape, params)
        notes.append("the width of the MLP follows from the number of parameters")
    counted, used = _counted(shape)
    if params and config.get("tie_word_embeddings") is None and not writes_from_reading:
        # Not stated: whichever agrees with the known count.
        other = replace(shape, tied_embeddings=not tied)
        if abs(_counted(other)[0] - params) < abs(counted - params):
            shape, (counted, used) = other, _counted(other)
    if params is None and not layout.exact:
        what = f"parameters of '{family}' counted as a plain decoder without layers of its own"
        notes.append(f"{what}, good to a few percent")
    if unread := [name for name in UNREAD if config.get(name)]:
        good = "good to a few percent" if params or stated_width else "and its size is a guess"
        said = f"layers are taken to be alike, {good}"
        notes.append(f"{' and '.join(unread)} not read: {said}")
    stored = _stored(config)
    if stored is not None:
        notes.append("the checkpoint is quantised already")
    total = params or counted
    # A checkpoint's own total is exact; what is active scales with it.
    active = None if experts is None else min(total, round(used * total / counted))
    return replace(shape, params=total, active_params=active, stored=stored, note="; ".join(notes))


def _counted(shape: ModelShape) -> tuple[int, int]:
    found = structure_of(shape)
    return (found.params, found.used_params) if found is not None else (0, 0)


def _with_width(shape: ModelShape, params: int) -> ModelShape:
    """The shape with the MLP width at which it has so many parameters, in steps of 64."""
    narrow, wide = (_counted(replace(shape, intermediate_size=width))[0] for width in (64, 128))
    steps = round((params - narrow) / (wide - narrow)) if wide > narrow else 0
    return replace(shape, intermediate_size=64 * max(1, 1 + steps))


def _mlp_width(config: Mapping[str, Any], family: str) -> int | None:
    width = read(config, "intermediate_size")
    stated = config.get("intermediate_size")
    if width is None and isinstance(stated, list) and stated:  # Gemma 3n: one for each layer
        width = round(sum(map(int, stated)) / len(stated))
    if width is not None and family == "qwen":  # the first Qwen states the sum of gate and up
        return width // 2
    if width is not None and config.get("block_auto_adjust_ff_dim"):  # LFM2: as LLaMA 1 did
        multiple = int(config.get("block_multiple_of") or 256)
        width = int(float(config.get("block_ffn_dim_multiplier") or 1) * int(2 * width / 3))
        return multiple * ((width + multiple - 1) // multiple)
    return width


def _stored(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return str(method).lower() if method else "an unnamed format"


# Stored so, a checkpoint is written out in 16 bit when the bundled trainers load it.
WRITTEN_OUT = ("mxfp4", "fp8")
BITSANDBYTES = "bitsandbytes"


def why_not_loadable(
    stored: str | None, *, trains_all: bool, quantization: str | None, divided: bool
) -> str:
    """Why no memory is enough to train a checkpoint this way, as a clause, or an empty string.

    Args:
        stored: How the checkpoint is stored if it is quantised: "mxfp4", "gptq".
        trains_all: Whether its weights are trained, not a module beside them.
        quantization: What the plan asks for.
        divided: Whether several GPUs hold the model together, and load it whole before.
    """
    if stored is None or (stored == "mxfp4" and quantization == "nf4" and not divided):
        return ""  # MXFP4 is written out layer by layer (trainers/start/packed_experts.py)
    if stored in WRITTEN_OUT:
        again = f"its checkpoint is stored in {stored}, which cannot be quantised a second time"
        return f"{again}; it is written out in 16 bit when it loads" if quantization else ""
    if trains_all:
        return f"its checkpoint is stored in {stored}, whose weights are frozen"
    if quantization and stored != BITSANDBYTES:
        return f"its checkpoint is stored in {stored}, which cannot be quantised a second time"
    return ""


def why_not_in_16_bit(stored: str | None, *, quantization: str | None) -> str:
    """Why a module would not train beside a base in 16 bit, as a clause, or an empty string.

    bitsandbytes' checkpoints load as they are stored: what trains beside them is QLoRA, and a plan
    says so.
    """
    if stored != BITSANDBYTES or quantization is not None:
        return ""
    return f"its checkpoint is stored in {stored}, so that its base stays quantised, as in QLoRA"
