"""What goes into a checkpoint: the states of all processes, and nothing before they are there."""

import json

import pytest

from advisor.ground.errors import MachineNotReady
from trainers.job.files import keep_value, kept_value
from trainers.keep import checkpoints
from trainers.keep.checkpoint_store import CheckpointStore, Dependencies


def test_a_missing_random_state_is_never_replaced(tmp_path):
    """Loading a checkpoint without the random state of this process is an error, not other random
    numbers.
    """
    for rank in (0, 1):
        checkpoints.save_state(tmp_path, f"random_state_{rank}", {"rank": rank})
    assert checkpoints.load_random_state(tmp_path, 1) == {"rank": 1}
    assert {path.name for path in tmp_path.iterdir()} == set(checkpoints.random_state_files(2))
    trainer = checkpoints.SafeCheckpoints()
    trainer.args = type("Arguments", (), {"process_index": 2, "seed": 1})()
    with pytest.raises(MachineNotReady, match="has no random state of process 2"):
        trainer._load_rng_state(str(tmp_path))


@pytest.mark.parametrize("written_by", [1, 2])
def test_random_numbers_are_others_only_after_another_number_of_processes(written_by, tmp_path):
    """Without the file of this process a checkpoint of as many processes is an error; one of
    another number is gone on from with numbers that follow from seed, step and process.
    """
    import torch

    place = tmp_path / "checkpoint-3"
    place.mkdir()
    (place / "complete.json").write_text(json.dumps({"processes": written_by}))
    if written_by == 1:
        with pytest.raises(MachineNotReady, match="has no random state of process 0"):
            checkpoints.load_random_states(place, 0, seed=1)
        return
    drawn = []
    for _ in range(2):
        checkpoints.load_random_states(place, 0, seed=1)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_a_checkpoint_is_complete_once_all_have_written(tmp_path, monkeypatch):
    """The processes wait for the empty folder, and complete.json waits for the processes."""
    from trainers.keep import progress

    order = []
    for module in (progress, checkpoints):
        monkeypatch.setattr(module, "wait_for_all", lambda: order.append("waited"))
    store = CheckpointStore(tmp_path, Dependencies(parts={}))
    monkeypatch.setattr(CheckpointStore, "begin", lambda *_: order.append("began"))
    monkeypatch.setattr(CheckpointStore, "complete", lambda *_, **__: order.append("completed"))

    class Saver:
        def _save_checkpoint(self, model, trial):
            order.append("written")

    trainer = type("Trainer", (checkpoints.SafeCheckpoints, Saver), {})()
    state = type(
        "State",
        (),
        {"is_world_process_zero": True, "global_step": 1, "log_history": [], "epoch": 1},
    )
    trainer.state, trainer.checkpoint_store = state, store
    trainer._save_checkpoint(None, None)
    watch = progress.RunCallback(
        metrics=None, stage="sft", task=None, label="sft", steps=2, memory=None, store=store
    )
    watch.on_save(None, state, None)
    assert order == ["began", "waited", "written", "waited", "completed"]


@pytest.mark.parametrize("value", [[0.5, -1.25], {"asked": ["é", None], "loss": 3.75}])
def test_an_evaluation_that_was_kept_counts_only_if_it_is_unaltered(tmp_path, value):
    """A number that a disk has changed would become a false verdict; the base is then evaluated
    again.
    """
    path = tmp_path / "before.json"
    keep_value(path, "mark", value)
    assert kept_value(path, "mark") == value
    assert kept_value(path, "other") is None
    text = path.read_text()
    for damaged in (text.replace("5", "7"), text[:-9], "[]", '{"fingerprint": "mark"}'):
        path.write_text(damaged)
        assert kept_value(path, "mark") is None
