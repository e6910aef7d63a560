"""Packing is tried on the device, of a model before it is divided on its first layers; where it
cannot be had, rows of similar length share a micro-batch.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
import torch

from advisor.ground.errors import InputError
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.test_packing import rows_of
from trainers.start import attention, loading
from trainers.start.attention import first_layers, unpacked_if_seen

FLASH = "refuses-the-host"


@pytest.fixture
def divided(make, monkeypatch):
    """`divided(**keys)`: (a job, its model on the host as before a division)."""
    monkeypatch.setattr(attention, "reads_once", lambda job: True)

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


def test_the_first_layers_hold_each_kind():
    """Two layers, or as many as hold one of each kind; lists by layer are cut as well."""
    from transformers import Gemma3TextConfig, LlamaConfig

    assert first_layers(LlamaConfig(num_hidden_layers=30)).num_hidden_layers == 2
    assert first_layers(LlamaConfig(num_hidden_layers=1)).num_hidden_layers == 1
    mixed = first_layers(Gemma3TextConfig(num_hidden_layers=26))
    assert mixed.num_hidden_layers == len(mixed.layer_types) == 6
    assert set(mixed.layer_types) == {"sliding_attention", "full_attention"}


@dataclass(frozen=True)
class Data:
    """Rows of a stage."""

    train: list
    notes: tuple = ()


def test_rows_that_are_not_packed_keep_to_what_memory_had_room_for(make, monkeypatch):
    """After a restart with a quarter of the sequences a quarter of the rows go through the model
    together, and an optimizer step learns as many as before.
    """

    def refuse(*_, **__):
        raise InputError("stage sft: packing cannot be used: rows see each other")

    monkeypatch.setattr(attention, "check_packing", refuse)
    job = make(packing=True, group_by_length=True, seq_len=32, micro_batch_size=4, grad_accum=2)
    data = Data(rows_of([8] * 64))
    sizes = []
    for room in (None, 1):
        found, _ = unpacked_if_seen(replace(job, most_rows=room), data, None, None)
        sizes.append((found.stage.micro_batch_size, found.stage.grad_accum))
        assert not found.stage.packing
    assert sizes == [(16, 2), (4, 8)]
