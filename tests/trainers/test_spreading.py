"""Where the modules of a judged model go if several GPUs are visible. The placement is computed by
transformers for GPUs that are not there; nothing is computed on them here.
"""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from trainers.job.job import JUDGE, TRAIN
from trainers.start.loading import WEIGHTS_SHARE, is_spread, spread

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    """`two_gpus(free)`: two GPUs, each with that much free memory."""

    def have(free_bytes):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free_bytes, 2**40))

    return have


def model_on_no_device():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads))


def placed(model, arguments):
    """Module -> GPU, as from_pretrained places them."""
    from transformers.integrations.accelerate import _get_device_map

    return _get_device_map(model, arguments["device_map"], arguments["max_memory"], None)


def test_a_model_that_fits_on_one_gpu_stays_there(two_gpus):
    """The second GPU is left alone."""
    model = model_on_no_device()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    two_gpus(int(1.5 * size / WEIGHTS_SHARE))
    found = placed(model, spread(SimpleNamespace(part=JUDGE), GPU))
    assert set(found.values()) == {0}


def test_a_larger_one_goes_over_both_block_by_block(two_gpus):
    """The first layers are on the first GPU, with the embeddings; no block is divided, and nothing
    goes to the host or the disk.
    """
    model = model_on_no_device()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    two_gpus(int(0.7 * size / WEIGHTS_SHARE))
    found = placed(model, spread(SimpleNamespace(part=JUDGE), GPU))
    assert set(found.values()) == {0, 1}
    assert found["model.embed_tokens"] == 0
    layers = [found[f"model.layers.{number}"] for number in range(8)]
    assert layers == sorted(layers)
    assert is_spread(SimpleNamespace(hf_device_map=found))
    assert not is_spread(SimpleNamespace(hf_device_map={"": 0}))


def test_only_judging_on_several_gpus_spreads_a_model(two_gpus, monkeypatch):
    """Training, a CPU and a single GPU have their model where they always had it."""
    two_gpus(2**30)
    assert spread(SimpleNamespace(part=JUDGE), GPU)
    assert not spread(SimpleNamespace(part=TRAIN), GPU)
    assert not spread(SimpleNamespace(part=None), GPU)
    assert not spread(SimpleNamespace(part=JUDGE), CPU)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not spread(SimpleNamespace(part=JUDGE), GPU)
