"""Which checkpoint a run resumes from: whole ones alone, and never with other random numbers."""

import json

import pytest

from advisor.ground.errors import MachineNotReady
from trainers.frame import checkpoints
from trainers.frame.checkpoints import COMPLETE, last_complete, mark_complete, why_not_used

MARK = {"steps": 9, "learning_rate": 1e-4, "epoch": 0.5, "fingerprint": "same"}


@pytest.fixture
def folder(tmp_path):
    """Two complete checkpoints of two processes each."""
    for step in (2, 4):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        for rank in (0, 1):
            checkpoints.save_state(place, f"random_state_{rank}", {"rank": rank})
        mark_complete(place, step=step, **MARK)
    return tmp_path


def test_a_checkpoint_that_lost_a_file_is_not_used(folder):
    """A random state that is missing, or shorter than it was, makes the one before it the last."""
    assert last_complete(folder, fingerprint="same", remove=False)[0].name == "checkpoint-4"
    (folder / "checkpoint-4" / "random_state_1.safetensors").write_bytes(b"")
    assert last_complete(folder, fingerprint="same", remove=False)[0].name == "checkpoint-2"
    assert why_not_used(folder, fingerprint="same") == [
        "checkpoint-4 has lost random_state_1.safetensors and is not used"
    ]
    (folder / "checkpoint-2" / "random_state_0.json").unlink()
    assert last_complete(folder, fingerprint="same", remove=True) is None
    assert not list(folder.iterdir())


def test_a_missing_random_state_is_never_replaced(folder):
    """A checkpoint of an earlier version lists no files: loading it without the random state of
    this process is an error, not other random numbers.
    """
    record = folder / "checkpoint-4" / COMPLETE
    old = {key: value for key, value in json.loads(record.read_text()).items() if key != "files"}
    record.write_text(json.dumps(old))
    assert checkpoints.load_random_state(folder / "checkpoint-4", 1) == {"rank": 1}
    trainer = checkpoints.SafeCheckpoints()
    trainer.args = type("Arguments", (), {"process_index": 2})()
    with pytest.raises(MachineNotReady, match="has no random state of process 2"):
        trainer._load_rng_state(str(folder / "checkpoint-4"))


def test_another_number_of_processes_starts_anew_and_says_so(folder, monkeypatch):
    """Rows and random numbers are shared out differently, so the reason is told."""
    assert "belong to other settings or data" in why_not_used(folder, fingerprint="other")[0]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "written by 1 process, this run has 4" in why_not_used(folder, fingerprint="other")[0]


def test_a_checkpoint_is_marked_once_all_have_written(tmp_path, monkeypatch):
    """The mark comes after the wait for the other processes."""
    from trainers.frame import progress

    order = []
    monkeypatch.setattr(progress, "wait_for_all", lambda: order.append("all have written"))
    monkeypatch.setattr(progress, "mark_complete", lambda *_, **__: order.append("marked"))
    watch = progress.RunCallback(
        metrics=None, stage="sft", task=None, label="sft", steps=2, memory=None
    )
    state = type(
        "State",
        (),
        {"is_world_process_zero": True, "global_step": 1, "log_history": [], "epoch": 1},
    )
    watch.on_save(type("Arguments", (), {"output_dir": str(tmp_path)}), state, None)
    assert order == ["all have written", "marked"]
