"""Devices that people name and this tool cannot train on."""

from __future__ import annotations

import pytest

from advisor.probe import stated_hardware
from advisor.probe.catalogue import find_gpu, load_catalogue
from advisor.probe.gpu_files import catalogue_gpus, not_supported


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("TPU v5e", "google-tpu"),
        ("Google Cloud TPU v4-8", "google-tpu"),
        ("v5litepod-8", "google-tpu"),
        ("trn1.32xlarge", "aws-trainium"),
        ("AWS Trainium2", "aws-trainium"),
        ("inf2.xlarge", "aws-inferentia"),
        ("Intel Gaudi2 HPU", "intel-gaudi"),
        ("Gaudi 3 128GB", "intel-gaudi"),
        ("Ascend 910B", "huawei-ascend"),
        ("Intel(R) Arc(TM) A770 Graphics", "intel-gpu"),
        ("Arc B580 12GB", "intel-gpu"),
        ("Intel Data Center GPU Max 1550", "intel-gpu"),
        ("Intel AI Boost NPU", "laptop-npu"),
    ],
)
@pytest.mark.parametrize("from_flag", [True, False])
def test_a_device_of_another_kind_is_told_by_its_name(
    name: str, device: str, from_flag: bool
) -> None:
    """A typed name leads to what the device is and to a tool that trains on it, as a flag and in a
    file, with a memory or without one.
    """
    for memory_gib in (None, 24):
        hardware, warnings = stated_hardware(name, 4, memory_gib, from_flag=from_flag)
        assert hardware.kind == "unknown"
        assert hardware.not_supported is not None
        assert hardware.not_supported.id == device
        assert hardware.not_supported.where[0].url.startswith("https://")
        assert f"'{name}' is {hardware.not_supported.what}" in warnings[-1]


@pytest.mark.parametrize("gpu_id", list(load_catalogue()))
def test_no_gpu_of_the_catalogue_is_taken_for_such_a_device(gpu_id: str) -> None:
    """No name of a GPU that trains here matches one of these devices."""
    gpu = catalogue_gpus()[gpu_id]
    for name in (gpu.spec.name, *gpu.names):
        assert not_supported(name) is None, name
        assert find_gpu(name).spec is not None, name


@pytest.mark.parametrize("name", ["A100 80", "RTX 4090", "some card", "V100", "16 GB card", "H100"])
def test_other_names_are_left_alone(name: str) -> None:
    """A GPU, and a name that says nothing, are no such device."""
    assert not_supported(name) is None
