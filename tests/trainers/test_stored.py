"""Checkpoints that are stored quantised, on the CPU with a tiny model in MXFP4."""

import json

import pytest

from trainers.frame.loading import load_base
from trainers.frame.stored import written_out

SIZES = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
    "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory):
    """A folder in the format of gpt-oss: every weight of every expert is 0.5 x 2."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("mxfp4")
    config = transformers.GptOssConfig(**SIZES)
    model = transformers.GptOssForCausalLM(config)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, rows in (("gate_up_proj", 128), ("down_proj", 64)):
        at = f"model.layers.0.mlp.experts.{name}"
        del state[at]
        # Two codes in a byte (1 is 0.5), a scale of 2 ** (128 - 127) for 32 of them.
        state[f"{at}_blocks"] = torch.full((2, rows, 2, 16), 0x11, dtype=torch.uint8)
        state[f"{at}_scales"] = torch.full((2, rows, 2), 128, dtype=torch.uint8)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    described = config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_mxfp4_and_fp8_are_asked_for_written_out(mxfp4, tiny_model, tmp_path):
    """Whether or not the package `kernels` is installed, with which transformers would keep MXFP4
    packed and refuse to train it.
    """
    quantized = written_out(str(mxfp4), trust_remote_code=False)["quantization_config"]
    assert quantized.dequantize is True
    fp8 = json.loads((tiny_model / "config.json").read_text())
    fp8["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(fp8))
    quantized = written_out(str(tmp_path), trust_remote_code=False)["quantization_config"]
    assert quantized.dequantize is True
    assert written_out(str(tiny_model), trust_remote_code=False) == {}


def test_an_mxfp4_checkpoint_is_loaded_in_the_dtype_of_the_stage(mxfp4, make):
    """Its experts are plain weights that can be trained, and its config no longer names a
    quantisation.
    """
    import torch

    job = make(weights_dtype="bfloat16", attention="eager")
    model = load_base(job, torch.device("cpu"), str(mxfp4))
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert experts.dtype == torch.bfloat16
    assert experts.shape == (2, 64, 128)
    assert torch.all(experts == 1.0)
    assert getattr(model.config, "quantization_config", None) is None
    loss = model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss
    loss.backward()
    assert experts.grad is not None
