"""What is tried on a model before it is divided runs on the device, on the model's first layers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
import torch

from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.test_packing import rows_of
from trainers.start import few_layers, fused_layers, loading
from trainers.start.few_layers import first_layers
from trainers.start.packing_check import unpacked_if_seen

FLASH = "refuses-the-host"


@pytest.fixture
def divided(make, monkeypatch):
    """`divided(**keys)`: (a job, its model on the host as before a division)."""
    monkeypatch.setattr(few_layers, "reads_once", lambda job: True)

    def build(**keys):
        job = make(weights_dtype="bfloat16", **keys)
        return job, loading.load_base(job, torch.device("cpu"))

    return build


@pytest.fixture
def flash():
    """An attention that takes tensors of the GPU alone, as flash attention does."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module, query, *args, **rest):
        if query.device != GPU:
            raise RuntimeError("FlashAttention only supports CUDA tensors")
        return plain(module, query, *args, **rest)

    ALL_ATTENTION_FUNCTIONS.register(FLASH, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        table._global_mapping.pop(FLASH)


def test_rows_are_packed_where_attention_takes_the_gpu_alone(divided, flash):
    """A plan for several GPUs that packs rows with flash attention is tried, and stays packed."""
    with pretend_gpu():
        job, model = divided(packing=True, attention=FLASH)
        data = SimpleNamespace(train=rows_of([9, 12]))
        assert unpacked_if_seen(job, data, model, GPU) == (job, data)
        assert next(model.parameters()).device.type == "cpu"


def test_fused_kernels_are_tried_on_the_gpu(divided, monkeypatch):
    """The first layers are tried there, and the kernels are put into the whole model."""
    seen, put = [], []
    monkeypatch.setattr(fused_layers, "_why_unfit", lambda *_: "")
    monkeypatch.setattr(fused_layers, "PUT_IN", {"liger": put.append})
    monkeypatch.setattr(
        fused_layers, "_tried", lambda name, model: seen.append(next(model.parameters()).device)
    )
    with pretend_gpu():
        job, model = divided()
        job = replace(job, entry=replace(job.entry, stage=replace(job.stage, kernels="liger")))
        fused_layers.fuse_layers(model, job, GPU)
    assert seen == [GPU]
    assert put == [model]


def test_the_first_layers_hold_each_kind():
    """Two layers, or as many as hold one of each kind; lists by layer are cut as well."""
    from transformers import Gemma3TextConfig, LlamaConfig

    assert first_layers(LlamaConfig(num_hidden_layers=30)).num_hidden_layers == 2
    assert first_layers(LlamaConfig(num_hidden_layers=1)).num_hidden_layers == 1
    mixed = first_layers(Gemma3TextConfig(num_hidden_layers=26))
    assert mixed.num_hidden_layers == len(mixed.layer_types) == 6
    assert set(mixed.layer_types) == {"sliding_attention", "full_attention"}
