"""Float32 products on the CPU by oneDNN (trainers/step/cpu_products.py)."""

import pytest
import torch

from trainers.step import cpu_products

INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n"


@pytest.fixture
def faster(monkeypatch):
    """Products by oneDNN whatever this processor is; by what torch comes with afterwards."""
    before, own = cpu_products._library, None
    monkeypatch.setattr(cpu_products, "leaves_units_idle", lambda: True)

    def switch():
        nonlocal own
        assert cpu_products.use_faster_products(torch.device("cpu"))
        own = cpu_products._library if before is None else None

    yield switch
    if own is not None:
        own._destroy()
        cpu_products._library = None


def products():
    """Results and gradients of layers of several shapes, and of odd products."""
    torch.manual_seed(0)
    found = []
    for bias in (False, True):
        layer = torch.nn.Linear(300, 400, bias=bias)
        rows = torch.randn(3, 90, 300, requires_grad=True)
        (layer(rows) ** 2).mean().backward()
        found += [layer(rows).detach(), rows.grad, *(one.grad for one in layer.parameters())]
    wide, tall = torch.randn(200, 300), torch.randn(400, 300)
    found.append(torch.addmm(torch.randn(400), wide, tall.t(), beta=0.5, alpha=2))
    found.append(torch.addmm(torch.randn(200, 400), wide, tall.t()))
    found.append(torch.randn(300, 600)[:, ::2] @ tall.t())
    found.append(torch.randn(400, 1).expand(400, 300) @ tall.t())
    found.append(torch.randn(0, 300) @ tall.t())
    found.append(wide.double() @ tall.double().t())
    return found


def test_products_by_onednn_are_those_of_mkl(faster):
    """The same to rounding in every shape and layout, and the same to the bit each time."""
    by_mkl = products()
    faster()
    once, again = products(), products()
    for one, two, three in zip(by_mkl, once, again, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
        assert torch.equal(two, three)


def test_large_products_take_the_faster_way(faster):
    """Float32 alone, and no small ones, for which the call itself takes longer."""
    faster()
    large, small = torch.randn(200, 200), torch.randn(8, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        large @ large
        small @ small
        large.double() @ large.double()
    calls = [event.name for event in seen.events()]
    assert calls.count("aten::mm") == 3
    assert calls.count("mkldnn::_linear_pointwise") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (INTEL, False),
        (INTEL.replace("GenuineIntel", "AuthenticAMD"), True),
        (INTEL.replace("GenuineIntel", "AuthenticAMD").replace("avx512f", "fma"), False),
        ("processor: 0\nFeatures: asimd\n", False),
    ],
    ids=["intel", "amd", "without avx512", "arm"],
)
def test_the_processor_says_who_multiplies(text, expected, tmp_path):
    """MKL uses all of Intel's processors, and AVX2 alone of others."""
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_products.leaves_units_idle(tmp_path / "cpuinfo") is expected
    assert not cpu_products.leaves_units_idle(tmp_path / "absent")


def test_a_gpu_keeps_its_products():
    assert not cpu_products.use_faster_products(torch.device("meta"))
