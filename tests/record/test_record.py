"""run.json and its companions: read as written, kept whole, located faults; verdicts, next steps.

records/ holds files that version 0.1.0 wrote: a run of sft > rm > ppo, one whose second task
failed, and a dry run. Folders are renamed and long lists are cut; nothing else is changed.
"""

import itertools
import json
import math
import os
import shlex
import shutil
from pathlib import Path

import jsonschema
import pytest
from msgspec import to_builtins
from msgspec.structs import fields

from advisor.ground.annotated import object_shape, parts_of
from advisor.ground.errors import InputError, TrainingFailed
from advisor.plan.entries import entries
from advisor.plan.read import read_plan, set_values
from advisor.record import content
from advisor.record.content import digest_of, file_digest, folder_digest, model_files, read_contents
from advisor.record.files import read_part, read_record, try_read_part, write_record
from advisor.record.judge import run_verdict
from advisor.record.next_step import GENERAL, longer_setting, resume_command
from advisor.record.run import (
    DryRunRecord,
    Outcome,
    RunRecord,
    StageRecord,
    StageResult,
    last_of_each_task,
)
from advisor.record.smaller import as_settings, changes, weight_changes
from advisor.record.stage import Check, ErrorRecord, Evaluation, Measured, Metric
from advisor.record.verdict import Verdict, limits
from advisor.schema.parts import json_file_schema
from tests.conftest import ROOT, of_keys

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
    assert (read_record(tmp_path), read_part(StageResult, tmp_path / "result.json")) == (None, None)
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


@pytest.fixture
def settled(monkeypatch):
    """Files need no rest before their times are trusted, so that tests need not wait."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))


@pytest.fixture
def model(tmp_path):
    """A folder with a configuration, weights, a tokenizer and files that do not matter."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "result.json"):
        (folder / name).write_text(f"this is {name}")
    return folder


def held(folder):
    """What the files of a model hold."""
    return read_contents(model_files(folder))


def test_a_folder_is_its_names_and_contents_wherever_it_lies(model, tmp_path):
    """A copy under another name has the same digest; the notes beside the model do not count."""
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other notes")
    assert folder_digest(model) == folder_digest(tmp_path / "copy")
    assert list(held(model)) == ["config.json", "model.safetensors", "tokenizer.json"]
    # The links of the hub's cache are followed.
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert folder_digest(snapshot) == folder_digest(model)


def test_pickled_weights_count_only_without_safetensors(model):
    """Of two copies of the weights, those that are loaded count."""
    before = folder_digest(model)
    (model / "pytorch_model.bin").write_text("pickled")
    assert folder_digest(model) == before
    (model / "model.safetensors").unlink()
    assert "pytorch_model.bin" in held(model)


def test_a_change_that_keeps_the_time_of_writing_is_noticed(model, settled):
    """A tool that sets the old mtime again cannot hide other content."""
    known = held(model)
    path = model / "model.safetensors"
    times = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert folder_digest(model, known) != digest_of(known)


def test_a_file_that_was_written_just_now_is_read_again(model):
    """Two changes within one tick of the clock look alike: such times are not kept."""
    found = held(model)
    assert all(part.mtime_ns is None and part.ctime_ns is None for part in found.values())
    assert "mtime_ns" not in next(iter(found.values())).to_dict()


def test_a_file_that_is_gone_is_the_users_error(tmp_path):
    """What cannot be read is named, with exit code 2."""
    with pytest.raises(InputError, match="weights: cannot be read: No such file"):
        file_digest(tmp_path / "weights")


def test_a_folder_that_is_several_things_of_a_run_is_read_once(model, settled, monkeypatch):
    """A reward model is a file of the plan, too; written again, it is read again."""
    first = folder_digest(model)
    with monkeypatch.context() as patch:
        patch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert folder_digest(model) == first
    (model / "model.safetensors").write_bytes(b"two")
    assert folder_digest(model) != first


EVALUATION = {
    "holdout_loss_before": 4.27, "holdout_loss_after": 1.82,
    "holdout_loss_interval": [-2.64, -2.23], "rows": 20,
    "metrics": {
        "rouge_l": {"before": 0.12, "after": 0.48, "interval": [0.3, 0.4], "word": "better"}
    },
    "general": {
        "before": 1.58, "after": 1.60, "interval": [-0.1, 0.2], "rows": 24,
        "word": "not distinguishable",
    },
}  # fmt: skip
JUDGED = {
    "name": "sft", "task": None, "objective": "sft", "update": "lora", "quantization": None,
    "status": "done", "folder": "stages/sft",
    "data": {"rows": 200, "train_rows": 180, "holdout_rows": 20},
    "evaluation": EVALUATION, "checks": [{"name": "x", "ok": True, "text": "fine"}],
}  # fmt: skip
FORGOT = {"before": 1.58, "after": 3.72, "interval": [1.2, 2.9], "rows": 24, "word": "worse"}
MARGIN = {"before": 0.1, "after": 0.9, "interval": [0.5, 1.1], "rows": 64, "word": "better"}


def judged(*stages, trainings=None, evaluation=None, stage=None, **run):
    """The verdict on a run of these stages, or of one that is changed so."""
    changed = {**JUDGED, "evaluation": {**EVALUATION, **(evaluation or {})}, **(stage or {})}
    record = {
        "schema_version": 1, "name": "shop", "status": "done", "model": "m", "max_steps": None,
        "resolved": {"sft": {"trl": {"learning_rate": 1e-3}}}, "stages": list(stages) or [changed],
        **run,
    }  # fmt: skip
    more = {} if trainings is None else {"trainings": trainings}
    return run_verdict(RunRecord.from_dict(record), run="my runs/shop", **more)


def held_out(before, after, rows, interval):
    """The evaluation of a loss alone."""
    return {
        "holdout_loss_before": before, "holdout_loss_after": after, "rows": rows,
        "holdout_loss_interval": interval, "metrics": {},
    }  # fmt: skip


def samples(stopped, of, *, base=None, text="a fine answer"):
    ended = of if base is None else base
    return {
        "samples": [
            {
                "prompt": "q", "base": "b", "tuned": text, "tuned_stopped": place < stopped,
                "base_stopped": place < ended,
            }
            for place in range(of)
        ]
    }  # fmt: skip


def general(after, word):
    return {"evaluation": {"general": {**FORGOT, "after": after, "word": word}}}


WORSE = {"holdout_loss_interval": [0.2, 0.9], "holdout_loss_after": 5.0, "metrics": {}}
# What differs from a sound record; what is said of it stands in tests/golden.
VERDICTS = {
    "learned and lost nothing: ship": {},
    # Every check of what was saved passed, and the loss of e^2.14 = 8.5 times the perplexity has a
    # word of its own, and the cure that was measured.
    "a general ability that halved is never good": {"evaluation": {"general": FORGOT}},
    # 1.2 times the perplexity is a loss higher by ln 1.2 = 0.182, and told from chance.
    "lost": general(1.58 + 0.19, "worse"),
    "not much, so kept": general(1.58 + 0.17, "worse"),
    "without a word, so lost": general(1.58 + 0.5, None),
    "chance, so kept": general(1.58 + 0.5, "not distinguishable"),
    # An interval narrows with the root of the rows: from 4 rows, half width 2 and difference -1, 16
    # are needed; there are 200 to hold out from.
    "too few rows: 16, a holdout of 0.08": {"evaluation": held_out(3.0, 2.0, 4, [-3.0, 1.0])},
    # A fifth of 20 rows cannot be 400.
    "too little data: 2,000 in all": {
        "evaluation": held_out(3.0, 2.8, 4, [-2.2, 1.8]), "stage": {"data": {"rows": 20}},
    },
    # Two rows give no interval: the objective's own number of held-out rows is named.
    "no interval: hold out 64": {"evaluation": held_out(3.0, 2.0, 2, None)},
    # Enough rows, and a change below 2 %.
    "did not learn: look at the data": {"evaluation": held_out(3.0, 2.99, 64, [-0.03, 0.01])},
    "half of the answers do not end: lost": {"evaluation": samples(8, 16)},
    "the base's did not end: kept": {"evaluation": samples(8, 16, base=4)},
    "most answers end: kept": {"evaluation": samples(9, 16)},
    # The same four words four times.
    "4 answers repeat themselves: lost": {
        "evaluation": samples(4, 4, text="we are very sorry " * 4)
    },
    "worse: a lower rate": {"evaluation": WORSE},
    "worse: the weights of the best step": {
        "evaluation": WORSE, "stage": {"held_out": {"best_step": 20, "last_step": 80}},
    },
    "a trial: run the whole": {"max_steps": 4},
    "a failed check: not ok, try it": {
        "stage": {"checks": [{"name": "x", "ok": False, "text": "never ends"}]}
    },
    **{
        f"{update} cannot be merged: chat": {"stage": {"update": update}}
        for update in ("prefix", "adapter")
    },
    "nothing was compared: measure": {"stage": {"evaluation": None}, "judge": False},
    "the objective's own metric decides": {
        "evaluation": {"decides": "preference margin", "metrics": {"preference margin": MARGIN}}
    },
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_what_is_said_of_a_result(approved, case):
    """Numbers before and after with interval and rows; what was lost; what to do next."""
    found = to_builtins(judged(**VERDICTS[case]))
    approved(json.loads(json.dumps(found).replace(str(ROOT), "ROOT")))


def test_the_limits_are_those_of_the_rules():
    """And what is not finished has no verdict."""
    assert limits()["general_lost"] == 1.2
    assert math.isclose(math.exp(3.72 - 1.58), 8.5, rel_tol=0.01)
    assert judged(stage={"status": "running"}) is None


def test_several_tasks_are_told_by_their_word():
    """One line each for all of them; the next step is that of the task that needs one."""
    forgot = {**EVALUATION, "general": FORGOT}
    tasks = [
        {**JUDGED, "name": f"sft-{task}", "task": task, "evaluation": evaluation}
        for task, evaluation in (("legal", EVALUATION), ("hr", forgot))
    ]
    found = judged(*tasks)
    assert (found.is_good, found.word) == (False, "mixed")
    assert found.text == "better: legal; better at the task, worse in general: hr"
    assert (found.task.text, found.general.text) == ("all of legal, hr", "kept: legal; lost: hr")
    assert found.next.text.startswith("hr: mix general questions")


@pytest.fixture
def trainings(tmp_path):
    """Those of a plan of two epochs."""
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"model: m\ndata: {{path: {tmp_path}/my rows.jsonl}}\nstages:\n"
        "  - {name: sft, objective: sft, update: lora, learning_rate: 3e-4, epochs: 2}\n"
    )
    return entries(read_plan(path))


def test_general_rows_to_begin_with_are_named(trainings):
    """Where the base has no chat template to answer in; none of them is measured on."""
    plain = {"sft": {"plain_template": True}}
    found = judged(evaluation={"general": FORGOT}, trainings=trainings, resolved=plain)
    assert f"some to begin with: {GENERAL} (set `replay`" in found.next.text
    rows = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").splitlines()]
    asked = {row["messages"][0]["content"] for row in rows}
    assert len(asked) == len(rows) >= 40
    measured = (ROOT / "trainers" / "evaluation" / "general.jsonl").read_text(encoding="utf-8")
    assert not asked & {json.loads(line)["prompt"] for line in measured.splitlines()}


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ({}, "advise run 'my runs/shop/plan.yaml' --set 'stages.sft.replay={rows: 500}'"),
        (
            {"seq_len": 64},
            "advise run 'my runs/shop/plan.yaml' --set 'stages.sft.replay={rows: 500}'"
            " --set stages.sft.seq_len=128",
        ),
        (
            {"replay": {"rows": 90}},
            "advise run 'my runs/shop/plan.yaml' --set stages.sft.replay_share=0.4",
        ),
        ({"replay": {"rows": 90}, "replay_share": 0.3}, None),
    ],
)
def test_what_was_lost_has_a_cure_that_can_be_pasted(trainings, tmp_path, keys, command):
    """The base's own answers are mixed in, and more of them where they are already."""
    settings = [f"stages.sft.{key}={value}" for key, value in keys.items()]
    plan = set_values(read_plan(tmp_path / "plan.yaml"), settings)
    found = judged(evaluation={"general": FORGOT}, trainings=entries(plan)).next
    assert (found.action, found.command) == ("mix_general", command)
    if command:
        again = shlex.split(command)[4::2]
        assert set_values(plan, again).stages[0].options["replay"]


ENDS = {"best_step": 9, "last_step": 9}
RIGHT = {**EVALUATION, "metrics": {"exact_match": {"before": 0.2, "after": 1.0, "rows": 20}}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        # 2 % or more from the last evaluation but one to the last.
        ({"held_out": {"fell": 0.02, **ENDS}}, ""),
        ({"held_out": {"fell": 0.019, **ENDS}}, None),
        # Nothing is left to gain: the loss is next to nothing, or every counted row is right.
        *(
            ({"steps": 22, "held_out": {"fell": 0.5, **ENDS}, "evaluation": perfect}, None)
            for perfect in ({**EVALUATION, "holdout_loss_after": 0.015}, RIGHT)
        ),
        # Fewer steps than the objective's file asks for, and no curve that says they were enough.
        (
            {"steps": 22},
            "train again from the beginning, with 4 epochs: 22 optimizer steps are few, 100 are usual",
        ),
        ({"steps": 22, "held_out": {"fell": 0.001}}, None),
        ({"steps": 100}, None),
        (
            {"evaluation": {**EVALUATION, **samples(2, 4, base=2)}},
            "train again from the beginning, with 4 epochs: only 2 of 4 answers end by themselves",
        ),
    ],
)
def test_a_good_result_that_is_not_finished_is_trained_longer(trainings, changes, why):
    """A loss that still falls, few steps, or answers that run on."""
    found = judged(stage=changes, trainings=trainings).next
    assert found.action == ("ship" if why is None else "train_longer")
    assert not why or found.text == why
    assert judged(stage=changes).next.action == "ship"  # without its plan: which key decides?


LENGTHS = ({}, {"epochs": 5.0}, {"max_steps": 60}, {"epochs": 3.0, "max_steps": 7})
UPDATES = ({"update": "lora"}, {"update": "lora", "quantization": "nf4"}, {"update": "full"})
OVERRIDES = (None, {}, {"epochs": 4.0}, {"max_steps": 9}, {"micro_batch_size": 2, "seq_len": 600})


@pytest.mark.parametrize(
    ("length", "update", "override"), itertools.product(LENGTHS, UPDATES, OVERRIDES)
)
def test_every_setting_that_is_advised_changes_its_stage(tmp_path, length, update, override):
    """In what decides: `max_steps` where the plan has it, a task's own key where it has one."""
    stage = {
        "name": "sft", "objective": "sft", "micro_batch_size": 4, "learning_rate": 1e-4,
        **length, **update,
    }  # fmt: skip
    data = {"path": "a.jsonl"}
    tasks = {"tasks": [{"name": "hr", "data": data, "overrides": override}]}
    rows = {"data": data} if override is None else tasks
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"model": "m", **rows, "stages": [stage]}))
    plan = read_plan(path)
    (entry,) = entries(plan)
    (longer,) = entries(set_values(plan, [longer_setting(entry)]))
    steps, more = entry.stage.max_steps, longer.stage.max_steps
    assert (more == 2 * steps) if steps else (longer.stage.epochs == 2 * entry.stage.epochs)
    for change in (*changes(entry.stage), *weight_changes(entry.stage)):
        words = as_settings(entry, change).replace("--set ", "").split()
        (smaller,) = entries(set_values(plan, words))
        values = {key: value for key, value in change.values.items() if value is not None}
        assert {key: getattr(smaller.stage, key) for key in values} == values
        assert not any(getattr(entry.stage, key) == value for key, value in values.items())


def test_a_command_can_be_pasted():
    """Spaces are quoted, a folder is no option, and what the call was given is there."""
    assert resume_command("my runs/shop", only="legal", max_steps=3, judge=False) == (
        "advise run 'my runs/shop' --only legal --max-steps 3 --no-judge"
    )
    assert resume_command("-x") == "advise run ./-x"
