"""How fast GPUs reach each other, by the kind of their link."""

from __future__ import annotations

import pytest

from advisor.methods.links import link_speeds
from advisor.probe.catalogue import find_gpu


def reach(gpu: str, interconnect: str | None = None):
    spec = find_gpu(gpu).spec
    return link_speeds(spec.link, interconnect)


def test_geforce_cards_reach_each_other_through_host_memory():
    """No peer-to-peer: about 5 GB/s, whatever the slot could do; a workstation card has it."""
    for gpu in ("RTX 4090", "RTX 5090", "RTX 3090"):
        assert reach(gpu).bytes_per_s == pytest.approx(4.7e9)
    assert "no peer-to-peer" in reach("RTX 4090").words
    assert reach("RTX 6000 Ada").bytes_per_s == pytest.approx(0.63 * 31.5e9)
    # A slot of one lane of PCIe 3 is slower still.
    assert reach("RTX 4090", "PCIe 3 x1").bytes_per_s < 1e9


def test_a_bridge_counts_only_if_the_driver_reports_it_and_for_two_gpus():
    """Two RTX 3090 with a bridge: 0.69 of 56 GB/s; a third GPU is reached over PCIe."""
    bare = reach("RTX 3090")
    assert "bridge" in bare.guess
    assert bare.pair_bytes_per_s == bare.bytes_per_s
    joined = reach("RTX 3090", "NVLink 3 bridge between two GPUs (4 active links per card)")
    assert joined.pair_bytes_per_s == pytest.approx(0.69 * 112.5e9 / 2)
    assert joined.bytes_per_s == pytest.approx(4.7e9)
    assert not joined.guess


def test_nvlink_follows_the_generation_and_pcie_what_the_driver_says():
    """A100 300 GB/s in one direction, H100 450; a slot is as fast as its generation and lanes."""
    a100, h100 = reach("A100-SXM4-80GB"), reach("H100 SXM")
    assert (a100.bytes_per_s, h100.bytes_per_s) == (0.69 * 300e9, 0.69 * 450e9)
    assert not a100.guess
    l4, half = reach("L4", "PCIe 4 x16"), reach("L4", "PCIe 3 x16")
    assert l4.bytes_per_s == pytest.approx(2 * half.bytes_per_s)
    assert not l4.guess
    assert reach("H100 SXM", "PCIe 5 x16").bytes_per_s < 50e9  # NVLink is there, but does not work


def test_an_unknown_link_is_said():
    found = link_speeds(None)
    assert found.bytes_per_s > 0
    assert "assumed" in found.guess
