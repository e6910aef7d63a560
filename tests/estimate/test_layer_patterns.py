"""Which mixer and which MLP each layer has, from the many ways in which config.json says it."""

from typing import Any

import pytest

from advisor.estimate.model.architecture import ConfigError, shape_from_config
from advisor.estimate.model.layouts import layouts
from advisor.estimate.model.structure import structure_of
from advisor.situation.catalogue import catalogue_entry, catalogue_ids
from advisor.situation.models import model_shape

PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 100,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
WINDOW = {"sliding_window": 8}
NOT_THERE = object()
HALF = ["sliding_attention", "full_attention"] * 4


def shape_of(config: dict[str, Any], **more: Any) -> Any:
    return shape_from_config(config, "x", origin="hub", source="", **more)


def letters(family: str, config: dict[str, Any]) -> tuple[str, str]:
    """The mixers and the MLPs of a model of eight layers."""
    given = {**PLAIN, **config, "model_type": family}
    given = {key: value for key, value in given.items() if value is not NOT_THERE}
    shape = shape_of(given)
    return shape.mixers, shape.mlps


@pytest.mark.parametrize(
    ("family", "config", "mixers"),
    [
        ("llama", {}, "aaaaaaaa"),
        # Windows, stated and usual: all layers, every second, sixth or fourth sees everything.
        ("mistral", WINDOW, "ssssssss"),
        ("mistral", {"sliding_window": None}, "aaaaaaaa"),
        ("qwen2", {**WINDOW, "use_sliding_window": False}, "aaaaaaaa"),
        ("gemma2", {}, "sasasasa"),
        ("gemma3_text", WINDOW, "sssssass"),
        ("gemma3_text", {**WINDOW, "sliding_window_pattern": 4}, "sssasssa"),
        ("cohere2", WINDOW, "sssasssa"),
        ("modernbert", {"local_attention": 128}, "assassas"),
        ("smollm3", {**WINDOW, "layer_types": HALF}, "sasasasa"),
        ("gpt_oss", {**WINDOW, "layer_types_summary": {"sliding_attention": 6, "full_attention": 2}}, "sssasssa"),
        ("llama4_text", {"num_local_experts": 2}, "sssasssa"),
        # Layers of several kinds.
        ("qwen3_next", {**DELTA, **MOE}, "dddaddda"),
        ("qwen3_5_text", {**DELTA, "full_attention_interval": 2}, "dadadada"),
        ("lfm2", {"full_attn_idxs": [2, 5]}, "ccaccacc"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 7 + ["attention"]}, "mmmmmmma"),
        ("minimax", {"attn_type_list": [0, 0, 0, 1] * 2}, "gggaggga"),
        ("nemotron_h", {"hybrid_override_pattern": "M-M*MEM-"}, "m-mam-m-"),
        ("falcon_h1", {}, "hhhhhhhh"),
        ("mamba2", {}, "mmmmmmmm"),
        ("deepseek_v3", LATENT, "llllllll"),
        # The last layers take keys and values from earlier ones.
        ("gemma3n_text", {**WINDOW, "num_kv_shared_layers": 3, "layer_types": HALF}, "sasasASA"),
        ("t5", {"num_layers": 5, "num_decoder_layers": 3, "num_hidden_layers": NOT_THERE, "d_kv": 16}, "aaaaaxxx"),
    ],
)  # fmt: skip
def test_a_configuration_says_how_each_layer_mixes(family, config, mixers):
    """One letter per layer: attention, sliding, latent, delta, Mamba, convolution, ..."""
    assert letters(family, config)[0] == mixers


@pytest.mark.parametrize(
    ("family", "config", "mlps"),
    [
        ("llama", {}, "dddddddd"),
        ("mixtral", {"num_local_experts": 4}, "eeeeeeee"),
        ("qwen3_moe", {**MOE, "mlp_only_layers": [0, 3]}, "deedeeee"),
        ("qwen3_moe", {**MOE, "decoder_sparse_step": 2}, "dededede"),
        ("deepseek_v3", {**LATENT, **MOE, "first_k_dense_replace": 3}, "dddeeeee"),
        ("glm4_moe_lite", {**LATENT, **MOE}, "deeeeeee"),
        ("lfm2_moe", {**MOE, "num_dense_layers": 2}, "ddeeeeee"),
        ("llama4_text", {"num_local_experts": 4, "interleave_moe_layer_step": 2}, "dededede"),
        ("glm4_moe", {**MOE, "mlp_layer_types": ["dense"] + ["sparse"] * 7}, "deeeeeee"),
        ("minimax_m3_vl_text", {**MOE, "moe_layer_freq": [0] * 2 + [1] * 6}, "ddeeeeee"),
        ("ernie4_5_moe", {**MOE, "moe_layer_start_index": 1}, "deeeeeee"),
        ("nemotron_h", {"hybrid_override_pattern": "M-M*MEM-", "n_routed_experts": 4}, "-d---e-d"),
        ("gemma4_text", {**MOE, **WINDOW}, "bbbbbbbb"),
        ("gemma4_text", {**WINDOW, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}, "ddddddww"),
        ("mamba2", {}, "--------"),
    ],
)  # fmt: skip
def test_a_configuration_says_which_layers_have_experts(family, config, mlps):
    """One letter per layer: dense, wide, experts, both, or none."""
    assert letters(family, config)[1] == mlps


def test_a_number_for_each_layer_is_read_where_all_are_alike():
    """Hunyuan's configurations repeat the size of experts for every layer."""
    config = {
        **PLAIN, "model_type": "hunyuan_v1_moe", "num_experts": 4, "moe_topk": [2] * 8,
        "moe_intermediate_size": [24] * 8,
    }  # fmt: skip
    shape = shape_of(config)
    assert (shape.experts_per_token, shape.expert_size) == (2, 24)


def test_a_width_that_nothing_states_follows_from_the_parameters():
    """An entry with dimensions and a total, but no width of the MLP, has the width that makes it."""
    config = {**PLAIN, "model_type": "llama"}
    known = shape_of({**config, "intermediate_size": 640})
    del config["intermediate_size"]
    shape = shape_of(config, params=known.params)
    assert shape.intermediate_size == 640
    assert "follows from the number of parameters" in shape.note


def test_layers_without_a_number_of_them_are_counted():
    """Nemotron-H's newer configurations list their layers alone."""
    config = {key: value for key, value in PLAIN.items() if key != "num_hidden_layers"}
    types = ["linear_attention", "moe", "full_attention", "mlp"]
    shape = shape_of({**config, "model_type": "nemotron_h", "layers_block_type": types})
    assert (shape.layers, shape.mixers) == (4, "m-a-")


@pytest.mark.parametrize("key", ["block_configs", "linear_attn_config"])
def test_keys_by_which_single_layers_differ_are_noted(key):
    """Nemotron Super and Kimi Linear count as if all their layers were alike."""
    shape = shape_of({**PLAIN, "model_type": "nemotron-nas", key: [1]})
    assert f"{key} not read" in shape.note


@pytest.mark.parametrize(
    "config", [{"kv_lora_rank": [1]}, {"mamba_n_groups": {"a": 1}}, {"per_layer_config": [1]}]
)
def test_sizes_that_are_no_numbers_are_refused(config):
    """A list where one number is expected describes no model, and that is said."""
    with pytest.raises(ConfigError, match="describe no model"):
        letters("llama", config)


def test_kinds_of_layers_add_up_in_every_catalogued_model():
    """Each layer is of one kind, every kind has parameters, and a token passes through no more than
    there are.
    """
    for hub_id in catalogue_ids():
        if "num_layers" not in catalogue_entry(hub_id):
            continue
        shape, _ = model_shape(hub_id)
        structure = structure_of(shape)
        assert structure is not None, hub_id
        assert sum(kind.count for kind in structure.kinds) == shape.layers
        assert all(0 < kind.used_params <= kind.params for kind in structure.kinds), hub_id
        assert structure.used_params <= structure.params
        assert all(linear.weights > 0 for linear, _ in structure.all_linears), hub_id


def test_every_family_of_the_catalogue_has_a_layout():
    """None is counted as a plain decoder but those that transformers has no code for."""
    types = {catalogue_entry(hub_id).get("model_type") for hub_id in catalogue_ids()}
    assert types - layouts().keys() == {"deepseek_v4"}
