"""The plan's trackers have what metrics.jsonl has, also after an interruption."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
from msgspec import structs

from advisor.extras.trackers.extra import TrackerKeys, tracker_faults
from advisor.plan.read import read_plan
from tests.trainers.runs import break_at, metrics
from trainers import sft
from trainers.keep import progress as trackers
from trainers.keep.progress import ABOUT, Trackers, stage_settings

KEYS = {"max_steps": 4, "save_steps": 2, "job_judge": False}


def tracked(job, *names):
    return replace(
        job, plan=structs.replace(job.plan, extras={"trackers": TrackerKeys(trackers=names)})
    )


def numbers(line):
    """What a tracker has to get of a line of metrics.jsonl."""
    return {key: one for key, one in line.items() if key not in ABOUT and one is not None}


def expected(job):
    """Name -> [(step, number)] of metrics.jsonl, as event files hold them: in 32 bits."""
    found = {}
    for line in metrics(job):
        for key, value in numbers(line).items():
            found.setdefault(key, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return found


def events(job):
    """The same of the event files, as TensorBoard's own reader sees them."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    folder = job.run / "trackers" / "tensorboard" / "sft"
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = found.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in scalars}


def test_tensorboard_has_the_numbers_of_metrics_also_after_a_crash(make, monkeypatch):
    """A stage that crashed behind its checkpoint goes on in the same run: each step is there once,
    as metrics.jsonl has it. A dry run leaves nothing.
    """
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    job = tracked(make(**KEYS), "tensorboard")
    sft.train(replace(job, dry_run=True))
    assert not (job.run / "trackers").exists()
    break_at(3, job, monkeypatch)
    assert [step for step, _ in events(job)["loss"]] == [1, 2, 3]
    sft.train(job)
    after = events(job)
    assert after == expected(job)
    assert [step for step, _ in after["loss"]] == [1, 2, 3, 4]
    (kept,) = (job.run / "trackers" / "tensorboard" / "sft").rglob("hparams.yml")
    said = kept.read_text()  # once, not with each attempt
    assert "learning_rate: 0.01" in said
    assert "rank" in said
    assert str(job.data_path) not in said
    assert str(job.plan.model) not in said


@pytest.mark.long
def test_wandb_offline_has_the_numbers_of_metrics_also_after_a_crash(make, monkeypatch):
    """Both attempts are one run of wandb, kept in the run folder, with the numbers of metrics.jsonl
    and without anything of the machine.
    """
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = tracked(make(**KEYS), "wandb")
    break_at(3, job, monkeypatch)
    sft.train(job)
    folders = sorted((job.run / "trackers" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1, "one run"
    found, codes = {}, []
    for folder in folders:
        told, config, kinds, code, content = read_wandb(folder)
        found |= told
        codes.append(code)
        assert str(job.folder).encode() not in content
        assert kinds.isdisjoint({"stats", "output", "output_raw", "files", "environment"}), kinds
        assert "learning_rate" in config
        assert "data" not in config
    assert codes == [1, 0], "the crash is marked as one"
    steps = {line["step"]: line for line in metrics(job)}
    assert sorted(found) == sorted(steps)
    for step, told in found.items():
        other = {"elapsed_s": told["elapsed_s"]} if step == 3 else {}
        assert told == numbers(steps[step]) | other


def read_wandb(folder):
    """(step -> numbers, names of the settings, kinds of records, exit code, the bytes) of an offline run."""
    from wandb.proto import wandb_internal_pb2 as records

    (path,) = folder.glob("*.wandb")
    content = path.read_bytes()
    numbers, config, kinds, code = {}, set(), set(), None
    for data in blocks(content[7:], taken=7):
        record = records.Record()
        record.ParseFromString(data)
        kinds.add(record.WhichOneof("record_type"))
        assert not record.run.host
        if record.HasField("exit"):
            code = record.exit.exit_code
        config |= {update.key for update in record.run.config.update}
        values = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "loss" in values:
            own = {key: value for key, value in values.items() if not key.startswith("_")}
            numbers[record.history.step.num or values["_step"]] = own
    return numbers, config, kinds, code, content


def blocks(content, taken):
    """The records of a log in LevelDB's format: blocks of 32 KiB, each part with a checksum, a
    length and a kind (1 whole, 2 first, 3 middle, 4 last).
    """
    place, parts = 0, b""
    while place + 7 <= len(content):
        left = 2**15 - (place + taken) % 2**15
        if left < 7:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.light
def test_a_tracker_that_fails_is_left_out_and_the_stage_goes_on(make, monkeypatch, capsys):
    """Whatever a service raises is said once; a service that works gets everything."""

    class Broken:
        def log(self, numbers, step):
            raise OSError("no route to host")

    class Kept:
        seen: ClassVar = []

        def log(self, numbers, step):
            self.seen.append((step, numbers))

        def finish(self):
            self.seen.append("end")

    kinds = {"wandb": Broken, "tensorboard": Kept}
    monkeypatch.setattr(trackers, "open_tracker", lambda job, name, after: kinds[name]())
    found = Trackers(tracked(make(), "wandb", "tensorboard"))
    for step in (1, 2):
        found.log({"stage": "sft", "task": None, "step": step, "steps": 2, "loss": 0.5}, after=0)
    found.close()
    assert Kept.seen == [(1, {"loss": 0.5}), (2, {"loss": 0.5}), "end"]
    said = capsys.readouterr().err
    assert said.count("no route to host") == 1
    assert "wandb gets nothing more of this stage" in said


@pytest.mark.light
def test_a_tracker_learns_nothing_of_data_or_folders(make):
    """Its settings name the model's folder alone, and no data."""
    job = make(rank=4)
    found = stage_settings(job)
    assert found["model"] == job.plan.model.rpartition("/")[2]
    assert (found["rank"], found["learning_rate"], found["update"]) == (4, 1e-2, "lora")
    assert not {"data", "start_from"} & set(found)
    assert str(job.folder) not in json.dumps(found)


PLAN = """\
model: {model}
data: {{path: rows.jsonl}}
trackers: [{names}]
stages: [{{name: sft, objective: sft, update: lora, learning_rate: 1e-4}}]
"""


@pytest.mark.light
def test_what_a_tracker_lacks_is_said_before_a_run(tmp_path, monkeypatch):
    """A package that is not installed, with the line that installs it; wandb without a login, with
    the two ways out. Neither needs the network.
    """
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(model="m/m", names="tensorboard, wandb"))
    keys = read_plan(path).extra_key("trackers", "trackers")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for installed, what, hint in (
        (False, "tensorboard and wandb are not installed", "[trackers]"),
        (True, "has no login", "WANDB_MODE=offline"),
    ):
        is_installed = "advisor.extras.trackers.extra._is_installed"
        monkeypatch.setattr(is_installed, lambda name, found=installed: found)
        (fault,) = tracker_faults(keys)
        assert what in fault.what
        assert hint in fault.hint
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert list(tracker_faults(keys)) == []
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert list(tracker_faults(keys)) == []
