"""How each family of models builds its layers: rules/layouts.yaml, one entry per family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Struct, field

from advisor.ground.annotated import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Keys, ListOf, MapOf, Shape, Text
from advisor.ground.yaml_files import read_shipped
from advisor.model_files.config import NAMES, read

Bias = Literal["none", "config", "config-qkv", "qkv", "qkvo", "o"]


class Layout(Struct, frozen=True, kw_only=True):
    """What distinguishes a family from LLaMA."""

    mixer: Annotated[
        str, "letter (structure.MIXERS) of layers of which config.json says nothing"
    ] = "a"
    linear: Annotated[str, 'letter that "linear_attention" in `layer_types` stands for'] = "d"
    delta: Annotated[str, "matrices of gated DeltaNet's input: qwen3_next two, else four"] = ""
    every: Annotated[
        int,
        "of layers with a window, every nth sees everything; 1: all have the window; 0: none has"
        " one unless `layer_types` says so",
    ] = 0
    first_full: Annotated[bool, "of each `every` layers the first sees everything"] = False
    bias: Annotated[Bias, "projections with biases; config: all if `attention_bias` is set"] = (
        "config"
    )
    norm: Annotated[
        Literal["", "head", "whole", "config"],
        "RMSNorms of queries and keys; config: of each head if `use_qk_norm` is set",
    ] = ""
    gate: Annotated[
        Literal["", "queries", "heads"],
        "what scales attention's output: a second half of q_proj, or a number per head",
    ] = ""
    sinks: bool = False
    capped: bool = False
    fused: Annotated[str, "the one matrix of all three projections"] = ""
    names: Annotated[tuple[str, ...], "the projections"] = ("q_proj", "k_proj", "v_proj")
    output: Annotated[str, "the projection of the output"] = "o_proj"
    gated: bool = True
    mlp: Annotated[tuple[str, ...], "gate, up and down; up and down where it is not gated"] = (
        "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    fused_mlp: Annotated[str, "gate and up where they are one matrix"] = ""
    mlp_bias: Annotated[bool | None, "null: as `mlp_bias` in config.json"] = None
    alone: Annotated[bool, "a layer is a mixer or an MLP, with one norm"] = False
    shared: Annotated[int, "shared experts where config.json gives no number"] = 0
    shared_gate: Annotated[bool, "a number per token scales the shared expert"] = False
    beside: Annotated[bool, "layers with experts have a dense MLP too"] = False
    refused: Annotated[str, "a linear layer that PEFT refuses to adapt"] = ""
    linear_router: Annotated[str, "the router, where it is a linear layer"] = ""
    fused_shared: Annotated[str, "gate and up of the shared experts as one matrix"] = ""
    renamed: Annotated[
        bool,
        "transformers 4 had linear layers for its experts, which PEFT's all-linear finds again",
    ] = False
    router_biases: Annotated[int, "parameters per expert beside the router's matrix"] = 0
    expert_biases: bool = False
    norms: Annotated[int, "per layer"] = 2
    norm_bias: Annotated[bool, "they are LayerNorms with a bias"] = False
    first_norm: Annotated[bool, "the first layer has all of them"] = True
    end_norms: Annotated[int, "outside of the layers, in multiples of the hidden size"] = 1
    positions: Annotated[
        int | None, "rows of a table of learned positions beyond the context; null: no table"
    ] = None
    token_types: Annotated[int | None, "rows of a table of token types; null: none"] = None
    tables: Annotated[int, "such tables of positions (encoder and decoder have one each)"] = 1
    relative: Annotated[int, "rows of relative positions as wide as the model (DeBERTa)"] = 0
    pooler: Annotated[bool, "a square matrix over the first token"] = False
    head_bias: Annotated[bool, "the output matrix has a bias"] = False
    tied: Annotated[bool, "one matrix embeds and answers where config.json does not say"] = False
    plus: Annotated[int, "further parameters per layer"] = 0
    defaults: Annotated[
        Mapping[str, int], "sizes that the configuration class has and config.json may leave out"
    ] = field(default_factory=dict)
    exact: Annotated[bool, "the count was compared with transformers' own modules"] = True


PLAIN = Layout(exact=False)  # of a family that nobody compared
_KEYS: dict[str, Shape] = {**shape_of(Layout).keys, "like": Text(help="one of `bases`")}
LAYOUTS_FILE = Keys(
    help="How each family of models builds its layers",
    keys={
        "version": VERSION,
        "bases": MapOf(of=Keys(keys=_KEYS), help="what several families start from"),
        "layouts": ListOf(
            of=Keys(keys={**_KEYS, "families": ListOf(of=Text(), least=1)}, required=("families",))
        ),
    },
    required=("version", "bases", "layouts"),
)


@cache
def layout_of(family: str | None) -> Layout:
    """The family's entry; a LLaMA's for a family that has none."""
    entry = layouts().get(family or "")
    return PLAIN if entry is None else build(Layout, entry)


@cache
def layouts() -> Mapping[str, Mapping[str, Any]]:
    """Family -> its keys, with those of what it is like."""
    data = read_shipped(rules_dir() / "layouts.yaml", shape=LAYOUTS_FILE).data
    bases: dict[str, dict[str, Any]] = {}
    for name, entry in data["bases"].items():
        bases[name] = _whole(entry, bases)
    return {
        family: _whole(entry, bases) for entry in data["layouts"] for family in entry["families"]
    }


def _whole(entry: Mapping[str, Any], bases: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    own = {key: value for key, value in entry.items() if key not in ("families", "like")}
    return {**(bases[entry["like"]] if "like" in entry else {}), **own}


def flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the number of its layers: Nemotron-H states only a list of them."""
    if read(config, "layers") is not None:
        return config
    lists = (config.get("layers_block_type"), config.get("hybrid_override_pattern"))
    layers = next((item for item in lists if isinstance(item, list | str) and item), None)
    return config if layers is None else {**config, NAMES["layers"][0]: len(layers)}


# One letter per layer, so that a model of a hundred layers is a short text.
# Mixers. A capital A or S takes keys and values from an earlier layer.
ATTENTION, SLIDING, LATENT, DELTA, MAMBA, CONV, BOTH, LIGHTNING, CROSS, NONE = "asldmchgx-"
# MLPs: dense, dense and twice as wide, experts, experts beside a dense one.
DENSE, WIDE, EXPERTS, BESIDE = "dweb"
# Words of `layer_types` and `layers_block_type`; what the linear one is depends on the family.
FULL, LINEAR, CROSS_ATTENTION = "full_attention", "linear_attention", "cross_attention"
WORDS = {
    FULL: ATTENTION, "attention": ATTENTION, "sliding_attention": SLIDING,
    "chunked_attention": SLIDING, "mamba": MAMBA, "mamba2": MAMBA, "conv": CONV, "hybrid": BOTH,
    CROSS_ATTENTION: CROSS,
}  # fmt: skip
# Where a layer is one of these alone: its mixer and its MLP.
ALONE = {
    FULL: (ATTENTION, NONE), "attention": (ATTENTION, NONE), "mamba": (MAMBA, NONE),
    MAMBA: (MAMBA, NONE), "mlp": (NONE, DENSE), "moe": (NONE, EXPERTS),
}  # fmt: skip
NEMOTRON = {"M": "mamba", "*": FULL, "-": "mlp", "E": "moe"}  # `hybrid_override_pattern`
# Lists of layer numbers: what is in the list, and what is not.
INDICES = (("full_attn_idxs", FULL, "conv"), ("attn_layer_indices", FULL, "mamba"))
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# Our name of a size -> the names that configurations have for it.
SIZES: Mapping[str, tuple[str, ...]] = {
    "latent_rank": ("kv_lora_rank",), "query_rank": ("q_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",), "nope_dim": ("qk_nope_head_dim",),
    "value_dim": ("v_head_dim",),
    "key_heads": ("linear_num_key_heads",), "value_heads": ("linear_num_value_heads",),
    "key_dim": ("linear_key_head_dim",), "linear_value_dim": ("linear_value_head_dim",),
    "mamba_heads": ("mamba_n_heads", "mamba_num_heads"),
    "mamba_head_dim": ("mamba_d_head", "mamba_head_dim"),
    "mamba_width": ("mamba_d_ssm",), "mamba_expand": ("mamba_expand", "expand"),
    "mamba_groups": ("mamba_n_groups", "n_groups"),
    "mamba_state": ("mamba_d_state", "ssm_state_size", "state_size"),
    "kernel": ("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "conv_L_cache"),
    "shared_width": (
        "shared_expert_intermediate_size", "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
    ),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "moe_inputs": ("moe_latent_size", "routed_expert_hidden_size"),
    "dense_width": ("intermediate_size_mlp", "dense_intermediate_size"),
    "window": ("sliding_window", "attention_chunk_size", "local_attention"),
    "global_head_dim": ("global_head_dim",),
    "global_kv_heads": ("num_global_key_value_heads",),
    "per_layer": ("hidden_size_per_layer_input",),
    "lookup_words": ("vocab_size_per_layer_input",),
    "streams": ("altup_num_inputs",), "laurel_rank": ("laurel_rank",),
    "token_types": ("type_vocab_size",), "embedding_size": ("embedding_size",),
    "buckets": ("relative_attention_num_buckets",),
}  # fmt: skip
# Flags, as 0 or 1.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("attention_bias", "use_bias", "use_qkv_bias"),
    "mlp_bias": ("mlp_bias", "use_bias"), "qk_norm": ("use_qk_norm",),
    "keys_are_values": ("attention_k_eq_v",),
    "conv_bias": ("mamba_conv_bias", "use_conv_bias", "conv_bias"),
    "mamba_bias": ("mamba_proj_bias",), "gated_norm": ("mamba_rms_norm",),
    "two_norms": ("new_decoder_architecture",), "bias": ("bias",),
    "sandwich": ("use_sandwich_norm",),
}  # fmt: skip


class Pattern(NamedTuple):
    """What a ModelShape keeps of how its layers differ.

    Attributes:
        mixers, mlps: A letter for each layer.
        sizes: Sizes that ModelShape has no field for, by our names, sorted.
    """

    mixers: str
    mlps: str
    sizes: tuple[tuple[str, int], ...]


def pattern_of(config: Mapping[str, Any], family: str, *, layers: int, mixture: bool) -> Pattern:
    """The layers that a configuration describes.

    Args:
        config: Of the part that reads and writes text.
        layers: How many there are.
        mixture: Whether some have routed experts.

    Raises TypeError or ValueError for a size that is no number.
    """
    layout = layout_of(family)
    sizes = _sizes(config)
    words = _words(config, layers)
    if layout.alone:
        pairs = [
            ALONE.get(layout.linear if word == LINEAR else word, (NONE, NONE)) for word in words
        ]
        if not words:
            pairs = [(layout.mixer, NONE)] * layers
        mixers, mlps = ("".join(letters) for letters in zip(*pairs, strict=True))
        return Pattern(mixers, mlps, _sorted(sizes))
    mixers = _mixers(config, layout, layers, words, sizes)
    mlps = _mlps(config, layout, layers, mixture=mixture)
    sharing = config.get("num_kv_shared_layers")
    sharing = layout.defaults.get("sharing_layers", 0) if sharing is None else int(sharing)
    if 0 < sharing < layers:
        mixers = mixers[:-sharing] + mixers[-sharing:].upper()
        if config.get("use_double_wide_mlp"):
            mlps = mlps[:-sharing] + WIDE * sharing
    if mixture and layout.beside:
        mlps = BESIDE * layers
    return Pattern(mixers, mlps, _sorted(sizes))


def _sorted(sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for ours, names in SIZES.items():
        for name in names:
            value = config.get(name)
            if value and not isinstance(value, str):
                found[ours] = int(value)
                break
    for ours, names in FLAGS.items():
        stated = [config[name] for name in names if config.get(name) is not None]
        if stated:
            found[ours] = int(bool(stated[0]))
    if str(config.get("feed_forward_proj") or "").startswith("gated"):
        found["gated"] = 1
    if config.get("num_ln_in_parallel_attn") == 1:
        found.pop("two_norms", None)
    return _with_global_heads(config, found)


def _with_global_heads(config: Mapping[str, Any], found: dict[str, int]) -> dict[str, int]:
    """Gemma 4's heads of layers that see everything, under their old and their new names."""
    own = next(iter((config.get("per_layer_config") or {}).values()), None)
    if isinstance(own, Mapping):
        found["global_head_dim"] = int(own.get("head_dim") or found.get("global_head_dim", 0))
        found["global_kv_heads"] = int(own.get("num_key_value_heads") or 0)
    elif not found.get("keys_are_values"):
        found.pop("global_kv_heads", None)
    return {name: value for name, value in found.items() if value or name in FLAGS}


def _words(config: Mapping[str, Any], layers: int) -> list[str]:
    """What each layer is, in the words of `layer_types`; empty where nothing says so."""
    for name in ("layer_types", "layers_block_type"):
        stated = config.get(name)
        if isinstance(stated, list) and len(stated) == layers:
            return [str(word) for word in stated]
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == layers:
        return [NEMOTRON.get(letter, "mlp") for letter in pattern]
    summary = config.get("layer_types_summary") or {}
    if sum(summary.values()) == layers:
        return _spread(summary, layers)
    for name, inside, outside in INDICES:
        places = config.get(name)
        if isinstance(places, list):
            return [inside if index in places else outside for index in range(layers)]
    flags = config.get("attn_type_list")  # MiniMax-01: 1 for softmax attention
    if isinstance(flags, list) and len(flags) == layers:
        return [FULL if flag else LINEAR for flag in flags]
    return []


def _spread(summary: Mapping[str, int], layers: int) -> list[str]:
    """The layers of a summary (word -> count): those that see everything at equal distances, the
    last of all among them.
    """
    full = int(summary.get(FULL, 0))
    rest = [word for word, count in summary.items() if word != FULL for _ in range(int(count))]
    places = [(index + 1) * full // layers > index * full // layers for index in range(layers)]
    remaining = iter(rest)
    return [FULL if place else next(remaining) for place in places]


def _mixers(
    config: Mapping[str, Any],
    layout: Layout,
    layers: int,
    words: Sequence[str],
    sizes: Mapping[str, int],
) -> str:
    interval = config.get("full_attention_interval") or layout.defaults.get("full_every")
    if words:
        letters = [
            layout.linear if word == LINEAR else WORDS.get(word, ATTENTION) for word in words
        ]
    elif interval:
        letters = [
            ATTENTION if (index + 1) % int(interval) == 0 else layout.linear
            for index in range(layers)
        ]
    elif layout.every and (sizes.get("window") or layout.defaults.get("window")):
        every = int(
            config.get("sliding_window_pattern")
            or config.get("_sliding_window_pattern")
            or config.get("global_attn_every_n_layers")
            or layout.every
        )
        full = 0 if layout.first_full else every - 1  # of `every` layers, the one that sees all
        letters = [
            ATTENTION if every > 1 and index % every == full else SLIDING for index in range(layers)
        ]
    else:
        letters = [layout.mixer] * layers
    if sizes.get("latent_rank"):
        letters = [LATENT if letter == ATTENTION else letter for letter in letters]
    return "".join(letters)


def _mlps(config: Mapping[str, Any], layout: Layout, layers: int, *, mixture: bool) -> str:
    types = config.get("mlp_layer_types")
    rest = EXPERTS if mixture else DENSE
    if isinstance(types, list) and len(types) == layers:
        return "".join(DENSE if word == "dense" else rest for word in types)
    if not mixture:
        return DENSE * layers
    places = config.get("moe_layers")
    if isinstance(places, list):
        return "".join(EXPERTS if index in places else DENSE for index in range(layers))
    flags = config.get("moe_layer_freq")
    if isinstance(flags, list) and len(flags) == layers:
        return "".join(EXPERTS if flag else DENSE for flag in flags)
    first = next(
        (int(config[name]) for name in DENSE_FIRST if config.get(name) is not None),
        layout.defaults.get("dense_first", 0),
    )
    step = int(
        config.get("decoder_sparse_step")
        or config.get("interleave_moe_layer_step")
        or config.get("moe_layer_interval")
        or 1
    )
    dense = config.get("mlp_only_layers") or ()
    return "".join(
        EXPERTS if index >= first and (index + 1) % step == 0 and index not in dense else DENSE
        for index in range(layers)
    )
