"""Liger's norm, rotary embedding and gated MLP give plain torch's numbers, under an interpreter.

Triton is 300 MB and no part of an installation for the CPU (docs/gpu.md):

    pip install triton liger-kernel
    TRITON_INTERPRET=1 python -m pytest -n0 tests/trainers/test_triton.py
"""

import os
from importlib import import_module
from importlib.util import find_spec

import pytest

if find_spec("triton") is None or find_spec("liger_kernel") is None:
    pytest.skip("not installed: pip install triton liger-kernel", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import torch

from tests.trainers.runs import losses, trained
from trainers.start.kernels import fuse_layers, fused_in

CPU = torch.device("cpu")
ARCHITECTURES = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Phi3", "Olmo2")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """What the interpreter of Triton 3.9 lacks and compiled code has: numbers of Python arrive as
    float32 tensors (Liger asks them for `.to`), and CUDA's own rsqrt and tanh. It has no arithmetic
    in bfloat16 either, so Liger's layers run in float16.
    """
    import numpy
    import triton.language as tl
    from liger_kernel.ops import geglu, rms_norm
    from triton.runtime import interpreter as module

    original = module._implicit_cvt

    def with_floats(value):
        if isinstance(value, float):
            handle = module.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return original(value)

    monkeypatch.setattr(module, "_implicit_cvt", with_floats)
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))
    monkeypatch.setattr(geglu, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)


@pytest.fixture(autouse=True)
def plain_architectures():
    """Liger replaces classes and functions of an architecture: each test begins with its own."""
    modules = [
        import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
        for name in ARCHITECTURES
    ]
    before = [dict(vars(module)) for module in modules]
    yield
    for module, names in zip(modules, before, strict=True):
        vars(module).update(names)


def small(name):
    """A model of two layers of the architecture."""
    import transformers

    common = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**common)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are no ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def numbers(model):
    """The last hidden states, and the gradients of the embeddings and the norms."""
    ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(0))
    found = model.model(input_ids=ids, use_cache=False).last_hidden_state
    trained = [one for one in model.model.parameters() if one.dim() == 1]
    trained.append(model.get_input_embeddings().weight)
    away = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.dtype)
    gradients = torch.autograd.grad(found, trained, away / 64)
    return [one.detach().float() for one in (found, *gradients)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_liger_gives_the_numbers_of_the_plain_layers(name, dtype, make, capsys):
    """Outputs agree, and gradients of embeddings and norms, in the architectures it covers."""
    model = small(name).to(dtype)
    plain = numbers(model)
    fuse_layers(model, make(kernels="liger"), CPU)
    assert fused_in(model) == "liger", capsys.readouterr().err
    for mine, theirs in zip(numbers(model), plain, strict=True):
        assert (mine - theirs).norm() / theirs.norm() < (1e-5 if dtype == torch.float32 else 0.02)


def test_liger_keeps_less_for_the_backward_pass(make):
    """The gate is computed again and a norm keeps no float32 copy, as `kernels: liger` says."""
    kept = []
    model = small("Llama").to(torch.float16)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for word in ("none", "liger"):
        fuse_layers(model, make(kernels=word), CPU)
        seen = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        embedded = model.get_input_embeddings()(torch.arange(16)[None]).requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(inputs_embeds=embedded, use_cache=False)
        kept.append(sum(size for place, size in seen.items() if place not in weights))
    tokens, layers, width, hidden = 16, 2, 24, 16
    gates, norms = 2 * tokens * layers * width, 2 * tokens * hidden * (2 * layers + 1)
    assert kept[0] - kept[1] >= gates + norms


@pytest.mark.parametrize("update", ["lora", "full"])
def test_a_stage_with_liger_trains_as_one_without(make, tmp_path, update):
    """Through our own loss, checkpointing and LoRA, to the check of the saved result."""
    keys = {
        "update": update, "learning_rate": 1e-3, "max_steps": 2, "micro_batch_size": 1,
        "seq_len": 48, "truncation": "truncate", "gradient_checkpointing": True, "holdout": 0,
        "job_judge": False,
    }  # fmt: skip
    found = {}
    for word in ("none", "liger"):
        job = make(**keys, kernels=word, job_run=tmp_path / word)
        assert trained(job)["resolved"]["kernels"] == word
        found[word] = losses(job)
    assert found["liger"] == pytest.approx(found["none"], rel=1e-4)
