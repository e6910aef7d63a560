"""How each family of models builds its layers: one entry per family, after the layer definitions of
transformers 5.24 (src/transformers/models/<family>/modeling_<family>.py).

What an entry does not say is a LLaMA's: separate projections with biases only where config.json has
`attention_bias`, a gated MLP, two RMSNorms per layer and one at the end. A family without an entry
is taken for one, and the shape's note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Bias = Literal["none", "config", "config-qkv", "qkv", "qkvo", "o"]


class Layout(NamedTuple):
    """What distinguishes a family from LLaMA.

    Attributes:
        mixer: The letter (see structure.MIXERS) of layers of which config.json says nothing.
        linear: The letter that "linear_attention" in `layer_types` stands for.
        delta: How gated DeltaNet holds its input matrices: "qwen3_next" as two, "olmo_hybrid" as
            six, else as four.
        every: Of layers with a window: every nth sees everything (1: all have the window; 0: no
            layer has one unless `layer_types` says so).
        first_full: The first of each `every` layers sees everything, not the last.
        bias: Which projections of attention have biases; "config": all if `attention_bias` is set.
        norm: RMSNorms of queries and keys; "config": of each head if `use_qk_norm` is set.
        gate: Who scales attention's output: a second half of q_proj, a number per head, or nobody.
        fused, names, output: Names of the projections; `fused` where they are one matrix.
        mlp: Names of gate, up and down (up and down where it is not gated).
        fused_mlp: The name of gate and up where they are one matrix.
        mlp_bias: Whether the MLP has biases; None: as `mlp_bias` in config.json.
        alone: A layer is either a mixer or an MLP, with one norm (Nemotron-H, Mamba).
        shared: How many shared experts there are where config.json gives no number.
        shared_gate: A number per token scales the shared expert.
        fused_shared: Gate and up of the shared experts are one matrix, of this name.
        beside: Layers with experts have a dense MLP too.
        refused: A linear layer that PEFT refuses to adapt in this family.
        linear_router: The router is a linear layer of this name, not a tensor of its own.
        renamed: transformers 4 had linear layers for its experts, which PEFT finds again in the
            tensors of transformers 5 (peft 0.21, transformers_weight_conversion.py): its own
            "all-linear" adapts experts and router.
        router_biases: Numbers per expert beside the router's matrix that are parameters.
        expert_biases: The tensors of experts have biases.
        norms, norm_bias: Per layer, and whether they are LayerNorms with a bias.
        first_norm: The first layer has all of them (ModernBERT's lacks one).
        end_norms: Norms outside of the layers, in multiples of the hidden size.
        positions: Rows of a table of learned positions beyond the context; None: there is none.
        tables: How many of these tables (encoder and decoder have one each).
        relative: Rows of a table of relative positions as wide as the model (DeBERTa).
        tables_each: Each layer has a table of relative positions, not one of each stack (UMT5).
        token_types: Rows of a table of token types where config.json does not say; None: none.
        pooler: A square matrix over the first token (encoders).
        head_bias: The output matrix has a bias.
        tied: Input and output embeddings are one matrix where config.json does not say.
        plus: Further parameters per layer (the scales of Apertus' activation).
        defaults: Sizes that the family's configuration class has and config.json may leave out.
        exact: The count was compared with transformers' own modules.
    """

    mixer: str = "a"
    linear: str = "d"
    delta: str = ""
    every: int = 0
    first_full: bool = False
    bias: Bias = "config"
    norm: Literal["", "head", "whole", "config"] = ""
    gate: Literal["", "queries", "heads"] = ""
    sinks: bool = False
    capped: bool = False
    fused: str = ""
    names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    gated: bool = True
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    fused_mlp: str = ""
    mlp_bias: bool | None = None
    alone: bool = False
    shared: int = 0
    shared_gate: bool = False
    beside: bool = False
    refused: str = ""
    linear_router: str = ""
    fused_shared: str = ""
    renamed: bool = False
    router_biases: int = 0
    expert_biases: bool = False
    norms: int = 2
    norm_bias: bool = False
    first_norm: bool = True
    end_norms: int = 1
    positions: int | None = None
    token_types: int | None = None
    tables: int = 1
    relative: int = 0
    tables_each: bool = False
    pooler: bool = False
    head_bias: bool = False
    tied: bool = False
    plus: int = 0
    defaults: Mapping[str, int] = MappingProxyType({})
    exact: bool = True


PLAIN = Layout(exact=False)  # of a family that nobody compared
_QWEN3_5 = Layout(
    norm="head", gate="queries", shared_gate=True, defaults={"kernel": 4, "full_every": 4}
)
_GEMMA3 = Layout(norm="head", norms=4, every=6, tied=True)
_GEMMA3N = Layout(
    norm="head", norms=4, every=5, tied=True,
    defaults={"streams": 4, "laurel_rank": 64, "sharing_layers": 15},
)  # fmt: skip
_LFM2 = Layout(
    mixer="c", norm="head", output="out_proj", mlp=("w1", "w3", "w2"), tied=True,
    defaults={"kernel": 3},
)  # fmt: skip
_OLD = Layout(gated=False, mlp_bias=True, norm_bias=True, bias="qkvo", mlp=("fc1", "fc2"))
_BERT = _OLD._replace(
    names=("query", "key", "value"), output="dense", mlp=("dense", "dense"), positions=0,
    token_types=2, pooler=True, tied=True,
)  # fmt: skip
_GPT2 = _OLD._replace(
    fused="c_attn", output="c_proj", mlp=("c_fc", "c_proj"), positions=0, tied=True
)
_NEOX = _OLD._replace(
    fused="query_key_value", output="dense", mlp=("dense_h_to_4h", "dense_4h_to_h")
)
_MINIMAX_M3 = Layout(norm="head", fused_mlp="gate_up_proj", fused_shared="gate_up_proj", shared=1)
_T5 = Layout(
    bias="none", names=("q", "k", "v"), output="o", gated=False, mlp=("wi_0", "wi_1", "wo"),
    end_norms=2, tied=True, defaults={"buckets": 32},
)  # fmt: skip
_BART = _OLD._replace(output="out_proj", positions=2, tables=2, tied=True)
_LATENT = Layout(mixer="l", shared=1, renamed=True)

# Names of families (model_type of config.json) -> what they are.
_TABLE: Mapping[str, Layout] = {
    # Attention and a gated MLP or experts.
    "llama mistral3 ministral3 granite granitemoe exaone internlm3 cwm iquestcoder"
    " vaultgemma": Layout(),
    "granitemoeshared": Layout(
        mlp=("input_linear", "output_linear"), fused_mlp="input_linear",
        fused_shared="input_linear",
    ),
    "minicpm3 youtu sarvam_mla": Layout(mixer="l"),
    "solar_open": Layout(shared=1, renamed=True),
    "arcee": Layout(gated=False, mlp=("up_proj", "down_proj")),
    "nemotron": Layout(gated=False, mlp=("up_proj", "down_proj"), norm_bias=True),
    "granite_swa granitemoe_swa": Layout(sinks=True),
    "hy_v3 sarvam_moe": Layout(norm="head", shared=1),
    "exaone_moe dots1": Layout(norm="head", shared=1, renamed=True),
    "mellum": Layout(norm="head", renamed=True),
    "olmo": Layout(norms=0, end_norms=0),
    "flex_olmo": Layout(norm="whole", renamed=True),
    "cohere2_moe": Layout(norms=1, tied=True, every=4, renamed=True),
    "mixtral": Layout(renamed=True),
    "mistral ministral phi3_v": Layout(every=1),
    "llama4 llama4_text": Layout(
        every=4, shared=1, linear_router="router",
        defaults={"window": 8192, "dense_width": 16384},
    ),
    "mllama mllama_text_model": Layout(exact=False),
    "smollm3": Layout(tied=True),
    "ernie4_5": Layout(tied=True),
    "ernie4_5_moe": Layout(
        tied=True, shared=2, router_biases=1, renamed=True, defaults={"dense_first": 1}
    ),
    "qwen2 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text": Layout(bias="qkv"),
    "qwen2_moe": Layout(bias="qkv", shared_gate=True),
    "qwen": Layout(
        bias="qkv", fused="c_attn", output="c_proj", mlp=("w2", "w1", "c_proj"), exact=False
    ),
    "qwen3 qwen3_vl qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text": Layout(norm="head"),
    "qwen3_moe": Layout(norm="head", renamed=True),
    "seed_oss": Layout(bias="qkv"),
    "gemma": Layout(tied=True),
    "gemma2": Layout(norms=4, every=2, capped=True, tied=True, defaults={"window": 4096}),
    "gemma3 gemma3_text": _GEMMA3,
    "gemma4 gemma4_text": _GEMMA3._replace(beside=True, defaults={"global_head_dim": 512}),
    "gemma3n gemma3n_text": _GEMMA3N,
    "olmo2": Layout(norm="whole"),
    "olmo3": Layout(norm="whole", every=4),
    "olmoe": Layout(norm="whole", renamed=True),
    "minimax_m2": Layout(norm="whole", renamed=True),
    "minimax_m3_vl minimax_m3_vl_text": _MINIMAX_M3,
    "minimax_m3": _MINIMAX_M3._replace(exact=False),  # without its indexers
    "phi3": Layout(fused="qkv_proj", fused_mlp="gate_up_proj", every=1),
    "phimoe": Layout(norm_bias=True, linear_router="router"),
    "cohere": Layout(norms=1, tied=True),
    "cohere2": Layout(norms=1, tied=True, every=4, defaults={"window": 4096}),
    "stablelm": Layout(norm_bias=True),
    "glm": Layout(bias="config-qkv", fused_mlp="gate_up_proj"),
    "glm4": Layout(bias="config-qkv", norms=4, fused_mlp="gate_up_proj"),
    "glm4_moe": Layout(bias="config-qkv", norm="config", shared=1, renamed=True),
    "gpt_oss": Layout(bias="qkvo", sinks=True, every=2, router_biases=1, expert_biases=True),
    "apertus": Layout(norm="head", gated=False, mlp=("up_proj", "down_proj"), plus=2),
    "exaone4": Layout(norm="head"),
    "hunyuan_v1_dense": Layout(norm="head"),
    "hunyuan_v1_moe": Layout(norm="head", linear_router="wg", shared=1, renamed=True),
    # Latent attention.
    "deepseek_v2 deepseek_v3 kimi_k2 kimi_k25": _LATENT,
    "deepseek_v32": _LATENT._replace(defaults={"index_heads": 64, "index_dim": 128}),
    "glm_moe_dsa": _LATENT._replace(defaults={"index_heads": 32, "index_dim": 128}),
    "glm4_moe_lite": _LATENT._replace(defaults={"dense_first": 1}),
    # Layers of several kinds.
    "qwen3_next": _QWEN3_5._replace(delta="qwen3_next", renamed=True),
    "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text": _QWEN3_5,
    "olmo_hybrid": Layout(
        norm="whole", delta="olmo_hybrid", defaults={"kernel": 4, "full_every": 4}
    ),
    "lara_mini": _QWEN3_5._replace(gate="", shared_gate=False),
    "bamba": Layout(linear="m", defaults={"kernel": 4, "conv_bias": 1, "gated_norm": 1}),
    "kimi_linear": Layout(mixer="l", linear="k", shared=1, defaults={"kernel": 4}),
    "granitemoehybrid": Layout(
        linear="m", mlp=("input_linear", "output_linear"), fused_mlp="input_linear",
        fused_shared="input_linear", defaults={"kernel": 4, "conv_bias": 1, "gated_norm": 1},
    ),
    "nemotron_h": Layout(
        linear="m", alone=True, norms=1, gated=False, mlp=("up_proj", "down_proj"), shared=1,
        refused="out_proj",
        defaults={"kernel": 4, "conv_bias": 1, "gated_norm": 1},
    ),
    "falcon_h1": Layout(
        mixer="h", refused="out_proj",
        defaults={"kernel": 4, "conv_bias": 1, "mamba_groups": 1, "mamba_state": 256}
    ),
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2._replace(defaults={"kernel": 3, "dense_first": 2}),
    "lfm3": _LFM2._replace(output="o_proj", norms=4, gate="heads", defaults={"kernel": 7}
    ),
    "minimax": Layout(linear="g", renamed=True),
    "mamba2": Layout(
        mixer="m", linear="m", alone=True, norms=1, refused="out_proj",
        defaults={"conv_bias": 1, "gated_norm": 1}
    ),
    # LayerNorms, two matrices, biases.
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _OLD._replace(
        bias="o", output="out_proj", mlp=("c_fc", "c_proj"), positions=0, tied=True
    ),
    "gpt_neox": _NEOX,
    "gptj": _OLD._replace(
        bias="none", output="out_proj", mlp=("fc_in", "fc_out"), norms=1, head_bias=True
    ),
    "codegen": _OLD._replace(
        bias="none", fused="qkv_proj", output="out_proj", mlp=("fc_in", "fc_out"), norms=1,
        head_bias=True,
    ),
    "bloom": _NEOX._replace(end_norms=2, tied=True),
    "falcon": _NEOX._replace(bias="none", mlp_bias=False, norms=1, tied=True),
    "mpt": _OLD._replace(
        bias="none", mlp_bias=False, norm_bias=False, fused="Wqkv", output="out_proj",
        mlp=("up_proj", "down_proj"), tied=True,
    ),
    "opt": _OLD._replace(output="out_proj", positions=2, tied=True),
    "phi": _OLD._replace(output="dense", norms=1, head_bias=True),
    "starcoder2": _OLD._replace(mlp=("c_fc", "c_proj"), every=1, tied=True),
    "chatglm": Layout(
        bias="qkv", fused="query_key_value", output="dense", fused_mlp="dense_h_to_4h",
        mlp=("dense_h_to_4h", "dense_4h_to_h"), exact=False,
    ),
    "baichuan": Layout(fused="W_pack", exact=False),
    # Encoders.
    "bert roberta xlm-roberta camembert": _BERT,
    "electra": _BERT._replace(pooler=False),
    "distilbert": _BERT._replace(
        names=("q_lin", "k_lin", "v_lin"), output="out_lin", mlp=("lin1", "lin2"),
        pooler=False, token_types=None,
    ),
    "deberta-v2": _BERT._replace(
        names=("query_proj", "key_proj", "value_proj"), pooler=False, token_types=None,
        positions=None, end_norms=2, relative=512,
    ),
    "modernbert": Layout(
        fused="Wqkv", output="Wo", fused_mlp="Wi", mlp=("Wi", "Wo"), every=3, first_full=True,
        first_norm=False, end_norms=2, tied=True, defaults={"window": 128},
    ),
    "eurobert": Layout(tied=True),
    # Encoder and decoder.
    "t5 mt5": _T5,
    "umt5": _T5._replace(tables_each=True),
    "bart plbart": _BART._replace(end_norms=2),
    "mbart": _BART._replace(end_norms=4),
    "m2m_100": _BART._replace(end_norms=2, positions=None),
    "marian": _BART._replace(end_norms=0, positions=0),
    "pegasus": _BART._replace(end_norms=2, positions=0),
    "led mvp bigbird_pegasus blenderbot pegasus_x": _BART._replace(end_norms=2, exact=False),
}  # fmt: skip
LAYOUTS: Mapping[str, Layout] = {
    family: layout for families, layout in _TABLE.items() for family in families.split()
}


def layout_of(family: str | None) -> Layout:
    """The family's entry; a LLaMA's for a family that has none."""
    return LAYOUTS.get(family or "", PLAIN)
