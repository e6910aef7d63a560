"""What goes into a checkpoint: the states of all processes, and nothing before they are there."""

import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from advisor.ground.errors import MachineNotReady
from trainers.job.files import keep_value, kept_value
from trainers.keep import checkpoints
from trainers.keep.checkpoint_store import Checkpoint, CheckpointStore, Dependencies


@pytest.mark.parametrize("written_by", [1, 2])
def test_random_numbers_are_others_only_after_another_number_of_processes(written_by, tmp_path):
    """Without the file of this process a checkpoint of as many processes is an error; one of
    another number is gone on from with numbers that follow from seed, step and process.
    """
    place = tmp_path / "checkpoint-3"
    place.mkdir()
    (place / "complete.json").write_text(json.dumps({"processes": written_by}))
    if written_by == 1:
        with pytest.raises(MachineNotReady, match="has no random state of process 0"):
            checkpoints.load_random_states(place, seed=1)
        return
    drawn = []
    for _ in range(2):
        checkpoints.load_random_states(place, seed=1)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_a_state_comes_back_as_it_was(tmp_path):
    """Numbers, texts and tensors of every kind, in one file that says so in its header; and what is
    neither is an error.
    """
    shared = torch.arange(3)
    value = {
        "kinds": [1, 0.5, float("inf"), None, True, "é", [[], {}]],
        "kept": {"half": torch.ones(2, dtype=torch.bfloat16), "view": torch.arange(6).view(2, 3).T},
        "one": shared, "same": shared, "count": torch.tensor(3.0),
    }  # fmt: skip
    checkpoints.write_state(tmp_path / "state.safetensors", value)
    found = checkpoints.read_state(tmp_path / "state.safetensors")
    torch.testing.assert_close(found["kept"], value["kept"], rtol=0, atol=0)
    assert found["kinds"] == value["kinds"]
    assert torch.equal(found["one"], shared)
    assert torch.equal(found["same"], shared)
    assert found["count"] == 3.0
    with pytest.raises(TypeError, match="cannot hold a set"):
        checkpoints.write_state(tmp_path / "state.safetensors", {"set": {1}})


def test_a_checkpoint_is_complete_once_all_have_written(tmp_path, monkeypatch, make):
    """The processes wait for the empty folder, and complete.json waits for the processes."""
    from trainers.keep import progress
    from trainers.stage import trl_trainer

    order = []
    for module in (progress, trl_trainer):
        monkeypatch.setattr(module, "wait_for_all", lambda: order.append("waited"))
    store = CheckpointStore(tmp_path, Dependencies(parts={}))
    monkeypatch.setattr(CheckpointStore, "begin", lambda *_: order.append("began"))
    monkeypatch.setattr(CheckpointStore, "complete", lambda *_, **__: order.append("completed"))
    monkeypatch.setattr(trl_trainer, "save_weights", lambda *_: order.append("weights"))
    monkeypatch.setattr(trl_trainer, "save_training", lambda *_, **__: order.append("written"))
    trainer = object.__new__(trl_trainer.StageTrainer)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, log_history=[], epoch=1)
    state.save_to_json = lambda path: order.append("state")
    trainer.state, trainer.checkpoint_store, trainer.is_fsdp_enabled = state, store, False
    trainer.model = torch.nn.Linear(1, 1)
    trainer.optimizer = trainer.lr_scheduler = torch.optim.SGD(trainer.model.parameters())
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model)
    trainer._save_checkpoint(trainer.model, None)
    watch = progress.RunCallback(make(), steps=2, memory=None, store=store)
    watch.on_save(None, state, None)
    assert order == ["began", "waited", "state", "weights", "written", "waited", "completed"]


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


def test_the_main_process_alone_reads_what_the_run_goes_on_from(tmp_path, monkeypatch, make):
    """Its record is not read again, unverified, by each; they wait for it on the host, for long."""
    from trainers.keep import checkpoint_store as resuming

    order = []
    found = Checkpoint(tmp_path / "checkpoint-3", {"step": 3})
    store = SimpleNamespace(newest=lambda say: order.append("looked") or found)
    monkeypatch.setattr(resuming, "wait_for_all", lambda: order.append("waited"))
    monkeypatch.setattr(resuming, "from_main", lambda look: order.append("told") or look())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resuming.last_checkpoint(make(), store) is found
    assert order == ["looked", "waited", "told"]
