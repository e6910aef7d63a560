"""How fast GPUs reach each other, by the kind of their link."""

import pytest

from advisor.methods.links import link_speeds
from advisor.probe.catalogue import find_gpu


def reach(gpu: str, interconnect: str | None = None):
    return link_speeds(find_gpu(gpu).spec.link, interconnect)


@pytest.mark.parametrize(
    ("gpu", "bytes_per_s"),
    [
        # No peer-to-peer: about 5 GB/s, whatever the slot could do; a workstation card has it.
        ("RTX 4090", 4.7e9),
        ("RTX 5090", 4.7e9),
        ("RTX 3090", 4.7e9),
        ("RTX 6000 Ada", 0.63 * 31.5e9),
        # 300 GB/s in one direction, and 450.
        ("A100-SXM4-80GB", 0.69 * 300e9),
        ("H100 SXM", 0.69 * 450e9),
    ],
)
def test_a_link_is_as_fast_as_its_kind(gpu, bytes_per_s):
    """GeForce cards reach each other through the host's memory; NVLink follows its generation."""
    assert reach(gpu).bytes_per_s == pytest.approx(bytes_per_s)


def test_a_slot_is_as_fast_as_its_generation_and_lanes():
    """A slot of one lane of PCIe 3 is slower than the host's memory; what the driver says counts."""
    assert "no peer-to-peer" in reach("RTX 4090").words
    assert reach("RTX 4090", "PCIe 3 x1").bytes_per_s < 1e9
    l4, half = reach("L4", "PCIe 4 x16"), reach("L4", "PCIe 3 x16")
    assert l4.bytes_per_s == pytest.approx(2 * half.bytes_per_s)
    assert {l4.guess, reach("A100-SXM4-80GB").guess} == {""}
    assert reach("H100 SXM", "PCIe 5 x16").bytes_per_s < 50e9  # NVLink is there, but does not work
    unknown = link_speeds(None)
    assert unknown.bytes_per_s > 0
    assert "assumed" in unknown.guess


def test_a_bridge_counts_only_if_the_driver_reports_it_and_for_two_gpus():
    """Two RTX 3090 with a bridge: 0.69 of 56 GB/s; a third GPU is reached over PCIe."""
    bare = reach("RTX 3090")
    assert "bridge" in bare.guess
    assert bare.pair_bytes_per_s == bare.bytes_per_s
    joined = reach("RTX 3090", "NVLink 3 bridge between two GPUs (4 active links per card)")
    assert joined.pair_bytes_per_s == pytest.approx(0.69 * 112.5e9 / 2)
    assert joined.bytes_per_s == pytest.approx(4.7e9)
    assert not joined.guess
