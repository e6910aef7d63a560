"""A run is resumed with the files that it began with, wherever its project lies; what changed is
named.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, TrainingFailed
from advisor.plan.read import read_plan, resolve_path
from advisor.record import content
from tests.launch.conftest import PLAN, run

TASKS = PLAN.replace(
    "data: {path: train.jsonl}",
    "tasks: [{name: legal, data: {path: train.jsonl}}, {name: hr, data: {path: hr.jsonl}}]",
)


@pytest.fixture
def begun(shop, monkeypatch):
    """The folder of a run that broke off; the next call of the stand-in trains to the end."""
    return break_off(monkeypatch)


def break_off(monkeypatch, **options):
    monkeypatch.setenv("STAND_IN", "oom")
    with pytest.raises(TrainingFailed):
        run(**options)
    monkeypatch.setenv("STAND_IN", "ok")
    return next(Path("runs").absolute().iterdir())


def record(folder):
    return json.loads((folder / "run.json").read_text())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def alter(path):
    """Other weights of the same size: one bit of each of the last 20 bytes."""
    data = bytearray(path.read_bytes())
    data[-20:] = bytes(byte ^ 1 for byte in data[-20:])
    path.write_bytes(data)


def rename_model(shop):
    (shop / "model").rename(shop / "smol")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: smol"))


def test_weights_that_were_changed_in_place_are_noticed(shop, begun):
    """Other weights of the same size: exit code 2, the file, and the ways out; the folder stays."""
    weights = shop / "model" / "model.safetensors"
    old = weights.read_bytes()
    before = (begun / "run.json").read_bytes()
    alter(weights)
    with pytest.raises(InputError) as refused:
        run()
    assert (
        "the model has changed since this run began: model/model.safetensors has other content"
        " (the same size)" in refused.value.text()
    )
    assert "put the old files back, or begin a new run with --output DIR" in refused.value.text()
    assert (begun / "run.json").read_bytes() == before
    weights.write_bytes(old)
    assert run().folder == begun


def test_rows_that_were_changed_in_place_are_noticed(shop, begun):
    """The data, too, by name and size."""
    data = shop / "train.jsonl"
    data.write_text(data.read_text().replace("number", "Number"))
    with pytest.raises(InputError) as refused:
        run()
    assert (
        "the data has changed since this run began: train.jsonl has other content (the same size)"
        in refused.value.text()
    )


def test_a_stage_that_begins_later_reads_what_the_run_began_with(shop):
    """Stages that are trained one by one (--only) with data of their own: each is accepted, and
    refused if its data changed since the first began.
    """
    (shop / "more.jsonl").write_text((shop / "train.jsonl").read_text() * 2)
    (shop / "plan.yaml").write_text(
        PLAN.replace("data: {path: train.jsonl}\n", "").replace(
            "objective: sft", "objective: sft\n    data: train.jsonl"
        )
        + "  - {name: second, objective: sft, update: lora, learning_rate: 1e-4, data: more.jsonl}\n"
    )
    run(only="sft")
    kept = (shop / "more.jsonl").read_text()
    (shop / "more.jsonl").write_text((shop / "train.jsonl").read_text())  # the first stage's
    for plan in ("plan.yaml", next((shop / "runs").iterdir())):
        with pytest.raises(
            InputError, match=r"the data has changed .*more\.jsonl has other content"
        ):
            run(plan, only="second")
    (shop / "more.jsonl").write_text(kept)
    assert run(only="second").status == "done"


def test_what_a_run_read_is_recorded_by_file(shop, begun):
    """run.json holds digest, size and the times of each file."""
    held = record(begun)
    assert set(held["input_files"]) == {"model", "data ../../train.jsonl"}
    files = held["input_files"]["model"]
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (
        files["model.safetensors"]["bytes"] == (shop / "model" / "model.safetensors").stat().st_size
    )
    (data,) = held["input_files"]["data ../../train.jsonl"].items()
    assert (data[0], data[1]["sha256"]) == ("train.jsonl", sha256(shop / "train.jsonl"))


def test_a_plan_with_another_path_is_another_run(shop, begun):
    """A model folder that was renamed, in the plan as well: a run of its own, and the folder of the
    other one is refused.
    """
    rename_model(shop)
    with pytest.raises(InputError, match="its model, data or stages are not those of this plan"):
        run(output=begun)
    assert run().folder != begun


def test_what_has_not_changed_is_not_read_again(shop, monkeypatch):
    """Size and times of a file decide whether it is read to resume."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))
    break_off(monkeypatch)
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    run()


def test_a_copy_of_the_project_is_resumed_where_it_is(shop, begun, tmp_path_factory, monkeypatch):
    """Plan, data, model and run copied together, and the old place gone: the run goes on there,
    and the plan in its folder leads to the data and the model of the new place.
    """
    there = tmp_path_factory.mktemp("copied") / "shop"
    shutil.copytree(shop, there)
    shutil.rmtree(shop)
    shop.mkdir()
    monkeypatch.chdir(there)
    copy = there / begun.relative_to(shop)
    assert run().folder == copy
    assert record(copy)["attempts"] == 2
    assert resolve_path(copy / "plan.yaml", read_plan(copy / "plan.yaml").model) == there / "model"
    assert run(copy / "plan.yaml").already_done


def test_departments_are_moved_and_gain_others(shop, tmp_path_factory, monkeypatch):
    """A task stays trained in a moved project, also when its data changes afterwards; one that is
    left needs the data that it began with, and one with other data is refused.
    """
    (shop / "plan.yaml").write_text(TASKS)
    (shop / "hr.jsonl").write_text((shop / "train.jsonl").read_text().replace("number", "form"))
    run(only="legal")
    begun = break_off(monkeypatch, only="hr")
    there = tmp_path_factory.mktemp("moved") / "shop"
    shop.rename(there)
    shop.mkdir()
    monkeypatch.chdir(there)
    rows = (there / "hr.jsonl").read_text()
    (there / "hr.jsonl").write_text(rows.replace("form", "Form"))
    with pytest.raises(InputError, match=r"the data has changed .*hr\.jsonl has other content"):
        run(only="hr")
    (there / "hr.jsonl").write_text(rows)
    (there / "train.jsonl").write_text(rows)
    more = TASKS.replace("}}]", "}}, {name: it, data: {path: it.jsonl}}]")
    (there / "it.jsonl").write_text(rows)
    (there / "plan.yaml").write_text(more)
    run(only="hr")
    done = run(only="it")
    assert done.folder == there / begun.relative_to(shop)
    assert [stage.status for stage in done.record.stages] == ["done", "done", "done"]
    assert done.record.input_digests["data ../../train.jsonl"] != sha256(there / "train.jsonl")
    (there / "plan.yaml").write_text(more.replace("path: hr", "path: it"))
    with pytest.raises(InputError, match="holds other tasks: hr"):
        run(output=done.folder)


def test_a_run_of_an_earlier_version_is_not_trained_further(shop, begun):
    """Its record does not say what it read: refused by name. A finished one stays finished."""
    old = record(begun)
    files = old.pop("input_files")
    old["inputs"] = dict.fromkeys(files, "0123456789abcdef")
    (begun / "run.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"does not say what the data held, train\.jsonl"):
        run()
    assert run(output="other").status == "done"
    old = record(shop / "other")
    del old["input_files"]
    (shop / "other" / "run.json").write_text(json.dumps(old))
    assert run(output="other").already_done


def test_a_model_of_the_hub_counts_as_its_snapshot(shop, monkeypatch):
    """The cached files of a hub model are recorded, and a change is noticed."""
    snapshot = shop / "hub" / "models--owner--name" / "snapshots" / "c0ffee"
    shutil.copytree(shop / "model", snapshot)
    (shop / "hub" / "models--owner--name" / "refs").mkdir()
    (shop / "hub" / "models--owner--name" / "refs" / "main").write_text("c0ffee")
    monkeypatch.setenv("HF_HUB_CACHE", str(shop / "hub"))
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: owner/name"))
    begun = break_off(monkeypatch)
    assert set(record(begun)["input_files"]["model"]) >= {"config.json", "model.safetensors"}
    (snapshot / "config.json").write_text((snapshot / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"the model has changed .*config\.json has other content"):
        run()
