"""The formulas held to real modules: parameter counts, and bytes that autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest

from advisor.estimate.blocks.layer import layers_of
from advisor.estimate.model.architecture import shape_from_config
from tests.estimate.specs import RunSpec, run_of

pytestmark = [pytest.mark.slow, pytest.mark.train]

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": 320,
    "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
# Families without grouped key-value heads: a stray key would stay in their configuration, and no
# checkpoint has it.
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 96},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
                    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4},
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "bias": False,
    "ffn_hidden_size": 256, "intermediate_size": None, **NO_GROUPS},
    "gpt2": {"n_inner": 160, **NO_GROUPS}, "gpt_bigcode": {"n_inner": 160, "multi_query": True,
    **NO_GROUPS}, "gpt_neox": NO_GROUPS,
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 64, **NO_GROUPS}, "bert": NO_GROUPS,
    "roberta": NO_GROUPS, "xlm-roberta": NO_GROUPS, "modernbert": NO_GROUPS,
    "distilbert": {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 160, **NO_GROUPS},
}  # fmt: skip
OWN["gemma4_text"] = {
    "global_head_dim": 24, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "num_kv_shared_layers": 1, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 320, "enable_moe_block": True, "num_experts": 4,
    "top_k_experts": 2, "moe_intermediate_size": 48,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip
OWN["deepseek_v3"] = OWN["deepseek_v2"]


def saved_bytes(model: Any, tokens: int, torch: Any) -> int:
    """Bytes of distinct storages that the forward pass keeps for the backward pass, parameters left
    out.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(0, 320, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = (
            model.model(input_ids=ids, use_cache=False)
            if hasattr(model, "model")
            else model(input_ids=ids, use_cache=False)
        )
        del output
    return sum(kept.values())


@pytest.mark.parametrize("how", ["attention-and-shared", "with-experts", "full"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_activations_of_a_mixture_are_what_autograd_keeps(family, how):
    """Two more layers of a small mixture keep as many bytes as the formula says, within a fifth;
    where experts are corrected, that includes their tensors with the correction.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    tokens, sizes = 256, {}
    for layers in (2, 4):
        config = transformers.AutoConfig.for_model(
            family,
            **{
                **SMALL, **OWN[family], "hidden_size": 256, "head_dim": 64,
                "num_hidden_layers": layers, "max_position_embeddings": 512,
                "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size": 352,
            },
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).train()
        if how != "full":
            experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
            model = peft.get_peft_model(
                model,
                peft.LoraConfig(
                    r=8,
                    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                    target_parameters=experts if how == "with-experts" else None,
                ),
            )
            model.enable_input_require_grads()
            model = model.base_model.model
        with torch.autocast("cpu", torch.bfloat16, enabled=how != "full"):
            sizes[layers] = saved_bytes(model, tokens, torch)
    shape = shape_from_config(config.to_dict(), "x", origin="hub", source="")
    run = run_of(
        RunSpec(
            update="full" if how == "full" else "lora",
            rank=8,
            target_modules=how,
            precision="pure" if how == "full" else "mixed",
            gradient_checkpointing=False,
        ),
        shape,
    )
    predicted = tokens * layers_of(run)[0][1].kept + run.written_out_bytes
    assert predicted == pytest.approx((sizes[4] - sizes[2]) / 2, rel=0.05)


@pytest.mark.parametrize(
    ("targets", "parameters"),
    [
        ("attention-and-shared", None),
        ("with-experts", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ],
)
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_lora_parameters_of_a_mixture_are_those_of_peft(family, targets, parameters):
    """LoRA on attention, and on the tensors of experts too, trains exactly the counted
    parameters.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **OWN[family]})
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    with torch.device("meta"):
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_config(config),
            peft.LoraConfig(r=8, target_modules=attention, target_parameters=parameters),
        )
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = shape_from_config(config.to_dict(), "x", origin="hub", source="")
    assert run_of(RunSpec(rank=8, target_modules=targets), shape).trainable == held


def test_lora_parameters_are_those_of_peft():
    """All-linear LoRA on a small LLaMA trains exactly the counted parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.LlamaConfig(**SMALL)
    with torch.device("meta"):
        model = peft.get_peft_model(
            transformers.LlamaForCausalLM(config), peft.LoraConfig(r=8, target_modules="all-linear")
        )
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = shape_from_config(config.to_dict(), "x", origin="hub", source="")
    assert run_of(RunSpec(rank=8), shape).trainable == held
