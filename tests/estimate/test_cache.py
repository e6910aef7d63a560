"""PyTorch's caching allocator (tools/caching.py), and what it keeps beyond the allocated peak."""

import math
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.memory import allocator as cache_table
from advisor.estimate.memory.allocator import NONE, UNKNOWN, cache_factors, records
from advisor.ground.units import GIB
from tests.conftest import examples
from tests.estimate.specs import RunSpec, memory_estimate
from tools.cache_table import GRADIENT_RATIOS, LOSS_SHARES, cell, draws, row
from tools.caching import CachingAllocator, OutOfMemory, rounded_bytes, segment_bytes
from tools.step_tensors import peaks

MIB = 2**20
LLAMA = "meta-llama/Llama-3.1-8B"
EVEN = tuple((128 * step, 50) for step in range(1, 17))  # rows of even lengths up to 2,048 tokens


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
        (512, 2), (MIB, 2), (MIB + 512, 20), (10 * MIB - 512, 20), (10 * MIB, 10),
        (10 * MIB + 512, 12), (333 * MIB, 334),
    ],
)  # fmt: skip
def test_segments_have_three_kinds_of_sizes(size, segment):
    """Small ones of 2 MiB, 20 MiB below 10 MiB, above that the size in steps of 2 MiB."""
    assert segment_bytes(size) == segment * MIB


LEAST = 512 / MIB


@pytest.mark.parametrize(
    ("steps", "reserved", "allocated", "device"),
    [
        # Two pools: a free half of a small segment serves no request above 1 MiB.
        ([1, 1, LEAST, -3, 1 + LEAST], [2, 2, 4, 4, 24], 3 + LEAST, {}),
        # should_split: a rest of 1 MiB stays with the tensor, more is a block of its own.
        ([30, -1, 29], [30, 30, 30], 30, {}),
        ([30, -1, 29 - LEAST], [30, 30, 30], 29 - LEAST, {}),
        # Best fit: 12 MiB go into the free 14, so that the free 40 stays whole.
        ([40, 14, 30, -1, -2, 12, 40], [40, 54, 84, 84, 84, 84, 84], 82, {}),
        # A request that fits no kept block frees the unused segments, and is tried again.
        ([30, 60, -2, 64, -1, 40], [30, 90, 90, 94, 94, None], 64, {"limit_bytes": 100 * MIB}),
        # One tensor in a segment keeps it: 40 MiB are free in two segments, 30 of them of no use.
        ([30, -1, 10, 20, 30, -3, -4, 34, -2, 34], [30, 30, 30, 30, 60, 60, 60, None, 30, 34], 34,
         {"limit_bytes": 60 * MIB}),
        # Pages of 20 MiB are mapped behind the free end: what two segments hold, one does.
        ([30, -1, 50], [40, 40, 60], 50, {"limit_bytes": 80 * MIB, "expandable": True}),
        ([30, -1, 50], [30, 30, 80], 50, {"limit_bytes": 80 * MIB}),
    ],
    ids=["pools", "rest-kept", "rest-split", "best-fit", "given-back", "split-segment",
         "expandable", "not-expandable"],
)  # fmt: skip
def test_requests_are_served_as_pytorch_does(steps, reserved, allocated, device):
    """MiB to allocate in turn, or -1 to free the first; None if a request does not fit."""
    caching, blocks, found = CachingAllocator(**device), [], []
    for step in steps:
        try:
            if step < 0:
                caching.free(blocks[-step - 1])
            else:
                blocks.append(caching.allocate(round(step * MIB)))
            found.append(caching.reserved_bytes / MIB)
        except OutOfMemory:
            found.append(None)
    assert found == reserved
    assert caching.allocated_bytes == allocated * MIB
    assert caching.retries == (2 if None in reserved else 0)


sizes = st.one_of(st.integers(0, 3000), st.integers(1, 3 * MIB), st.integers(1, 90 * MIB))
# A size to allocate, or which of the tensors held (modulo their number) to free.
sequences = st.lists(st.one_of(sizes, st.integers(0, 50).map(lambda n: -1 - n)), max_size=60)


@examples(4)
@given(sequence=sequences, limit=st.sampled_from([None, 200 * MIB]), expandable=st.booleans())
def test_any_sequence_keeps_the_books(sequence, limit, expandable):
    """Allocated <= reserved <= the limit; once all is freed and emptied, nothing is reserved."""
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


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("loss_share", [0.0, 0.25, 0.75])
def test_a_simulated_step_peaks_where_the_formula_says(checkpointed, loss_share):
    """Tensor by tensor, the allocated peak is what is kept and the larger of the loss and one
    layer's backward pass; loss and that layer overlap by the logits that the trainer still holds.
    """
    one = cell(checkpointed=checkpointed, loss_share=loss_share, trains_all=False)
    found = peaks(one.training, [3000] * 8)
    passing = found.allocated - found.weights - found.states
    assert 0.97 <= passing / (3000 * one.passing) <= 1.2


SIMULATED = cell(checkpointed=True, loss_share=0.75, trains_all=False)
RANDOM = [round(4096 * share) for share in draws()[0][0]]  # lengths


def test_fixed_shapes_reserve_little_more_than_is_allocated_and_random_ones_much():
    """Reserved is 1.04 to 1.2 of allocated at one length, as in published runs of fixed shapes."""
    fixed, ragged, expanding = (
        peaks(SIMULATED.training, lengths, expandable=on)
        for lengths, on in (([4096] * 12, False), (RANDOM, False), (RANDOM, True))
    )
    assert 1.04 <= fixed.reserved / fixed.allocated <= 1.2
    assert ragged.reserved / ragged.allocated > 1.5
    assert expanding.reserved / expanding.allocated < 1.1


def test_a_run_of_random_lengths_goes_through_on_less_than_it_reserves():
    """Cached segments are given back, so that far less suffices than is reserved without limit."""
    free, passing = peaks(SIMULATED.training, RANDOM), 4096 * SIMULATED.passing
    assert free.reserved > free.allocated + 2 * passing
    bounded = peaks(SIMULATED.training, RANDOM, limit_bytes=round(free.allocated + 0.25 * passing))
    assert bounded.retries > 0
    with pytest.raises(OutOfMemory):
        peaks(SIMULATED.training, RANDOM, limit_bytes=free.allocated)


@pytest.mark.parametrize(
    ("expandable", "checkpointed", "ratio", "share"),
    [(False, True, 0.0, 0.75), (True, False, 1.0, 0.5)],
)
def test_the_table_is_what_the_simulation_says(expandable, checkpointed, ratio, share):
    """Cells of advisor/estimate/memory/allocator.py rebuilt; `python -m tools.cache_table` writes it."""
    rebuilt = row(
        expandable=expandable, checkpointed=checkpointed, gradient_ratio=ratio, loss_share=share
    )
    written = cache_table.ROWS[expandable, checkpointed][GRADIENT_RATIOS.index(ratio)]
    assert rebuilt == pytest.approx(written[LOSS_SHARES.index(share)], abs=0.006)
    assert (cache_table.LOSS_SHARES, cache_table.GRADIENT_RATIOS) == (LOSS_SHARES, GRADIENT_RATIOS)


@examples(3)
@given(
    expandable=st.booleans(), checkpointed=st.booleans(), share=st.floats(0, 1),
    ratio=st.floats(0, 1000),
)  # fmt: skip
def test_factors_stay_within_those_that_were_simulated(expandable, checkpointed, share, ratio):
    """Nothing is extrapolated, and at a point of the grid the factors are those of its row."""
    rows = [one for line in cache_table.ROWS[expandable, checkpointed] for one in line]
    on = {"expandable": expandable, "recomputed": float(checkpointed)}
    found = cache_factors(**on, loss_share=share, gradient_ratio=ratio)
    for value, column in zip(found, zip(*rows, strict=True), strict=True):
        assert min(column) - 1e-9 <= value <= max(column) + 1e-9
    at = cache_factors(**on, loss_share=LOSS_SHARES[2], gradient_ratio=0.0)
    assert at == pytest.approx(rows[2])


@pytest.mark.parametrize(("seq_len", "rows_at_once"), [(2048, 1), (2048, 8), (1500, 1), (700, 4)])
def test_expected_records_are_those_of_drawn_orders(seq_len, rows_at_once):
    """The sum of micro-batches longer than all before, but for the last, over 600 random orders."""
    source, sums = random.Random(7), []
    lows = [128 * step for step in range(16)]
    lows[0] = 64
    for _ in range(600):
        longest = total = 0.0
        for _ in range(800 // rows_at_once):
            picked = source.choices(range(16), k=rows_at_once)
            batch = max(min(seq_len, source.uniform(lows[one], EVEN[one][0])) for one in picked)
            if batch > longest:
                longest, total = batch, total + batch
        sums.append((total - longest) / seq_len)
    found = records(EVEN, seq_len=seq_len, rows_at_once=rows_at_once)
    assert found.mean == pytest.approx(statistics.mean(sums), abs=0.15)
    inside = statistics.mean(found.low - 0.05 <= one <= found.high + 0.05 for one in sums)
    assert inside >= 0.75
    # One length has none, also where all rows are cut to it, or a micro-batch holds most rows.
    assert records(((2048, 100),), seq_len=16, rows_at_once=1).mean == pytest.approx(0, abs=0.05)
    assert records(EVEN, seq_len=2048, rows_at_once=500) is NONE


def test_what_is_assumed_of_unknown_lengths_lies_between_rows_cut_and_left_out():
    """3 % of lognormal rows above the longest: those numbers stand beside UNKNOWN."""
    normal, edges = statistics.NormalDist(), [2048 * step // 40 for step in range(1, 41)]
    cuts, left = [], []
    for deviation in (0.6, 0.9):
        top = deviation * normal.inv_cdf(0.97)
        shares = [normal.cdf((math.log(edge / 2048) + top) / deviation) for edge in edges]
        counts = [round(1000 * (share - below)) for below, share in pairwise([0.0, *shares])]
        left_out = tuple(zip(edges, counts, strict=True))
        left.append(records(left_out, seq_len=2048, rows_at_once=1).mean)
        cuts.append(records((*left_out, (8192, 30)), seq_len=2048, rows_at_once=1).mean)
    assert max(cuts) < UNKNOWN.mean < min(left)
    assert UNKNOWN.mean == pytest.approx(statistics.mean((*cuts, *left)), abs=0.2)


RAGGED = RunSpec(
    framework="transformers Trainer", counter="reserved", micro_batch_size=4, seq_len=2048,
    loss="full", lengths=EVEN,
)  # fmt: skip


def cached(found, name="cache of other lengths"):
    return sum(term.size_bytes for term in found.peak.terms if term.name == name)


def test_lengths_that_differ_raise_the_reading_and_its_band_and_hardly_the_need():
    """Cached lengths are given back when short; our runs expand segments (trainer_process.py)."""
    ragged, packed, own = (
        memory_estimate(replace(RAGGED, **changed), LLAMA)
        for changed in ({}, {"packing": True}, {"framework": None})
    )
    assert cached(packed) == 0
    assert cached(ragged) > 5 * GIB
    assert ragged.peak_bytes - packed.peak_bytes > 5 * GIB
    assert abs(ragged.need_bytes - packed.need_bytes) < 2 * GIB
    assert ragged.high_bytes - ragged.peak_bytes > packed.high_bytes - packed.peak_bytes + GIB
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


def test_gathered_weights_stay_cached_on_their_own_stream():
    """A block serves its own stream: FSDP keeps two layers' gathered weights beside the loss."""
    spec = replace(
        RAGGED, update="full", lengths=(), packing=True, gpus=8, sharding="fsdp",
        micro_batch_size=8,
    )  # fmt: skip
    found = memory_estimate(spec, LLAMA)
    assert found.peak.name == "loss and start of the backward pass"
    layer_bytes = 2 * 218_112_000  # of one layer in bfloat16
    assert cached(found, "cache of other streams") >= 2 * layer_bytes


def test_of_an_unknown_trainer_the_cache_is_halfway_between_both():
    """Whether segments expand is a guess: at one length, the mean of what both keep."""
    plain, expanding, guessed = (
        cache_factors(
            expandable=on, recomputed=1.0, loss_share=0.5, gradient_ratio=0.0, guessed=guess
        )
        for on, guess in ((False, False), (True, False), (False, True))
    )
    assert guessed.kept == pytest.approx((plain.kept + expanding.kept) / 2)
    assert guessed.lost == pytest.approx((plain.lost + expanding.lost) / 2)
    assert guessed.per_record == plain.per_record
