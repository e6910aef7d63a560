"""The formulas held to real modules: parameter counts, and bytes that autograd really keeps."""

from typing import Any

import pytest

from advisor.estimate.blocks.layer import layers_of
from tests.estimate.specs import RunSpec, run_of, shape_of

pytestmark = [pytest.mark.slow, pytest.mark.train]

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": 320,
    "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
OWN: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL, "gpt_oss": LOCAL,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def saved_bytes(model: Any, tokens: int, torch: Any) -> int:
    """Bytes of distinct storages that the forward pass keeps, parameters left out."""
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
        model.model(input_ids=ids, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("how", ["attention-and-shared", "with-experts", "full"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_activations_of_a_mixture_are_what_autograd_keeps(family, how):
    """Two more layers of a small mixture, with and without corrected experts."""
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
            named = EXPERTS if how == "with-experts" else None
            lora = peft.LoraConfig(r=8, target_modules=ATTENTION, target_parameters=named)
            model = peft.get_peft_model(model, lora)
            model.enable_input_require_grads()
            model = model.base_model.model
        with torch.autocast("cpu", torch.bfloat16, enabled=how != "full"):
            sizes[layers] = saved_bytes(model, tokens, torch)
    shape = shape_of(config.to_dict())
    kind = {"update": "full", "precision": "pure"} if how == "full" else {"precision": "mixed"}
    spec = RunSpec(rank=8, target_modules=how, gradient_checkpointing=False, **kind)
    run = run_of(spec, shape)
    predicted = tokens * layers_of(run)[0][1].kept + run.written_out_bytes
    assert predicted == pytest.approx((sizes[4] - sizes[2]) / 2, rel=0.05)


@pytest.mark.parametrize(
    ("targets", "parameters"), [("attention-and-shared", None), ("with-experts", EXPERTS)]
)
@pytest.mark.parametrize("family", OWN)
def test_lora_parameters_of_a_mixture_are_those_of_peft(family, targets, parameters):
    """On attention, and on the tensors of experts too."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **OWN[family]})
    with torch.device("meta"):
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_config(config),
            peft.LoraConfig(r=8, target_modules=ATTENTION, target_parameters=parameters),
        )
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = shape_of(config.to_dict())
    assert run_of(RunSpec(rank=8, target_modules=targets), shape).trainable == held
