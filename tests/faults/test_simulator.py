"""The simulator of faults survives every schedule, and finds each defect that was mended."""

from random import Random
from unittest import mock

import pytest

from tests.faults.simulator import DAMAGE, STRIKES, File, SimulatedDisk, simulate
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.results import put_result


def test_every_schedule_is_survived():
    """Nothing done is lost, nothing half-written is read, and the result is undisturbed."""
    counts = simulate(range(80))
    assert counts.violations == []
    assert counts.schedules == 80
    assert all(counts.survived[kind] > 5 for kind in (*STRIKES, DAMAGE))


@pytest.mark.parametrize("seed", range(6))
def test_a_result_is_safe_before_it_is_recorded(seed, tmp_path):
    """Its files keep content and name, whatever a power cut leaves of the rest."""
    disk = SimulatedDisk(tmp_path, Random(seed))
    stage = tmp_path / "run" / "stages" / "sft"
    disk.make_folder(stage / "unfinished" / "deep")
    for name in ("weights", "deep/config"):
        disk.write(stage / "unfinished" / name, name.encode())
    put_result(stage / "unfinished", stage, disk=disk)
    disk.cut_power()
    assert [(stage / name).read_text() for name in ("weights", "deep/config")] == [
        "weights", "deep/config",
    ]  # fmt: skip


SYNC = SimulatedDisk.sync


def sync_no_files(disk, path):
    if not isinstance(disk._find(path), File):
        SYNC(disk, path)


def delete_first(store, step, about, **keys):
    """Complete a checkpoint as it was done: the old ones go before the new one has its name."""
    for name in store.disk.names(store.folder):
        if name.startswith("checkpoint-") and name != f"checkpoint-{step}":
            store.disk.remove(store.folder / name)
    return COMPLETE(store, step, about, **keys)


COMPLETE = CheckpointStore.complete
UNMENDED = {
    "F3, files are not verified": (CheckpointStore, "_verify", lambda *_: None, ""),
    "files are not synced": (SimulatedDisk, "sync", sync_no_files, ""),
    "old checkpoints go first": (CheckpointStore, "complete", delete_first, "was complete"),
    "a checkpoint is marked before its files are on the disk": (
        SimulatedDisk,
        "sync_tree",
        lambda *_: None,
        "",
    ),
}


@pytest.mark.parametrize("defect", UNMENDED)
def test_a_defect_that_was_mended_is_found_again(defect):
    """With the mend taken out, some schedule of a few ends with the broken promise."""
    owner, name, old, said = UNMENDED[defect]
    with mock.patch.object(owner, name, old):
        counts = simulate(range(100), stop_early=True)
    assert counts.violations
    assert said in counts.violations[0]
