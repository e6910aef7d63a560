"""CUDA_VISIBLE_DEVICES, entry by entry."""

from __future__ import annotations

import pytest

from advisor.ground.types import Gpu
from advisor.probe.nvidia import GpuBoard, usable

A = Gpu(name="NVIDIA A10", memory_total_bytes=1, uuid="GPU-aaaa1111-0000", index=0)
B = Gpu(name="NVIDIA A10", memory_total_bytes=1, uuid="GPU-aaaa2222-0000", index=1)
C = Gpu(name="NVIDIA A10", memory_total_bytes=1, uuid="GPU-cccc3333-0000", index=2)
THREE = [GpuBoard(gpu=gpu) for gpu in (A, B, C)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),  # in the order of the list
        (" 1 , 2 ", [1, 2]),
        ("1gpu2,2ampere", [1, 2]),  # digits count, what follows does not
        ("0,7,1", [0]),  # the list ends at what does not exist
        ("0,-1,1", [0]),
        ("0,x,1", [0]),
        ("0,,1", [0]),
        ("x", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,0", []),  # a repetition empties the list
        ("0,1,0", []),
        ("GPU-cccc", [2]),  # an abbreviated UUID
        ("GPU-aaaa2222-0000,GPU-aaaa1", [1, 0]),
        ("GPU-aaaa", []),  # fits two
        ("GPU-cccc,GPU-dddd,GPU-aaaa1", [2]),
        ("MIG-1", []),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(value: str, expected: list[int]) -> None:
    """Indexes, UUIDs and their abbreviations, invalid entries and repetitions choose what CUDA
    would choose.
    """
    assert [gpu.index for gpu in usable(THREE, {"CUDA_VISIBLE_DEVICES": value})[0]] == expected


def test_without_the_variable_every_card_counts() -> None:
    """No variable, nothing hidden, no note."""
    assert usable(THREE, {}) == ((A, B, C), ())


def test_an_invalid_entry_is_named() -> None:
    """The note quotes the entry that ended the list and the cards it hides."""
    notes = usable(THREE, {"CUDA_VISIBLE_DEVICES": "0,9"})[1]
    assert any("'9' names no device" in note for note in notes)
    assert any("hidden" in note and "GPU 1" in note and "GPU 2" in note for note in notes)


def test_equal_cards_need_no_order() -> None:
    """Among equal cards an index is not ambiguous."""
    assert not any(
        "CUDA_DEVICE_ORDER" in note for note in usable(THREE, {"CUDA_VISIBLE_DEVICES": "1"})[1]
    )


def test_an_index_of_a_cut_card_is_its_first_slice() -> None:
    """The index of a card in MIG mode means its first slice; without a slice there is nothing to
    use.
    """
    piece = Gpu(
        name="A MIG 1g.5gb", memory_total_bytes=1, uuid="MIG-1", index=0, mig_profile="1g.5gb"
    )
    assert usable(
        [GpuBoard(gpu=A, mig_enabled=True, slices=(piece,))], {"CUDA_VISIBLE_DEVICES": "0"}
    )[0] == (piece,)
    gpus, notes = usable([GpuBoard(gpu=A, mig_enabled=True)], {"CUDA_VISIBLE_DEVICES": "0"})
    assert gpus == ()
    assert any("holds no slice" in note for note in notes)
