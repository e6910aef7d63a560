"""A run goes on from a whole, unaltered checkpoint of its settings; and what goes into one."""

import errno
import json
import random
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import numpy
import pytest

torch = pytest.importorskip("torch")

from safetensors import SafetensorError

from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.ground.files import DISK, Disk
from trainers.job.files import keep_value, kept_value
from trainers.keep import checkpoint_store, checkpoints, progress
from trainers.keep.checkpoint_store import COMPLETE, Checkpoint, CheckpointStore, Dependencies
from trainers.stage import trl_trainer

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
    "empty": lambda path: path.write_bytes(b""), "gone": lambda path: path.unlink(),
    "bit": flip_bit, "folder": lambda path: (path.unlink(), path.mkdir()),
}  # fmt: skip


def nest(path, depth):
    record = path.read_text("utf-8").rstrip().removesuffix("}")
    path.write_text(record + ', "deep": ' + "[" * depth + "]" * depth + "}", "utf-8")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *(
            pytest.param(name, change, name, id=f"{name}-{damage}")
            for name in [*FILES, COMPLETE]
            for damage, change in DAMAGE.items()
        ),
        (COMPLETE, partial(edit, step=9), "is not what was written"),  # would end the run untrained
        (COMPLETE, partial(edit, step="x"), "is not what was written"),
        (COMPLETE, partial(edit, depends_on={}), "is not what was written"),
        (COMPLETE, partial(edit, files={}), "is not what was written"),
        # Also one that the parser still takes, and what walks its values does not.
        *((COMPLETE, partial(nest, depth=depth), COMPLETE) for depth in (300, 600, 900, 5000)),
        (COMPLETE, lambda path: path.parent.rename(path.parents[1] / "checkpoint-9"),
         "that of step 6"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store, name, change, words):
    """A warning names the file; an edited record is not believed, nor a folder of another name."""
    change(store.folder / "checkpoint-6" / name)
    step, said = look(store)
    assert step == 3
    assert re.match(rf"checkpoint-[69] .*{words}.*, and is not used$", said[0])
    write(store, 9)
    assert (names(store), look(store)) == (["checkpoint-3", "checkpoint-9"], (9, []))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"settings": {"learning_rate": 2e-4, "seed": 42}}, "learning_rate 0.0001 -> 0.0002"),
        ({"settings": {"learning_rate": 1e-4}}, "seed 42 -> null"),
        ({"settings": {**PARTS.settings, "a": "b" * 58, "c": "d" * 59}},
         f'a null -> "{"b" * 58}"; c null -> "{"d" * 56}...'),
        ({"parts": {"base_model": "b", "rows": "x"}}, "the rows have changed"),
        ({"parts": {"base_model": "x", "rows": "r", "own.py": "o"}},
         "the base model has changed; own.py has changed"),
        ({"parts": {"base_model": "b", "rows": "r", "start": "s"}},
         "the model that the stage starts from has changed"),
        ({"divided": True},
         "whether each process holds a part of the model has changed (launch.strategy)"),
    ],
)  # fmt: skip
def test_checkpoints_of_something_else_stay_until_a_new_one_is_complete(store, changed, reason):
    """What changed is named, and nothing is deleted before there is something instead."""
    other = replace(store, dependencies=replace(PARTS, **changed))
    step, said = look(other)
    assert step is None
    assert said == [
        f"checkpoint-6 is not used: {reason}",
        f"checkpoint-3 is not used: {reason}",
        "no checkpoint can be used: starting from the beginning; what is there stays until a new"
        " one is complete",
    ]
    assert look(store) == (6, [])
    for at in (5, 6):
        other.begin(at)
        assert look(store)[0] == 6
    write(other, 5)
    assert names(other) == ["checkpoint-5"]
    write(other, 6)
    assert look(other) == (6, [])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"dependencies": replace(PARTS, processes=2)},
            "was written by 1 process, this run has 2: each step has the same rows as before;"
            " random numbers (dropout) are others from here on",
        ),
        (
            {"versions": {"torch": "9.9.9", "new": "1"}},
            "was written with other versions of libraries (torch 2.13.0 -> 9.9.9): the run goes on"
            " from it, and may differ slightly from one that was never stopped",
        ),
    ],
)
def test_other_processes_and_an_upgrade_go_on_and_are_told(store, changed, words):
    """Another number of processes or version of torch is said, and the checkpoint used."""
    assert look(replace(store, **changed)) == (6, [f"checkpoint-6 {words}"])


EARLY = type("Early", (Dependencies,), {
    "depends_on": {key: value for key, value in PARTS.depends_on.items() if key != "form"}
})  # fmt: skip


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (replace(PARTS, parts={"rows": "x"}), "the base model has changed; the rows have changed"),
        (
            EARLY(parts={}),
            "another version of these trainers wrote it, in a form that this one does not read",
        ),
    ],
    ids=["other-rows", "early-form"],
)
def test_it_never_says_from_the_beginning_and_goes_on(store, written, why):
    """A newer checkpoint of other settings or of an earlier version is named and passed over."""
    shutil.copytree(store.folder / "checkpoint-3", store.folder.parent / "three")
    write(replace(store, dependencies=written), 9)
    assert look(store)[0] is None
    (store.folder.parent / "three").rename(store.folder / "checkpoint-3")
    assert look(store) == (3, [f"checkpoint-9 is not used: {why}"])


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


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [NO_SPACE, SafetensorError("I/O error 28")])
def test_what_did_not_fit_on_the_disk_is_removed(store, error, monkeypatch):
    """Earlier checkpoints stay; the error says what room one takes and what can be freed."""
    first = replace(store, folder=store.folder.parent / "first")
    for where, half, takes in ((store, 4, "about 0.0 MiB"), (first, 2**20, "more than 1.0 MiB")):
        (where.begin(9) / "half").write_bytes(b"x" * half)
        full = rf"free some space: it takes {takes}, and .* are free \(stages/\*/checkpoints/"
        with pytest.raises(MachineNotReady, match=full), where.writing(9):
            raise error
    assert names(store) == ["checkpoint-3", "checkpoint-6"]
    store.begin(9)
    monkeypatch.setattr(Disk, "write", Mock(side_effect=NO_SPACE))
    with pytest.raises(MachineNotReady, match="no space left"):
        store.complete(9, ABOUT)
    assert names(store) == ["checkpoint-3", "checkpoint-6"]


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
    """What cannot be read now may be sound, and is used once it can be read."""
    sick = replace(store, disk=Mock(wraps=DISK))
    sick.disk.digest.side_effect = chain(
        [OSError(errno.EIO, "Input/output error")], repeat(DEFAULT)
    )
    step, said = look(sick)
    assert step == 3
    assert "checkpoint-6 cannot be read" in said[0]
    assert look(store) == (6, [])
    sick.begin(6)
    assert look(store) == (6, [])


def test_random_numbers_are_others_only_after_another_number_of_processes(tmp_path, monkeypatch):
    """They then follow from seed, step and process; among as many, a missing file is an error."""
    place, drawn = tmp_path / "checkpoint-3", []
    place.mkdir()
    (place / COMPLETE).write_text(json.dumps({"processes": 1}))
    with pytest.raises(MachineNotReady, match="has no random state of process 0"):
        checkpoints.load_random_states(place, seed=1)
    edit(place / COMPLETE, processes=2)
    for rank, step, seed in ((0, 3, 1), (0, 3, 1), (1, 3, 1), (0, 4, 1), (0, 3, 2)):
        monkeypatch.setenv("RANK", str(rank))
        place = place.rename(tmp_path / f"checkpoint-{step}")
        checkpoints.load_random_states(place, seed=seed)
        drawn.append(draw())
    assert (drawn[0], [drawn.count(one) for one in drawn]) == (drawn[1], [2, 2, 1, 1, 1])


def draw():
    """Numbers of every generator that a training, or the user's code in it, may draw from."""
    normal = random.gauss(0, 1), float(numpy.random.standard_normal())  # each keeps a second one
    return *normal, random.random(), float(numpy.random.random()), torch.rand(3).tolist()


def test_every_generator_goes_on_behind_a_checkpoint(tmp_path):
    """Those of Python and numpy too, which the user's reward may draw from."""
    draw()
    checkpoints.write_state(tmp_path / "state", checkpoints.random_states())
    drawn = draw()
    checkpoints.restore_random_states(checkpoints.read_state(tmp_path / "state"))
    assert draw() == drawn


def test_a_state_comes_back_as_it_was(tmp_path):
    """Numbers, texts and tensors of every kind fit in one file; anything else is an error."""
    shared = torch.arange(3)
    value = {
        "kinds": [1, 0.5, float("inf"), None, True, "é", [[], {}]],
        "kept": {"half": torch.ones(2, dtype=torch.bfloat16), "view": torch.arange(6).view(2, 3).T},
        "one": shared, "same": shared, "count": torch.tensor(3.0),
    }  # fmt: skip
    checkpoints.write_state(tmp_path / "state.safetensors", value)
    found = checkpoints.read_state(tmp_path / "state.safetensors")
    torch.testing.assert_close(found["kept"], value["kept"], rtol=0, atol=0)
    assert (found["kinds"], found["count"]) == (value["kinds"], 3.0)
    assert torch.equal(found["one"], shared)
    assert torch.equal(found["same"], shared)
    with pytest.raises(TypeError, match="cannot hold a set"):
        checkpoints.write_state(tmp_path / "state.safetensors", {"set": {1}})


def test_a_checkpoint_is_complete_once_all_have_written(tmp_path, monkeypatch, make):
    """The processes wait for the empty folder, and complete.json waits for the processes."""
    order = Mock()
    for place, name in (
        (progress, "wait_for_all"), (trl_trainer, "wait_for_all"), (CheckpointStore, "begin"),
        (CheckpointStore, "complete"), (trl_trainer, "save_weights"),
        (trl_trainer, "save_training"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, getattr(order, name))
    store, model = CheckpointStore(tmp_path, Dependencies(parts={})), torch.nn.Linear(1, 1)
    trainer = object.__new__(trl_trainer.StageTrainer)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, log_history=[], epoch=1)
    state.save_to_json = order.save_state
    trainer.state, trainer.checkpoint_store, trainer.is_fsdp_enabled = state, store, False
    trainer.model = model
    trainer.optimizer = trainer.lr_scheduler = torch.optim.SGD(model.parameters())
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model)
    trainer._save_checkpoint(model, None)
    callback = progress.RunCallback(make(), steps=2, memory=None, store=store)
    callback.trainer = SimpleNamespace(all_tokens=dict)
    callback.on_save(None, state, None)
    assert [name for name, *_ in order.method_calls] == [
        "begin", "wait_for_all", "save_state", "save_weights", "save_training", "wait_for_all",
        "complete",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [[0.5, -1.25], {"asked": ["é", None], "loss": 3.75}])
def test_an_evaluation_that_was_kept_counts_only_if_it_is_unaltered(tmp_path, value):
    """A number that a disk has changed would become a false verdict."""
    path = tmp_path / "before.json"
    keep_value(path, "mark", value)
    assert (kept_value(path, "mark"), kept_value(path, "other")) == (value, None)
    text = path.read_text()
    for damaged in (text.replace("5", "7"), text[:-9], "[]", '{"fingerprint": "mark"}'):
        path.write_text(damaged)
        assert kept_value(path, "mark") is None


def test_the_main_process_alone_reads_what_the_run_goes_on_from(tmp_path, monkeypatch, make):
    """Its record is not read again, unverified, by each; they wait for it on the host, for long."""
    order = Mock()
    order.newest.return_value = found = Checkpoint(tmp_path / "checkpoint-3", {"step": 3})
    order.from_main.side_effect = lambda look: look()
    for name in ("wait_for_all", "from_main"):
        monkeypatch.setattr(checkpoint_store, name, getattr(order, name))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert checkpoint_store.last_checkpoint(make(), order) is found
    assert [name for name, *_ in order.method_calls] == ["newest", "wait_for_all", "from_main"]
