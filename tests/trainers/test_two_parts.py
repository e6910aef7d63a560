"""A stage in two parts: trained and saved by one call, judged by another that reads what was saved.
Both run here in one process; tests/launch/test_failures.py starts real ones.
"""

import json
from dataclasses import replace
from importlib import import_module
from unittest.mock import Mock

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from advisor.ground.errors import InputError, TrainingFailed
from advisor.record.files import trained_record
from advisor.record.stage import Times
from tests.trainers.alignment import keys_of
from tests.trainers.runs import result_of, trained
from trainers import sft
from trainers.__main__ import parse_arguments, part_of
from trainers.evaluation.generation import TextEvaluator
from trainers.job.files import read_json
from trainers.job.job import JUDGE, TRAIN
from trainers.keep.results import read_trained, together

CLOCK = ("times", "duration_s", "measured", "launch")  # and memory
KEYS = {"dropout": 0.1, "holdout": 0.25, "keep": "best", "max_steps": 4}


@pytest.fixture
def measured(monkeypatch):
    """What evaluators measured, in order: (part of the stage, before or after)."""
    seen, original = [], TextEvaluator._measure

    def measure(self, *, bounded=True):
        seen.append((self.job.part, "before" if bounded else "after"))
        return original(self, bounded=bounded)

    monkeypatch.setattr(TextEvaluator, "_measure", measure)
    return seen


def in_part(job, part):
    return replace(job, part=part)


def without_clock(job):
    """The result without what differs between two runs of the same: the clock and the folder."""
    found = {key: value for key, value in result_of(job).items() if key not in CLOCK}
    found = json.loads(json.dumps(found).replace(str(job.run), "RUN"))
    found["evaluation"].pop("seconds")
    found.get("held_out", {}).pop("seconds", None)
    # Evaluating leaves its padding in the tokenizer of the process that also saves.
    found["files"].pop("tokenizer.json")
    return found


def test_two_parts_come_to_the_result_of_one_process(make, tmp_path, measured):
    """Losses, evaluation, checks, verdict and the saved weights are equal; the training measures
    nothing beside its steps, and the base is measured once, also if judging is broken off.
    """
    one = make(job_run=tmp_path / "one", **KEYS)
    trained(one)
    measured.clear()
    two = make(job_run=tmp_path / "two", **KEYS)
    sft.train(in_part(two, TRAIN))
    assert not measured
    assert not (two.output / "result.json").exists()
    record = read_json(trained_record(two.output))
    assert (record["status"], record["processes"], record["evaluation"]) == ("running", 1, None)

    with pytest.MonkeyPatch.context() as patch:
        gone = Mock(side_effect=TrainingFailed("the server of a reward is gone"))
        patch.setattr(TextEvaluator, "evaluate_tuned", gone)
        with pytest.raises(TrainingFailed, match="is gone"):
            sft.train(in_part(two, JUDGE))
    assert trained_record(two.output).is_file()  # judging goes on, training does not
    sft.train(in_part(two, JUDGE))
    assert measured == [(JUDGE, "before"), (JUDGE, "after")]
    assert without_clock(two) == without_clock(one)
    assert not trained_record(two.output).parent.exists()


def test_what_the_disk_changed_is_noticed_and_saved_again(make, measured, capsys):
    """The trained model's own answer decides: other weights on the disk are no result, and the next
    attempt saves those of the last checkpoint without training a step. With `--no-judge` the saved
    result is loaded and compared, and nothing else.
    """
    job = make(job_judge=False)
    sft.train(in_part(job, TRAIN))
    path = job.output / "adapter_model.safetensors"
    good = path.read_bytes()
    other = {name: tensor * 1.5 for name, tensor in load_file(path).items()}
    save_file(other, path, metadata={"format": "pt"})
    with pytest.raises(TrainingFailed, match="is not the trained model"):
        sft.train(in_part(job, JUDGE))
    assert not trained_record(job.output).exists()
    capsys.readouterr()
    sft.train(in_part(job, TRAIN))
    said = capsys.readouterr().err
    assert "resuming after step 3 of 3" in said
    assert "training: " not in said
    assert path.read_bytes() == good
    result = trained(in_part(job, JUDGE))
    assert not measured
    assert (result["status"], result["evaluation"]) == ("done", None)
    names = [check["name"] for check in result["checks"]]
    assert names[:2] == ["saved-model-is-the-trained-one", "changes-the-base-model"]
    assert all(check["ok"] for check in result["checks"])


@pytest.mark.parametrize("what", ["settings", "answer", "record"])
def test_a_training_that_does_not_belong_to_the_plan_is_forgotten(make, capsys, what):
    """A record of other settings, or a damaged one, is not judged: the stage is trained again."""
    job = make(job_judge=False, max_steps=1)
    sft.train(in_part(job, TRAIN))
    record = trained_record(job.output)
    if what == "settings":
        job = make(job_judge=False, max_steps=1, learning_rate=5e-3)
    elif what == "answer":
        record.with_name("answer.safetensors").write_bytes(b"")
    else:
        record.write_text("{")
    assert (read_trained(job.output) is None) == (what != "settings")
    sft.train(in_part(job, JUDGE))
    assert "again" in capsys.readouterr().err
    assert not record.parent.exists()
    assert not (job.output / "result.json").exists()


def test_several_processes_train_and_one_judges(make, monkeypatch):
    """torchrun's processes train without being told; judging is refused to several."""

    def part(*flags):
        words = ["sft", "plan.yaml", "--stage", "sft", "--run", "out", *flags]
        return part_of(parse_arguments(words))

    assert (part(), part("--part", "judge"), part("--part", "train")) == (None, JUDGE, TRAIN)
    assert make().part is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (part(), make().part) == (None, TRAIN)
    with pytest.raises(InputError, match="for one process, and there are 2"):
        part("--part", "judge")


def test_the_times_of_both_parts_are_added():
    """Both load a model; only one trains, and only one measures the base."""
    one = Times(total_s=9.0, load_s=4.0, train_s=5.0)
    other = Times(total_s=4.5, load_s=3.0, before_s=1.0, after_s=0.5)
    expected = Times(total_s=13.5, load_s=7.0, before_s=1.0, train_s=5.0, after_s=0.5)
    assert together(one, other) == expected
    assert together(None, other) == other


@pytest.mark.long
@pytest.mark.parametrize("update", ["lora", "adapter", "prefix", "full"])
@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "simpo", "rm", "grpo", "rloo", "ppo"])
def test_every_objective_comes_to_the_same_in_two_parts(objective, update, align, trained_once):
    """Whatever is trained, the judging builds it again and finds what one process finds."""
    two = align(objective, **keys_of(objective, update))
    train = import_module(f"trainers.{objective}").train
    train(in_part(two, TRAIN))
    train(in_part(two, JUDGE))
    assert without_clock(two) == without_clock(trained_once(objective, update))
