"""Every family of `layouts.py` held to transformers' modules: parameters, LoRA, kinds of layers."""

import math
import re
from typing import Any

import pytest

from advisor.estimate.model.architecture import ConfigError
from advisor.estimate.model.dims import dims_of
from advisor.estimate.model.layouts import layout_of, layouts
from advisor.estimate.model.structure import structure_of
from advisor.estimate.targets import unknown_targets
from advisor.methods.families import DECODER, SEQ2SEQ, kind_of_type
from advisor.situation.catalogue import catalogue_entry, catalogue_ids
from advisor.situation.models import model_shape
from tests.estimate.specs import RunSpec, run_of, shape_of

# No two sizes alike, so that one taken for another shows.
SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": 320, "max_position_embeddings": 128, "head_dim": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Families whose heads divide the hidden size and are not grouped.
DIVIDED = {"num_key_value_heads": None, "head_dim": None}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL = {"num_local_experts": 6, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    **ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 32, "q_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12,
    "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": None,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8,
    "linear_value_head_dim": 10, "linear_conv_kernel_dim": 3,
}  # fmt: skip
SHARED = {"shared_expert_intermediate_size": 40}
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 12,
    "mamba_d_conv": 3,
}  # fmt: skip
WINDOW = {"sliding_window": 16}
OPT = {"ffn_dim": 160, "word_embed_proj_dim": 64, **DIVIDED}
BERT = {"type_vocab_size": 3, **DIVIDED}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160,
    "hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None,
    "intermediate_size": None, **DIVIDED,
}  # fmt: skip
T5 = {
    "d_model": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 12,
    "d_ff": 160, "hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None,
    "intermediate_size": None, "max_position_embeddings": None, **DIVIDED,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": {"head_dim": None, "tie_word_embeddings": True},
    "qwen2_5_vl_text": {"head_dim": None, "tie_word_embeddings": True}, "mixtral": LOCAL,
    "granitemoe": LOCAL, "phimoe": LOCAL,
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "head_dim": None},
    "gpt_oss": {**LOCAL, **WINDOW}, "qwen2_moe": {**EXPERTS, **SHARED},
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [1]}, "qwen3_vl_moe_text": EXPERTS,
    "minimax_m2": LOCAL,
    "minimax_m3_vl_text": {**LOCAL, "mlp_layer_types": ["dense"] + 3 * ["sparse"],
        "dense_intermediate_size": 200, "shared_intermediate_size": 40},
    "llama4_text": {**LOCAL, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 200},
    "ernie4_5_moe": {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 48,
        "moe_num_shared_experts": 2, "moe_layer_end_index": -1},
    "hunyuan_v1_moe": {"num_experts": 6, "moe_topk": 2},
    "glm4_moe": {**ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "attention_bias":
        True, "use_qk_norm": True},
    "deepseek_v2": LATENT, "deepseek_v3": LATENT, "glm4_moe_lite": LATENT,
    "qwen3_next": {**EXPERTS, **SHARED, **DELTA, "full_attention_interval": 2},
    "qwen3_5_text": DELTA, "qwen3_5_moe_text": {**EXPERTS, **SHARED, **DELTA},
    "granitemoehybrid": {**LOCAL, **MAMBA, "shared_intermediate_size": 40, "mamba_expand": 2,
        "layer_types": ["mamba", "attention", "mamba", "mamba"]},
    "nemotron_h": {**ROUTED, "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 40,
        "hybrid_override_pattern": "M*-E", "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups":
        2, "ssm_state_size": 12, "moe_latent_size": 32},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "lfm2": {"head_dim": None, "full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 32},
    "lfm2_moe": {**EXPERTS, "head_dim": None, "num_dense_layers": 1, "layer_types": ["conv",
        "full_attention", "conv", "conv"]},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"], **WINDOW},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 12, "expand": 2,
        "num_attention_heads": None, "num_key_value_heads": None},
    "stablelm": {"head_dim": None}, "qwen3_vl_text": {"tie_word_embeddings": True},
    "gemma2": WINDOW, "gemma3_text": WINDOW, "cohere2": {**WINDOW, "head_dim": None},
    "olmo3": {**WINDOW, "head_dim": None},
    "gemma3n_text": {**WINDOW, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300, "altup_num_inputs": 3, "laurel_rank": 6, "layer_types":
        ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]},
    "gemma4_text": {**WINDOW, "global_head_dim": 40, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "num_kv_shared_layers": 1, "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "layer_types":
        ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
    "hy_v3": EXPERTS, "exaone_moe": EXPERTS, "sarvam_moe": EXPERTS,
    "flex_olmo": {"num_experts": 6, "num_experts_per_tok": 2, "head_dim": None},
    "dots1": {**ROUTED, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1},
    "mellum": EXPERTS, "granitemoeshared": {**LOCAL, "shared_intermediate_size": 40},
    "granitemoe_swa": LOCAL, "solar_open": {**ROUTED, "n_shared_experts": 1},
    "cohere2_moe": {"num_experts": 6, "num_experts_per_tok": 2, **WINDOW},
    "bamba": {**MAMBA, "mamba_expand": 2, "attn_layer_indices": [1]}, "olmo": {"head_dim": None},
    "codegen": {"n_inner": 160, "rotary_dim": 8, **DIVIDED},
    "lara_mini": {**DELTA, **EXPERTS},
    "gpt2": {"n_inner": 160, **DIVIDED},
    "gpt_bigcode": {"n_inner": 160, "multi_query": True, **DIVIDED},
    "gptj": {"n_inner": 160, "rotary_dim": 8, **DIVIDED}, "gpt_neox": DIVIDED,
    "bloom": {**DIVIDED, "intermediate_size": 256},
    "mpt": {**DIVIDED, "expansion_ratio": 4, "intermediate_size": 256},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], **DIVIDED}, "opt": OPT,
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "bias": False,
        "ffn_hidden_size": 256, "intermediate_size": None, **DIVIDED},
    "bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "electra": {**BERT, "embedding_size": 32},
    "camembert": BERT,
    "deberta-v2": {**DIVIDED, "type_vocab_size": 0, "relative_attention": True,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": "p2c|c2p", "position_biased_input": False},
    "modernbert": DIVIDED,
    "distilbert": {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 160, **DIVIDED},
    "bart": BART, "mbart": BART, "m2m_100": BART, "marian": BART, "pegasus": BART, "plbart": BART,
    "t5": T5, "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
}  # fmt: skip
# Families whose model needs code from the hub, or whose name stands for a model that sees too (its
# text tower has a name of its own).
ELSEWHERE = {
    "baichuan", "chatglm", "gemma3", "gemma3n", "gemma4", "kimi_k2", "kimi_k25", "llama4",
    "minimax_m3", "minimax_m3_vl", "mistral3", "mllama", "mllama_text_model", "phi3_v", "qwen", "qwen2_5_vl",
    "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe",
}  # fmt: skip
FAMILIES = sorted(
    family for family in layouts() if layout_of(family).exact and family not in ELSEWHERE
)


MIXTURES = [family for family in FAMILIES if "experts" in str(OWN.get(family))]


def small_model(family: str) -> tuple[dict[str, Any], Any]:
    """(its config.json, the model on the meta device)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    given = {**SMALL, **OWN.get(family, {})}
    config = transformers.AutoConfig.for_model(
        family, **{key: value for key, value in given.items() if value is not None}
    )
    kind, of = kind_of_type(family), transformers.AutoModel
    if kind == SEQ2SEQ:
        of = transformers.AutoModelForSeq2SeqLM
    elif type(config) in transformers.AutoModelForCausalLM._model_mapping and kind == DECODER:
        of = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return config.to_dict(), of.from_config(config)


def size(model, recurse=True):
    return sum(parameter.numel() for parameter in model.parameters(recurse=recurse))


def parts_of(model: Any) -> dict[str, int]:
    """Parameters by what they are: embeddings, linear layers, routed experts with routers."""
    import torch

    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings().weight
    found = {"embedding": embeddings.numel(), "linear": 0, "routed": 0, "all": size(model)}
    if output is not None and output.weight is not embeddings:
        found["embedding"] += output.weight.numel()
    for module in model.modules():
        name = type(module).__name__  # GPT-2's own class is a linear layer, too
        if (isinstance(module, torch.nn.Linear) or name == "Conv1D") and module is not output:
            found["linear"] += module.weight.numel()
        elif re.search(r"(Experts|Router|MoeStatics)$", name):
            found["routed"] += size(module, recurse=False)
    return found


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family):
    """A small model of each family has exactly the parameters counted from its ModelShape."""
    config, model = small_model(family)
    shape = shape_of(config)
    structure, dims = structure_of(shape), dims_of(shape)
    assert {
        "embedding": structure.embedding,
        "linear": sum(linear.weights * count for linear, count in structure.all_linears),
        "routed": dims.routed_params,
        "all": shape.params,
    } == parts_of(model)
    # The weight matrices of one layer's experts, and what LoRA of rank 1 trains on all of them.
    tensors = [
        parameter.shape
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and ".experts." in name
    ]
    if family in MIXTURES:
        assert dims.routed_layers * dims.expert_layer_params == sum(map(math.prod, tensors))
        assert dims.expert_ends == sum(count * (out + into) for count, out, into in tensors)


def trained(model: Any) -> int:
    """Parameters that are trained."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_what_the_trainers_adapt(family):
    """Rank 1 trains inputs and outputs of what our trainers take, and of what PEFT does if all."""
    peft = pytest.importorskip("peft")
    from trainers.updates.experts import find_experts
    from trainers.updates.lora import is_refused, linear_layers

    config, model = small_model(family)
    modules, experts = dict(model.named_modules()), find_experts(model)
    names = linear_layers(model)
    taken = [
        name
        for name in names
        if not is_refused(name, model) and (experts is None or not experts.owns(name))
    ]
    counted = run_of(RunSpec(rank=1), shape_of(config)).trainable
    if experts is None and len(taken) == len(names):
        model = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules="all-linear"))
        assert counted == trained(model)
    else:
        assert counted == sum(sum(modules[name].weight.shape) for name in taken)


NAMED = {
    "llama": ("q_proj", "v_proj"), "gpt2": ("c_proj",), "gpt_neox": ("query_key_value", "dense"),
    "phi3": ("qkv_proj", "down_proj"), "bert": ("query", "value"), "lfm2": ("w1", "out_proj"),
    "deepseek_v3": ("q_b_proj", "kv_b_proj", "o_proj"), "qwen3_next": ("in_proj_qkvz", "o_proj"),
    "granitemoehybrid": ("in_proj", "q_proj"), "nemotron_h": ("up_proj", "k_proj"),
    "qwen2_moe": ("q_proj", "shared_expert.up_proj"), "gemma3n_text": ("linear_left", "v_proj"),
    "t5": ("q", "wo"), "glm4": ("gate_up_proj", "o_proj"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize(
    ("family", "named"), [*((family, None) for family in MIXTURES), *sorted(NAMED.items())]
)
def test_lora_of_other_trainers_trains_what_peft_adapts(family, named):
    """On named layers, by the end of a module's name, in every layer that has it; and by PEFT's own
    "all-linear", which takes experts and routers of the families whose names it translates, in a
    trainer on transformers 5 that leaves the choice to it.
    """
    peft = pytest.importorskip("peft")
    config, model = small_model(family)
    choice = peft.LoraConfig(r=1, target_modules="all-linear" if named is None else list(named))
    if named is None and layout_of(family).refused:
        with pytest.raises(ValueError, match="Mamba"):
            peft.get_peft_model(model, choice)
        return
    model = peft.get_peft_model(model, choice)
    theirs = {"framework": "trl", "library_versions": {"transformers": "5.24"}}
    spec = RunSpec(rank=1, **(theirs if named is None else {"target_modules": named}))
    run = run_of(spec, shape_of(config))
    assert run.trainable == trained(model)
    assert named is None or unknown_targets(run) == ()


@pytest.mark.parametrize(
    ("family", "config", "other"),
    [("deepseek_v3", LATENT, "o_proj"), ("mamba2", {"mamba_n_heads": 4}, "in_proj")],
)
def test_layers_that_a_model_lacks_are_unknown_targets(family, config, other):
    """DeepSeek has two query matrices, and Mamba no queries at all."""
    shape = shape_of({**SMALL, **config, "model_type": family})
    assert unknown_targets(run_of(RunSpec(target_modules=("q_proj", other)), shape)) == ("q_proj",)


# Their published count has an output matrix of its own.
NOT_COUNTED = {"tiiuae/falcon-7b", "THUDM/chatglm-6b"}
# The indexer of sparse attention and lightning attention are left out.
ROUGHLY_COUNTED = {"deepseek_v32", "glm_moe_dsa", "minimax"}


def test_every_catalogued_model_is_counted_as_its_entry_says():
    """The parameters that follow from the dimensions of an entry are those it states."""
    counted = {hub_id: catalogue_entry(hub_id) for hub_id in {*catalogue_ids()} - NOT_COUNTED}
    counted = {
        hub_id: entry
        for hub_id, entry in counted.items()
        if {"num_layers", "vocab_size", "params"} <= entry.keys()
        and "with the vision tower" not in entry.get("params_source", "")
        and entry.get("model_type") not in ROUGHLY_COUNTED
    }
    assert len(counted) > 330
    for hub_id, entry in counted.items():
        shape = shape_of(entry, origin="catalogue", params=entry["params"])
        assert structure_of(shape).params == entry["params"], hub_id


# Sizes that makers choose are multiples of these. RoBERTa keeps 2 of its 514 positions for itself.
MULTIPLES = {
    64: "sliding_window hidden_size moe_intermediate_size kv_lora_rank q_lora_rank"
    " hidden_size_per_layer_input vocab_size_per_layer_input",
    32: "intermediate_size",
    16: "head_dim global_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim mamba_d_head"
    " mamba_d_state",
    8: "num_experts mamba_n_heads",
}


def test_sizes_of_every_catalogued_model_go_with_each_other():
    """What the count of parameters does not show: contexts, windows, how heads share, experts."""
    for hub_id in catalogue_ids():
        entry = catalogue_entry(hub_id)
        for multiple, names in MULTIPLES.items():
            assert {name for name in names.split() if entry.get(name, 0) % multiple} == set(), (
                hub_id
            )
        context = entry.get("context_length", 0)
        assert context % 256 in (0, 2) or context % 10_000 == 0, hub_id
        assert entry.get("num_heads", 0) % (entry.get("num_kv_heads") or 1) == 0, hub_id
        used = entry.get("num_experts_per_token", 0)
        assert used < 2 or used % 2 == 0, hub_id
        kinds = entry.get("layer_types_summary") or {"all": entry.get("num_layers")}
        assert sum(map(int, filter(None, kinds.values()))) == entry.get("num_layers", 0), hub_id


def test_attention_with_a_window_reads_its_window_alone():
    """Of 128 tokens twice is counted: a causal kernel sees half of a long text."""
    config = {
        **SMALL, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 128,
    }  # fmt: skip
    dims = dims_of(shape_of(config))
    queries, keys_and_values = 4 * 24, 2 * 2 * 24
    assert dims.attended(1000) == 2 * queries * (1000 + 256)
    assert dims.attended(1000, whole=True) == 4 * queries * 1000
    assert dims.cached(1000) == 2 * keys_and_values * (1000 + 128)


PLAIN = {**SMALL, "num_hidden_layers": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
NOT_THERE = object()
HALF = ["sliding_attention", "full_attention"] * 4


@pytest.mark.parametrize(
    ("family", "config", "what", "letters"),
    [
        ("llama", {}, "mixers", "aaaaaaaa"),
        # Windows, stated and usual: all layers, every second, sixth or fourth sees everything.
        ("mistral", WINDOW, "mixers", "ssssssss"),
        ("mistral", {"sliding_window": None}, "mixers", "aaaaaaaa"),
        ("qwen2", {**WINDOW, "use_sliding_window": False}, "mixers", "aaaaaaaa"),
        ("gemma2", {}, "mixers", "sasasasa"),
        ("gemma3_text", WINDOW, "mixers", "sssssass"),
        ("gemma3_text", {**WINDOW, "sliding_window_pattern": 4}, "mixers", "sssasssa"),
        ("cohere2", WINDOW, "mixers", "sssasssa"),
        ("modernbert", {"local_attention": 128}, "mixers", "assassas"),
        ("smollm3", {**WINDOW, "layer_types": HALF}, "mixers", "sasasasa"),
        ("gpt_oss", {**WINDOW, "layer_types_summary": {"sliding_attention": 6, "full_attention": 2}}, "mixers", "sssasssa"),
        ("llama4_text", {"num_local_experts": 2}, "mixers", "sssasssa"),
        # Layers of several kinds.
        ("qwen3_next", {**DELTA, **MOE}, "mixers", "dddaddda"),
        ("qwen3_5_text", {**DELTA, "full_attention_interval": 2}, "mixers", "dadadada"),
        ("lfm2", {"full_attn_idxs": [2, 5]}, "mixers", "ccaccacc"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 7 + ["attention"]}, "mixers", "mmmmmmma"),
        ("minimax", {"attn_type_list": [0, 0, 0, 1] * 2}, "mixers", "gggaggga"),
        ("nemotron_h", {"hybrid_override_pattern": "M-M*MEM-"}, "mixers", "m-mam-m-"),
        ("falcon_h1", {}, "mixers", "hhhhhhhh"),
        ("mamba2", {}, "mixers", "mmmmmmmm"),
        ("deepseek_v3", LATENT, "mixers", "llllllll"),
        # The last layers take keys and values from earlier ones.
        ("gemma3n_text", {**WINDOW, "num_kv_shared_layers": 3, "layer_types": HALF}, "mixers", "sasasASA"),
        ("t5", {"num_layers": 5, "num_decoder_layers": 3, "num_hidden_layers": NOT_THERE, "d_kv": 16}, "mixers", "aaaaaxxx"),
        # Nemotron-H's newer configurations list their layers without a number of them.
        *(("nemotron_h", {"num_hidden_layers": NOT_THERE, "layers_block_type":
           ["linear_attention", "moe", "full_attention", "mlp"]}, what, said)
          for what, said in (("layers", 4), ("mixers", "m-a-"))),
        # Hunyuan's repeat sizes of experts for every layer, where all are alike.
        *(("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [2] * 8, "moe_intermediate_size": [24] * 8},
           what, said) for what, said in (("experts_per_token", 2), ("expert_size", 24))),
        # Which layers have experts, or a wider MLP.
        ("llama", {}, "mlps", "dddddddd"),
        ("mixtral", {"num_local_experts": 4}, "mlps", "eeeeeeee"),
        ("qwen3_moe", {**MOE, "mlp_only_layers": [0, 3]}, "mlps", "deedeeee"),
        ("qwen3_moe", {**MOE, "decoder_sparse_step": 2}, "mlps", "dededede"),
        ("deepseek_v3", {**LATENT, **MOE, "first_k_dense_replace": 3}, "mlps", "dddeeeee"),
        ("glm4_moe_lite", {**LATENT, **MOE}, "mlps", "deeeeeee"),
        ("lfm2_moe", {**MOE, "num_dense_layers": 2}, "mlps", "ddeeeeee"),
        ("llama4_text", {"num_local_experts": 4, "interleave_moe_layer_step": 2}, "mlps", "dededede"),
        ("glm4_moe", {**MOE, "mlp_layer_types": ["dense"] + ["sparse"] * 7}, "mlps", "deeeeeee"),
        ("minimax_m3_vl_text", {**MOE, "moe_layer_freq": [0] * 2 + [1] * 6}, "mlps", "ddeeeeee"),
        ("ernie4_5_moe", {**MOE, "moe_layer_start_index": 1}, "mlps", "deeeeeee"),
        ("nemotron_h", {"hybrid_override_pattern": "M-M*MEM-", "n_routed_experts": 4}, "mlps", "-d---e-d"),
        ("gemma4_text", {**MOE, **WINDOW}, "mlps", "bbbbbbbb"),
        ("gemma4_text", {**WINDOW, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}, "mlps", "ddddddww"),
        ("mamba2", {}, "mlps", "--------"),
    ],
)  # fmt: skip
def test_a_configuration_says_what_each_layer_is(family, config, what, letters):
    """One letter a layer says how it mixes (attention, sliding, ...), one which MLP it has."""
    given = {**PLAIN, **config, "model_type": family}
    shape = shape_of({key: value for key, value in given.items() if value is not NOT_THERE})
    assert getattr(shape, what) == letters


def test_a_width_that_nothing_states_follows_from_the_parameters():
    """An entry with dimensions and a total, but no width of the MLP, has the width that makes it."""
    config = {**PLAIN, "model_type": "llama"}
    known = shape_of({**config, "intermediate_size": 640})
    del config["intermediate_size"]
    shape = shape_of(config, params=known.params)
    assert shape.intermediate_size == 640
    assert "follows from the number of parameters" in shape.note


@pytest.mark.parametrize("key", ["block_configs", "linear_attn_config"])
def test_keys_by_which_single_layers_differ_are_noted(key):
    """Nemotron Super and Kimi Linear count as if all their layers were alike."""
    assert f"{key} not read" in shape_of({**PLAIN, "model_type": "nemotron-nas", key: [1]}).note


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"kv_lora_rank": [1]}, "describe no model"),
        ({"mamba_n_groups": {"a": 1}}, "describe no model"),
        ({"per_layer_config": [1]}, "describe no model"),
        ({"model_type": ["a"]}, "model_type is"),
        ({"model_type": "roc_bert", "hidden_size": 3, "num_attention_heads": 12, "head_dim": None},
         "12 attention heads do not divide a hidden_size of 3"),
    ],
)  # fmt: skip
def test_a_configuration_that_describes_no_model_is_refused(config, said):
    """A list where one number or a name is expected, or more heads than numbers."""
    with pytest.raises(ConfigError, match=said):
        shape_of({**PLAIN, "model_type": "llama", **config})


def test_kinds_of_layers_add_up_in_every_catalogued_model():
    """Kinds have layers and parameters; only families without transformers' code count as plain."""
    entries = {hub_id: catalogue_entry(hub_id) for hub_id in catalogue_ids()}
    types = {entry.get("model_type") for entry in entries.values()}
    assert types - layouts().keys() == {"deepseek_v4"}
    for hub_id in [name for name, entry in entries.items() if "num_layers" in entry]:
        shape, _ = model_shape(hub_id)
        structure = structure_of(shape)
        assert structure is not None, hub_id
        assert sum(kind.count for kind in structure.kinds) == shape.layers
        assert all(0 < kind.used_params <= kind.params for kind in structure.kinds), hub_id
        assert structure.used_params <= structure.params
        assert all(linear.weights > 0 for linear, _ in structure.all_linears), hub_id
