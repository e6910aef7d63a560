"""What PyTorch's caching allocator keeps beyond the allocated peak."""

import pytest
from msgspec.structs import replace

from advisor.ground.units import GIB
from tests.estimate.specs import RunSpec, memory_estimate

LLAMA = "meta-llama/Llama-3.1-8B"
EVEN = tuple((128 * step, 50) for step in range(1, 17))  # rows of even lengths up to 2,048 tokens
RAGGED = RunSpec(
    framework="transformers Trainer", counter="reserved", micro_batch_size=4, seq_len=2048,
    loss="full", lengths=EVEN,
)  # fmt: skip


def cached(found, name="cache of other lengths"):
    return sum(term.size_bytes for term in found.peak.terms if term.name == name)


def test_lengths_that_differ_raise_the_reading_and_hardly_the_need():
    """Cached lengths are given back when short; our runs expand segments (trainer_process.py)."""
    ragged, packed, own = (
        memory_estimate(replace(RAGGED, **changed), LLAMA)
        for changed in ({}, {"packing": True}, {"framework": None})
    )
    assert cached(packed) == 0
    assert cached(ragged) > 5 * GIB
    assert ragged.peak_bytes - packed.peak_bytes > 5 * GIB
    assert abs(ragged.need_bytes - packed.need_bytes) < 2 * GIB
    small = memory_estimate(RAGGED, LLAMA, device_bytes=40 * GIB)
    assert small.peak_bytes < 40 * GIB
    assert small.need_bytes == ragged.need_bytes
    assert cached(own) < 0.05 * own.peak_bytes
    assert own.peak_bytes - own.need_bytes < 0.1 * own.peak_bytes


@pytest.mark.parametrize("counter", ["allocated", "active"])
def test_a_counter_of_tensors_shows_no_cache(counter):
    """Allocated and active memory hold no cached blocks."""
    found = memory_estimate(replace(RAGGED, counter=counter), LLAMA)
    names = {one.name for one in found.peak.terms}
    assert not names & {"allocator cache", "cache of other lengths", "fragmentation"}
