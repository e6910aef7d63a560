"""A run is resumed with the files that it began with, wherever its project lies; what changed is
named.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from advisor.plan.read import read_plan, resolve_path
from advisor.record import content
from tests.launch.conftest import PLAN, SECOND, TASKS, fails, refused, run

CHANGED = r"the data has changed .*hr\.jsonl has other content"


@pytest.fixture
def begun(shop):
    """The folder of a run that broke off; the next call of the stand-in trains to the end."""
    return break_off()


def break_off(**options):
    fails("oom", **options)
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


def more_rows(path):
    path.write_text(path.read_text() * 2)


def other_words(path):
    path.write_text(path.read_text().replace("number", "Number"))


@pytest.mark.parametrize(
    ("name", "change", "what", "size"),
    [
        ("model/model.safetensors", alter, "model", " (the same size)"),
        ("train.jsonl", other_words, "data", " (the same size)"),
        ("train.jsonl", more_rows, "data", ""),
    ],
)
def test_what_was_changed_in_place_is_noticed(shop, begun, name, change, what, size):
    """Other weights or rows: exit code 2, the file, and the ways out; the folder stays."""
    path = shop / name
    old = path.read_bytes()
    before = (begun / "run.json").read_bytes()
    change(path)
    said = refused()
    told = f"the {what} has changed since this run began: {name} has other content{size}"
    assert told in said
    assert "put the old files back, or begin a new run with --output DIR" in said
    assert (begun / "run.json").read_bytes() == before
    path.write_bytes(old)
    assert run().folder == begun


def test_a_stage_that_begins_later_reads_what_the_run_began_with(shop):
    """With --only and data of its own: refused if these changed since the first stage began."""
    plan = PLAN.replace("data: {path: train.jsonl}\n", "")
    plan = plan.replace("objective: sft", "objective: sft\n    data: train.jsonl")
    (shop / "plan.yaml").write_text(plan + SECOND.replace("}", ", data: hr.jsonl}"))
    run(only="sft")
    kept = (shop / "hr.jsonl").read_text()
    (shop / "hr.jsonl").write_text((shop / "train.jsonl").read_text())  # the first stage's
    for plan in ("plan.yaml", next((shop / "runs").iterdir())):
        assert re.search(CHANGED, refused(plan=plan, only="second"))
    (shop / "hr.jsonl").write_text(kept)
    assert run(only="second").status == "done"


def test_what_a_run_read_is_recorded_by_file(shop, begun):
    """run.json holds digest, size and the times of each file."""
    held = record(begun)["input_files"]
    assert set(held) == {"model", "data ../../train.jsonl"}
    assert set(held["model"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    weights = shop / "model" / "model.safetensors"
    assert held["model"]["model.safetensors"]["bytes"] == weights.stat().st_size
    ((name, data),) = held["data ../../train.jsonl"].items()
    assert (name, data["sha256"]) == ("train.jsonl", sha256(shop / "train.jsonl"))


def test_a_plan_with_another_path_is_another_run(shop, begun):
    """A renamed model folder: a run of its own, and the folder of the other one is refused."""
    (shop / "model").rename(shop / "smol")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: smol"))
    assert "its model, data or stages are not those of this plan" in refused(output=begun)
    assert run().folder != begun


def test_what_has_not_changed_is_not_read_again(shop, monkeypatch):
    """Size and times of a file decide whether it is read to resume."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))
    break_off()
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    run()


def test_a_copy_of_the_project_is_resumed_where_it_is(shop, begun, tmp_path_factory, monkeypatch):
    """The run goes on with the files of the new place, and is found finished where it is moved."""
    there = tmp_path_factory.mktemp("copied") / "shop"
    shutil.copytree(shop, there)
    shutil.rmtree(shop)
    shop.mkdir()
    monkeypatch.chdir(there)
    copy = there / begun.relative_to(shop)
    assert run().folder == copy
    assert record(copy)["attempts"] == 2
    assert resolve_path(copy / "plan.yaml", read_plan(copy / "plan.yaml").model) == there / "model"
    moved = there.rename(there.with_name("moved"))
    there.mkdir()
    monkeypatch.chdir(moved)
    copy = moved / begun.relative_to(shop)
    assert run("plan.yaml").already_done
    assert run(copy / "plan.yaml").already_done
    shutil.rmtree(copy / "stages" / "sft")
    assert run(copy / "plan.yaml").folder == copy


def test_departments_are_moved_and_gain_others(shop, tmp_path_factory, monkeypatch):
    """A task stays trained in a moved project, also when its data changes afterwards; one that is
    left needs the data that it began with, and one with other data is refused.
    """
    (shop / "plan.yaml").write_text(TASKS)
    run(only="legal")
    begun = break_off(only="hr")
    there = tmp_path_factory.mktemp("moved") / "shop"
    shop.rename(there)
    shop.mkdir()
    monkeypatch.chdir(there)
    rows = (there / "hr.jsonl").read_text()
    (there / "hr.jsonl").write_text(rows.replace("form", "Form"))
    assert re.search(CHANGED, refused(only="hr"))
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
    assert "holds other tasks: hr" in refused(output=done.folder)


def test_a_run_of_an_earlier_version_is_not_trained_further(shop, begun):
    """Its record does not say what it read: refused by name. A finished one stays finished."""
    old = record(begun)
    files = old.pop("input_files")
    old["inputs"] = dict.fromkeys(files, "0123456789abcdef")
    (begun / "run.json").write_text(json.dumps(old))
    assert "does not say what the data held, train.jsonl" in refused()
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
    begun = break_off()
    assert set(record(begun)["input_files"]["model"]) >= {"config.json", "model.safetensors"}
    (snapshot / "config.json").write_text((snapshot / "config.json").read_text() + "\n")
    assert re.search(r"the model has changed .*config\.json has other content", refused())
