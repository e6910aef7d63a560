"""Which checkpoint a run goes on from: whole and unaltered ones alone, and never other settings."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
from safetensors import SafetensorError

from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.ground.files import Disk
from trainers.keep.checkpoint_store import COMPLETE, CheckpointStore, Dependencies

PARTS = Dependencies(
    parts={"base_model": "b", "rows": "r"}, settings={"learning_rate": 1e-4, "seed": 42}
)
ABOUT = {"steps": 9, "learning_rate": 1e-4, "epoch": 0.5}
FILES = {
    "adapter_model.safetensors": b"weights of step %d",
    "training_state.safetensors": b"moments of step %d",
    "random_state_0.safetensors": b"random numbers of step %d",
    "trainer_state.json": b'{"global_step": %d}',
}


def write(store, step, files=FILES, **about):
    """Write a complete checkpoint of a step."""
    place = store.begin(step)
    for name, content in files.items():
        (place / name).write_bytes(content % step)
    store.complete(step, {**ABOUT, **about})


@pytest.fixture
def store(tmp_path):
    """Two complete checkpoints, of steps 3 and 6."""
    found = CheckpointStore(tmp_path / "checkpoints", PARTS, {"torch": "2.13.0"})
    write(found, 3)
    write(found, 6)
    return found


def look(store):
    """(the step of the checkpoint to use, what was said)."""
    said = []
    found = store.newest(said.append)
    return found and found.step, said


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def edit(path, **values):
    """Change values of complete.json, as a person or a disk may."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "half": lambda path: path.write_bytes(path.read_bytes()[:7]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "bit": flip_bit,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, COMPLETE])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store, name, damage):
    """Whatever happened to whichever file: the warning names it, and nothing is lost."""
    DAMAGE[damage](store.folder / "checkpoint-6" / name)
    step, said = look(store)
    assert step == 3
    assert name in said[0]
    assert said[0].startswith("checkpoint-6 ")
    assert said[0].endswith(", and is not used")
    write(store, 9)
    assert names(store) == ["checkpoint-3", "checkpoint-9"]
    assert look(store) == (9, [])


@pytest.mark.parametrize("values", [{"step": 9}, {"step": "x"}, {"depends_on": {}}, {"files": {}}])
def test_an_edited_record_is_not_believed(store, values):
    """A step edited to the last one would end the run untrained."""
    edit(store.folder / "checkpoint-6" / COMPLETE, **values)
    step, said = look(store)
    assert step == 3
    assert "is not what was written" in said[0]


@pytest.mark.parametrize("depth", [300, 600, 900, 5000])
def test_a_record_nested_too_deeply_is_damaged(store, depth):
    """Also one that the parser still takes, and what walks its values does not."""
    path = store.folder / "checkpoint-6" / COMPLETE
    record = path.read_text("utf-8").rstrip().removesuffix("}")
    path.write_text(record + ', "deep": ' + "[" * depth + "]" * depth + "}", "utf-8")
    step, said = look(store)
    assert step == 3
    assert COMPLETE in said[0]


def test_a_checkpoint_under_another_steps_name_is_not_believed(store):
    """The folder's name and complete.json have to agree."""
    (store.folder / "checkpoint-6").rename(store.folder / "checkpoint-9")
    assert "that of step 6" in look(store)[1][0]
    assert look(store)[0] == 3


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"settings": {"learning_rate": 2e-4, "seed": 42}}, "learning_rate 0.0001 -> 0.0002"),
        ({"settings": {"learning_rate": 1e-4}}, "seed 42 -> null"),
        ({"parts": {"base_model": "b", "rows": "x"}}, "the rows have changed"),
        ({"parts": {"base_model": "x", "rows": "r"}}, "the base model has changed"),
        ({"parts": {"base_model": "b", "rows": "r", "start": "s"}}, "the stage starts from has"),
        ({"divided": True}, "whether each process holds a part of the model has"),
    ],
)
def test_checkpoints_of_something_else_stay_until_a_new_one_is_complete(store, changed, reason):
    """What changed is named, and nothing is deleted before there is something instead."""
    other = replace(store, dependencies=replace(PARTS, **changed))
    step, said = look(other)
    assert step is None
    for line, name in zip(said, ("checkpoint-6", "checkpoint-3"), strict=False):
        assert f"{name} is not used: " in line
        assert reason in line
    assert "starting from the beginning" in said[2]
    assert look(store) == (6, [])
    for at in (5, 6):
        other.begin(at)
        assert look(store)[0] == 6
    write(other, 5)
    assert names(other) == ["checkpoint-5"]
    write(other, 6)
    assert look(other) == (6, [])


def test_any_number_of_processes_goes_on_and_is_told(store):
    """The difference is said."""
    step, said = look(replace(store, dependencies=replace(PARTS, processes=2)))
    assert step == 6
    assert "written by 1 process, this run has 2" in said[0]
    assert "same rows" in said[0]


def test_it_never_says_from_the_beginning_and_goes_on(store):
    """A newer checkpoint of other settings is named, and the older one of these is used."""
    other = replace(store, dependencies=replace(PARTS, parts={"rows": "x"}))
    shutil.copytree(store.folder / "checkpoint-3", store.folder.parent / "three")
    write(other, 9)
    (store.folder.parent / "three").rename(store.folder / "checkpoint-3")
    step, said = look(store)
    assert step == 3
    assert len(said) == 1
    assert "checkpoint-9 is not used" in said[0]


def test_an_upgrade_goes_on_and_says_so(store):
    """Checkpoints of another version of torch are used, with both versions named."""
    step, said = look(replace(store, versions={"torch": "9.9.9", "new": "1"}))
    assert step == 6
    assert "torch 2.13.0 -> 9.9.9" in said[0]


def test_a_moved_folder_changes_nothing(store):
    """The record holds no path."""
    moved = store.folder.rename(store.folder.parent / "moved")
    assert look(replace(store, folder=moved)) == (6, [])


def test_the_last_two_are_kept_and_what_a_killed_run_left_is_removed(store):
    """It is no checkpoint before it is complete, and is gone before the next one is written."""
    write(store, 9)
    (store.begin(12) / "half").write_bytes(b"")
    assert names(store) == ["checkpoint-12", "checkpoint-6", "checkpoint-9"]
    step, said = look(store)
    assert step == 9
    assert said == ["checkpoint-12 has no complete.json: it was not finished, and is not used"]
    store.begin(11)
    assert names(store) == ["checkpoint-11", "checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error 28")]
)
def test_what_did_not_fit_on_the_disk_is_removed(store, error):
    """There is then room to record the failure, and the checkpoints before it stay."""
    (store.begin(9) / "half").write_bytes(b"half")
    with pytest.raises(MachineNotReady, match="free some space"), store.writing(9):
        raise error
    assert names(store) == ["checkpoint-3", "checkpoint-6"]
    store.begin(9)
    full = replace(store, disk=FullDisk())
    with pytest.raises(MachineNotReady, match="no space left"):
        full.complete(9, ABOUT)
    assert names(store) == ["checkpoint-3", "checkpoint-6"]


def test_the_form_of_an_earlier_version_is_not_read(store):
    """A checkpoint of other files is named and stays, until there is one of this version."""
    parts = dict(PARTS.depends_on)
    del parts["form"]
    early = type("Early", (Dependencies,), {"depends_on": parts})(parts={})
    write(replace(store, dependencies=early), 9)
    step, said = look(store)
    assert step is None
    assert "checkpoint-9 is not used: another version of these trainers wrote it" in said[0]


class FullDisk(Disk):
    def write(self, path, content):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_checkpoint_of_the_best_step_stays(store):
    """As long as a run may go on from a checkpoint that goes back to it."""
    write(store, 9, best_step=3)
    assert names(store) == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    write(store, 12, best_step=12)
    assert names(store) == ["checkpoint-12", "checkpoint-3", "checkpoint-9"]
    write(store, 15, best_step=12)
    assert names(store) == ["checkpoint-12", "checkpoint-15"]
    assert store.verified(12).name == "checkpoint-12"
    flip_bit(store.folder / "checkpoint-12" / "adapter_model.safetensors")
    with pytest.raises(TrainingFailed, match="the best step, checkpoint-12, is damaged"):
        store.verified(12)


def test_an_error_of_the_disk_that_passes_destroys_no_checkpoint(store):
    """What cannot be read now may be sound: it is used once it can be read, also where the run has
    come to the same step meanwhile.
    """
    sick = replace(store, disk=SickDisk())
    step, said = look(sick)
    assert step == 3
    assert "checkpoint-6 cannot be read" in said[0]
    assert look(store) == (6, [])
    sick.begin(6)
    assert look(store) == (6, [])


class SickDisk(Disk):
    def digest(self, path):
        if path.parent.name == "checkpoint-6":
            raise OSError(errno.EIO, "Input/output error")
        return super().digest(path)


def test_a_full_disk_says_how_much_a_checkpoint_takes(store):
    """As much as the one before it, or more than there is of the first; and what can be freed."""
    first = replace(store, folder=store.folder.parent / "first")
    (first.begin(9) / "half").write_bytes(b"x" * 2**20)
    for where, text in ((store, "about 0.0 MiB"), (first, "more than 1.0 MiB")):
        full = pytest.raises(MachineNotReady, match=f"{text}, and .* free .*checkpoints/")
        with full, where.writing(9):
            raise OSError(errno.ENOSPC, "No space left on device")
