"""run.json and its companions: read as written, kept whole, and refused with the place of a fault.

records/ holds files that version 0.1.0 wrote: a run of sft > rm > ppo, one whose second task
failed, and a dry run. Folders are renamed and long lists are cut; nothing else is changed.
"""

import json
from pathlib import Path

import jsonschema
import pytest
from msgspec.structs import fields

from advisor.ground.annotated import object_shape, parts_of
from advisor.ground.errors import InputError, TrainingFailed
from advisor.record.files import read_part, read_record, try_read_part, write_record
from advisor.record.run import (
    DryRunRecord,
    Outcome,
    RunRecord,
    StageRecord,
    StageResult,
    last_of_each_task,
)
from advisor.record.stage import Check, ErrorRecord, Evaluation, Measured, Metric
from advisor.record.verdict import Verdict
from advisor.schema.parts import json_file_schema
from tests.conftest import of_keys

RECORDS = Path(__file__).parent / "records"
STORED = [("finished", RunRecord), ("failed", RunRecord), ("dry_run", DryRunRecord)]
STAGE = {"name": "sft", "objective": "sft", "update": "lora", "status": "pending"}
RUN = {"schema_version": 1, "status": "running", "stages": [STAGE]}


def stored(name):
    return json.loads((RECORDS / f"{name}.json").read_text())


@pytest.mark.parametrize(("name", "kind"), STORED)
def test_a_record_of_the_previous_version_is_read_and_loses_nothing(name, kind):
    """Written anew, the file has every key and value again, and the schema accepts both."""
    document = stored(name)
    again = json.loads(json.dumps(kind.from_dict(document).to_dict()))
    assert json.dumps(of_keys(again, document)) == json.dumps(document)
    assert kind.from_dict(again).to_dict() == again
    schema = json_file_schema(kind, "x")
    jsonschema.Draft7Validator.check_schema(schema)
    for written in (document, again):
        jsonschema.validate(written, schema)
    document["stages"][0]["name"] = 3
    with pytest.raises(jsonschema.ValidationError, match="3 is not of type"):
        jsonschema.validate(document, schema)


def test_a_record_of_the_previous_version_says_what_it_said():
    """Numbers, checks, settings and the error are where the readers look for them."""
    record = RunRecord.from_dict(stored("finished"))
    sft, rm, ppo = record.stages
    assert (record.status, record.verdict, record.hardware.kind) == ("done", ppo.verdict, "cpu")
    assert min(sft.measured.peak_bytes, sft.expected.counted_bytes) > 0
    assert sft.evaluation.holdout_loss_after < sft.evaluation.holdout_loss_before
    assert isinstance(sft.evaluation.samples[0].base_stopped, bool)
    assert rm.evaluation.metrics["pair_accuracy"].after == rm.evaluation.extra["pair_accuracy"]
    assert ppo.reward_last is not None
    assert {check.ok for check in sft.checks} <= {True, False}
    assert record.base_model(sft) == "/home/me/shop/model"
    assert (record.settings(sft).options["rank"], record.is_classifier(sft)) == (4, False)
    failed = RunRecord.from_dict(stored("failed")).stages[1]
    assert (failed.error.exit_code, bool(failed.error.hint)) == (2, True)
    assert (failed.plan_stage, failed.task, failed.folder) == ("sft", "hr", "stages/sft-hr")


def test_keys_of_a_newer_version_are_kept():
    """Whatever this version does not know is written back, at every depth."""
    document = {**RUN, "weather": {"sky": "blue"}, "stages": [{**STAGE, "mood": ["good"]}]}
    assert of_keys(RunRecord.from_dict(document).to_dict(), document) == document


@pytest.mark.parametrize(
    "change",
    [
        # A file that was cut off, or is something else.
        *("", "{", "null", "[]", '{"schema_version": 1, "a": NaN}'),
        # The version is looked at first: what else a newer file says need not be understood.
        *({"schema_version": version, "stages": 3} for version in (2, None)),
        *({"status": "don"}, {"stages": {}}, {"stages": [3]}, {"attempts": "two"}, {"judge": 1}),
        *({"max_steps": 2.5}, {"max_steps": True}),
        {"stages": [{**STAGE, "measured": {"step_s": "fast"}}]},
        {"stages": [{**STAGE, "evaluation": {"metrics": {"f1": {"after": "?"}}}}]},
    ],
    ids=json.dumps,
)
def test_a_damaged_record_is_refused_with_the_place(tmp_path, change, approved):
    """The file, the key, what it is and what it must be."""
    text = change if isinstance(change, str) else json.dumps({**RUN, **change})
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError) as refused:
        read_record(tmp_path)
    approved(refused.value.text())
    assert isinstance(change, dict) or try_read_part(StageResult, tmp_path / "run.json") is None


def test_every_fault_of_a_file_comes_at_once(tmp_path):
    """A missing key and a wrong one are told together, with the next step."""
    stage = {key: value for key, value in STAGE.items() if key != "update"}
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "stages": [stage], "judge": "no"}))
    with pytest.raises(InputError) as failed:
        read_record(tmp_path, hint="delete it")
    faults = [(one.headline.partition(": ")[2], one.hint) for one in failed.value.faults]
    assert faults == [("stages[0].update is missing", "delete it"), ("judge is 'no'", "delete it")]


def test_what_is_written_is_what_is_read(tmp_path):
    """A file has null for what is not known, and no file is no record, which is no error."""
    assert read_record(tmp_path) is None
    assert read_part(StageResult, tmp_path / "result.json") is None
    record = RunRecord.from_dict(RUN)
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path) == record
    stage = json.loads((tmp_path / "run.json").read_text())["stages"][0]
    assert (stage["measured"], stage["checks"]) == (None, [])
    assert not {"error", "reward_first"} & set(stage)


def test_a_finished_stage_takes_over_the_whole_result():
    """No field of a result is forgotten, and an error of an earlier attempt is gone."""
    result = StageResult(
        status="done", steps=3, loss_first=2.0, loss_last=1.0, reward_first=0.1, reward_last=0.2,
        duration_s=4.0, measured=Measured(peak_bytes=5), verdict=Verdict(ok=True, word="better"),
        evaluation=Evaluation(metrics={"f1": Metric(before=1.0, after=2.0)}),
        checks=(Check("effect", True, "it has one"),), extra={"own": 1},
    )  # fmt: skip
    stage = StageRecord.from_dict({**STAGE, "error": {"what": "out of memory"}, "kept": 2})
    done = stage.with_result(result, finished_at="2026-11-25T10:00:00Z")
    names = {part.name for part in fields(Outcome)} - {"extra"}
    assert [name for name in names if getattr(done, name) != getattr(result, name)] == []
    assert (done.status, done.error, done.extra) == ("done", None, {"own": 1, "kept": 2})


def test_the_last_stage_of_each_task_is_its_result():
    """A task's later stage takes the place of its earlier one; stages without a task are one."""
    names = {"early-legal": "legal", "sft": None, "sft-legal": "legal", "sft-hr": "hr"}
    stages = [StageRecord.from_dict({**STAGE, "name": name, "task": names[name]}) for name in names]
    assert [stage.name for stage in last_of_each_task(stages)] == ["sft-legal", "sft", "sft-hr"]


def test_an_error_is_recorded_with_all_its_faults():
    """One fault as it is, several as one text; the exit code is that of the class."""
    one = ErrorRecord.of(TrainingFailed("no room", "less", "set micro_batch_size"))
    assert one.to_dict() == {
        "kind": "TrainingFailed", "what": "no room", "allowed": "less",
        "hint": "set micro_batch_size", "exit_code": 5,
    }  # fmt: skip
    two = InputError("a", hint="x")
    several = ErrorRecord.of(InputError(faults=[*two.faults, *InputError("b").faults]))
    assert several.what == "a\n  x\nb"


def test_every_key_is_described():
    """Schema and manual have a line for each key of each part."""
    parts = [*parts_of(RunRecord), *parts_of(DryRunRecord), *parts_of(StageResult)]
    assert len(parts) > 15
    for part in parts:
        assert part.__doc__
        for key, shape in object_shape(part).keys.items():
            assert shape.help, f"{part.__name__}.{key}"
            assert shape.words()
    schema = json_file_schema(StageResult, "x")
    assert schema["required"] == ["status"]
    assert schema["properties"]["status"]["enum"][0] == "pending"
    assert schema["$defs"]["Check"]["required"] == ["name", "ok"]
