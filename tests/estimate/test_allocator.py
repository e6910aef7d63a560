"""PyTorch's caching allocator: rules by hand, and properties of any sequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tools.caching import CachingAllocator, OutOfMemory, rounded_bytes, segment_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "rounded"),
    [(0, 512), (1, 512), (512, 512), (513, 1024), (5 * MIB + 1, 5 * MIB + 512)],
)
def test_sizes_are_rounded_to_512_bytes(asked, rounded):
    """Every size is a multiple of kMinBlockSize, an empty one too."""
    assert rounded_bytes(asked) == rounded


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (333 * MIB, 334 * MIB),
    ],
)
def test_segments_have_three_kinds_of_sizes(size, segment):
    """Small ones of 2 MiB, 20 MiB below 10 MiB, above that the size in steps of 2 MiB."""
    assert segment_bytes(size) == segment


def test_small_requests_share_a_segment_and_large_ones_do_not_use_it():
    """Two pools: a free half of a small segment serves no request above 1 MiB."""
    device = CachingAllocator()
    device.allocate(MIB)
    assert device.reserved_bytes == 2 * MIB
    device.allocate(MIB)
    assert device.reserved_bytes == 2 * MIB
    device.free(device.allocate(1000))
    assert device.reserved_bytes == 4 * MIB
    device.allocate(MIB + 1)
    assert device.reserved_bytes == 24 * MIB


def test_a_large_block_is_split_only_above_one_mebibyte_of_rest():
    """should_split: the rest of 1 MiB stays with the tensor, more is a block of its own."""
    device = CachingAllocator()
    device.free(device.allocate(30 * MIB))
    whole = device.allocate(29 * MIB)
    assert (whole.size, device.allocated_bytes) == (30 * MIB, 30 * MIB)
    device.free(whole)
    part = device.allocate(29 * MIB - 512)
    assert (part.size, device.reserved_bytes) == (29 * MIB - 512, 30 * MIB)


def test_the_smallest_block_that_holds_it_is_taken():
    """Best fit: 12 MiB go into the free 14, not into the free 40."""
    device = CachingAllocator()
    blocks = [device.allocate(size * MIB) for size in (40, 14, 30)]
    for block in blocks[:2]:
        device.free(block)
    assert device.allocate(12 * MIB).address == blocks[1].address


def test_cached_segments_are_given_back_when_memory_is_short():
    """A request that does not fit any kept block frees the unused segments, and is tried again."""
    device = CachingAllocator(100 * MIB)
    held = device.allocate(30 * MIB)
    device.free(device.allocate(60 * MIB))
    assert device.reserved_bytes == 90 * MIB
    device.allocate(64 * MIB)
    assert (device.reserved_bytes, device.retries) == (94 * MIB, 1)
    device.free(held)
    with pytest.raises(OutOfMemory):
        device.allocate(40 * MIB)


def test_a_split_segment_cannot_be_given_back():
    """One tensor in a segment keeps it: 40 MiB are free in two segments, 30 of them of no use."""
    device = CachingAllocator(60 * MIB)
    device.free(device.allocate(30 * MIB))
    first = device.allocate(10 * MIB)  # in the segment of 30
    second = device.allocate(20 * MIB)
    third = device.allocate(30 * MIB)
    device.free(second)
    device.free(third)
    assert device.allocated_bytes == 10 * MIB
    with pytest.raises(OutOfMemory):
        device.allocate(34 * MIB)
    device.free(first)
    device.allocate(34 * MIB)


def test_an_expandable_segment_grows_by_pages_and_wastes_no_hole():
    """Pages of 20 MiB are mapped behind the free end: what two segments could not hold, one does."""
    device = CachingAllocator(80 * MIB, expandable=True)
    first = device.allocate(30 * MIB)
    assert device.reserved_bytes == 40 * MIB
    device.free(first)
    device.allocate(50 * MIB)
    assert device.reserved_bytes == 60 * MIB
    plain = CachingAllocator(80 * MIB)
    plain.free(plain.allocate(30 * MIB))
    plain.allocate(50 * MIB)
    assert plain.reserved_bytes == 80 * MIB


sizes = st.one_of(st.integers(0, 3000), st.integers(1, 3 * MIB), st.integers(1, 90 * MIB))
# A size to allocate, or which of the tensors held (modulo their number) to free.
sequences = st.lists(st.one_of(sizes, st.integers(0, 50).map(lambda n: -1 - n)), max_size=60)


@examples(4)
@given(sequence=sequences, limit=st.sampled_from([None, 200 * MIB]), expandable=st.booleans())
def test_any_sequence_keeps_the_books(sequence, limit, expandable):
    """Allocated is at most reserved, reserved at most the limit; freeing all leaves nothing
    allocated, blocks as large as their segments, and nothing reserved once the cache is emptied.
    """
    device, held = CachingAllocator(limit, expandable=expandable), []
    for step in sequence:
        if step >= 0:
            try:
                held.append(device.allocate(step))
            except OutOfMemory:
                assert limit is not None
        elif held:
            device.free(held.pop((-1 - step) % len(held)))
        assert device.allocated_bytes == sum(block.size for block in held) <= device.reserved_bytes
        assert len({(block.pool.is_small, block.address) for block in held}) == len(held)
        assert limit is None or device.peak_reserved_bytes <= limit
        assert device.peak_allocated_bytes <= device.peak_reserved_bytes
    for block in held:
        device.free(block)
    assert device.allocated_bytes == 0
    if held:
        with pytest.raises(ValueError, match="free already"):
            device.free(held[0])
    free = [block for pool in (device.small, device.large) for block in pool.at.values()]
    assert sum(block.size for block in free) == device.reserved_bytes
    if not expandable:
        assert all(block.previous is None and block.next is None for block in free)
    device.empty_cache()
    assert device.reserved_bytes == 0


@examples(4)
@given(sequence=sequences)
def test_the_same_sequence_again_reserves_nothing_more(sequence):
    """Once everything is freed, equal requests find the blocks of before: fixed shapes settle."""
    device = CachingAllocator()
    peaks = []
    for _ in range(3):
        held = [device.allocate(size) for size in sequence if size >= 0]
        peaks.append(device.reserved_bytes)
        for block in held:
            device.free(block)
    assert peaks[1] == peaks[2]
