"""The simulator of faults survives every schedule, and finds each defect that was mended."""

from dataclasses import replace
from random import Random
from unittest import mock

import pytest

from advisor.launch import earlier, prepare, run
from advisor.plan.entries import path_from, with_paths
from advisor.record import content
from tests.faults.simulator import world
from tests.faults.simulator.simulate import DAMAGES, FINISHED, STRIKES, simulate
from tests.faults.simulator.world import File, SimulatedDisk
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.results import put_result


def test_every_schedule_is_survived():
    """Nothing done is lost, nothing half-written is read, and the result is undisturbed."""
    counts = simulate(range(80))
    assert counts.violations == []
    assert counts.schedules == 80
    assert all(counts.survived[kind] > 5 for kind in (*STRIKES, *DAMAGES, FINISHED))


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


def with_path(*args, **keys):
    """Dependencies as they were: by the model's path."""
    found = DEPENDENCIES(*args, **keys)
    return replace(found, parts={**found.parts, "base_model": str(args[0].base_model)})


DEPENDENCIES = world.dependencies
SYNC = SimulatedDisk.sync


def sync_no_files(disk, path):
    if not isinstance(disk._find(path), File):
        SYNC(disk, path)


def by_size(paths, *_):
    """What files hold as it was known: their sizes."""
    return {
        name: content.FileContent(bytes=path.stat().st_size, sha256="0" * 64)
        for name, path in paths.items()
    }


def absolute(plan, start, _):
    """The plan as it was written into the run folder: with absolute paths."""
    return with_paths(plan, lambda text: str(path_from(start, text)))


def delete_first(store, step, about, **keys):
    """Complete a checkpoint as it was done: the old ones go before the new one has its name."""
    for name in store.disk.names(store.folder):
        if name.startswith("checkpoint-") and name != f"checkpoint-{step}":
            store.disk.remove(store.folder / name)
    return COMPLETE(store, step, about, **keys)


COMPLETE = CheckpointStore.complete
UNMENDED = {
    "F2, checkpoints depend on a path": (world, "dependencies", with_path, "was complete"),
    "F2, the plan in the folder names absolute paths": (
        prepare,
        "relocate",
        absolute,
        "does not say what the data held",
    ),
    "F3, files are not verified": (CheckpointStore, "_verify", lambda *_: None, ""),
    "F4, files count by name and size": (earlier, "read_contents", by_size, "other weights"),
    "F6, results are not checked": (run, "check_results", lambda *_: [], "was called finished"),
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
