"""Float32 weights that train under bfloat16 autocast."""

import json

import pytest

pytest.importorskip("torch")
import torch

from tests.trainers.alignment import trained
from trainers.step.trained_dtype import dither

TIE = 0x8000  # bits of a float32 exactly between two bfloat16 numbers


def linear(kind):
    """A layer whose weights lie on bfloat16 numbers, exactly between two, or as float16 has them."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 512)
    with torch.no_grad():
        on = (0.05 * torch.randn(512, 256)).to(torch.bfloat16).float()
        values = {
            "bfloat16": on,
            "between": (on.view(torch.int32) + TIE).view(torch.float32),
            "float16": (0.05 * torch.randn(512, 256)).half().float(),
        }
        layer.weight.copy_(values[kind])
    return layer


@pytest.mark.parametrize("kind", ["bfloat16", "between", "float16"])
def test_a_small_update_has_its_own_size_in_products(kind):
    """Products start as they were, and an update of a hundredth of a step moves the 16-bit weights
    by as much on average; without this by nothing, or by a step.
    """
    layer = linear(kind).requires_grad_(False)
    before, bias = layer.weight.to(torch.bfloat16), layer.bias.clone()
    dither(layer, 3)
    assert layer.weight.to(torch.bfloat16).equal(before)
    assert layer.bias.equal(bias)
    size = 0.01 * 2**-7 * layer.weight.abs().mean()
    moved = (layer.weight + size).to(torch.bfloat16).float() - before.float()
    assert float(moved.mean()) == pytest.approx(float(size), rel=0.2)


def test_the_same_seed_gives_the_same_weights():
    """Processes that load the model each by themselves hold the same."""
    one, other = linear("bfloat16"), linear("bfloat16")
    dither(one, 3)
    dither(other, 3)
    assert one.weight.equal(other.weight)


@pytest.mark.slow
def test_the_first_updates_count_in_both_precisions(align, smollm, tmp_path):
    """Full DPO of the real model at a small learning rate: after two updates the margin in mixed
    precision is that of float32 within a factor of two.
    """
    margins = {}
    for precision in ("pure", "mixed"):
        job = align(
            "dpo", update="full", learning_rate=1e-6, warmup=0.0, max_steps=3, micro_batch_size=2,
            weights_dtype="float32", precision=precision, job_model=smollm, job_judge=False,
            job_run=tmp_path / precision,
        )  # fmt: skip
        trained(job)
        lines = (job.run / "metrics.jsonl").read_text().splitlines()
        margins[precision] = json.loads(lines[2])["reward_margins"]
    assert margins["pure"] / 2 < margins["mixed"] < 2 * margins["pure"]
