"""A run is resumed with the files that it began with, wherever its project lies; what changed is
named. It is checked before it is called finished, and no stage starts from a damaged result.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from advisor.launch import earlier
from advisor.plan.read import read_plan, resolve_path
from advisor.record import content
from tests.launch.conftest import PLAN, SECOND, TASKS, fails, flip, record_of, refused, run

CHANGED = r"the data has changed .*hr\.jsonl has other content"


@pytest.fixture
def begun(shop):
    """The folder of a run that broke off; the next call of the stand-in trains to the end."""
    return break_off()


def break_off(**options):
    fails("oom", **options)
    return next(Path("runs").absolute().iterdir())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "change", "what", "size"),
    [
        ("model/model.safetensors", flip, "model", " (the same size)"),
        ("train.jsonl", lambda path: path.write_text(path.read_text().replace("number", "Number")), "data",
         " (the same size)"),
        ("train.jsonl", lambda path: path.write_text(path.read_text() * 2), "data", ""),
    ],
)  # fmt: skip
def test_what_was_changed_in_place_is_noticed(shop, begun, name, change, what, size):
    """Other weights or rows: exit code 2, the file, and the ways out; the folder stays."""
    path = shop / name
    old = path.read_bytes()
    before = (begun / "run.json").read_bytes()
    change(path)
    said = refused()
    assert f"the {what} has changed since this run began: {name} has other content{size}" in said
    assert "put the old files back, or begin a new run with --output DIR" in said
    assert (begun / "run.json").read_bytes() == before
    path.write_bytes(old)
    assert run().folder == begun


def test_a_stage_that_begins_later_reads_what_the_run_began_with(shop):
    """With --only and data of its own: refused if these changed since the first stage began."""
    plan = PLAN.replace("data: {path: train.jsonl}\n", "")
    plan = plan.replace("objective: sft", "objective: sft\n    data: train.jsonl")
    run(text=plan + SECOND.replace("}", ", data: hr.jsonl}"), only="sft")
    kept = (shop / "hr.jsonl").read_text()
    (shop / "hr.jsonl").write_text((shop / "train.jsonl").read_text())  # the first stage's
    for plan in ("plan.yaml", next((shop / "runs").iterdir())):
        assert re.search(CHANGED, refused(plan=plan, only="second"))
    (shop / "hr.jsonl").write_text(kept)
    assert run(only="second").status == "done"


def test_a_plan_with_another_path_is_another_run(shop, begun):
    """A renamed model folder: a run of its own, and the folder of the other one is refused."""
    (shop / "model").rename(shop / "smol")
    said = refused(text=PLAN.replace("model: model", "model: smol"), output=begun)
    assert "its model, data or stages are not those of this plan" in said
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
    assert record_of(copy)["attempts"] == 2
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
    run(text=TASKS, only="legal")
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
    run(text=more, only="hr")
    done = run(only="it")
    assert done.folder == there / begun.relative_to(shop)
    assert [stage.status for stage in done.record.stages] == ["done", "done", "done"]
    assert done.record.input_digests["data ../../train.jsonl"] != sha256(there / "train.jsonl")
    said = refused(text=more.replace("path: hr", "path: it"), output=done.folder)
    assert "holds other tasks: hr" in said


def test_what_a_run_read_is_recorded_by_file(shop, begun):
    """run.json holds digest, size and the times of each file. A run of an earlier version, whose
    record does not say it, is not trained further: refused by name. A finished one stays finished.
    """
    old = record_of(begun)
    held = old.pop("input_files")
    assert set(held) == {"model", "data ../../train.jsonl"}
    assert set(held["model"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    size = (shop / "model" / "model.safetensors").stat().st_size
    assert held["model"]["model.safetensors"]["bytes"] == size
    ((name, data),) = held["data ../../train.jsonl"].items()
    assert (name, data["sha256"]) == ("train.jsonl", sha256(shop / "train.jsonl"))
    old["inputs"] = dict.fromkeys(held, "0123456789abcdef")
    (begun / "run.json").write_text(json.dumps(old))
    assert "does not say what the data held, train.jsonl" in refused()
    assert run(output="other").status == "done"
    old = record_of("other")
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
    begun = break_off(text=PLAN.replace("model: model", "model: owner/name"))
    assert set(record_of(begun)["input_files"]["model"]) >= {"config.json", "model.safetensors"}
    (snapshot / "config.json").write_text((snapshot / "config.json").read_text() + "\n")
    assert re.search(r"the model has changed .*config\.json has other content", refused())


# --------------------------------------------------------------------------- results

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def result(shop):
    return run(output="out").folder / "stages" / "sft"


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (WEIGHTS, lambda path: os.truncate(path, 33), "has 33 bytes and had 66 when it was saved"),
        (WEIGHTS, flip, "has other content than when it was saved"),
        ("adapter_config.json", flip, "has other content than when it was saved"),
        ("adapter_config.json", os.remove, "is gone"),
    ],
)
def test_a_damaged_result_is_never_called_finished(shop, result, capsys, name, damage, said):
    """Exit code 2 with the file and the command that trains the stage again, which then works."""
    damage(result / name)
    before = (shop / "out" / "run.json").read_bytes()
    capsys.readouterr()
    for plan in ("plan.yaml", "out", "out/plan.yaml"):
        text = refused(plan=plan, output=None if plan != "plan.yaml" else "out")
        assert f"out/stages/sft/{name} {said}: the result of stage sft is damaged" in text
    assert "finished" not in capsys.readouterr().err
    assert (shop / "out" / "run.json").read_bytes() == before
    hint = "train the stage again from the beginning: rm out/stages/sft/*.safetensors && advise run"
    assert hint in text
    for path in result.glob("*.safetensors"):
        path.unlink()
    assert not run("out").already_done
    assert run("out").already_done


def test_no_stage_starts_from_a_damaged_result(shop, monkeypatch):
    """The second stage is refused, also by --only, while the first one's result is damaged."""
    run(text=PLAN + SECOND, output="out", only="sft")
    flip(shop / "out" / "stages" / "sft" / WEIGHTS)
    for only in (None, "second"):
        assert "the result of stage sft is damaged" in refused(output="out", only=only)
    assert not (shop / "out" / "stages" / "second").exists()


def test_results_are_read_only_if_they_were_touched(result, monkeypatch, capsys):
    """Gigabytes are not hashed at each call: files older than the end of their stage are known.
    Settings of the tokenizer, which people adapt, are told, and the run stays finished.
    """
    reads, original = [], earlier.file_digest
    monkeypatch.setattr(
        earlier, "file_digest", lambda path: reads.append(path.name) or original(path)
    )
    finished_ns = max(path.stat().st_ctime_ns for path in result.iterdir())
    monkeypatch.setattr(earlier, "_finished_ns", lambda stage: finished_ns)
    assert run(output="out").already_done
    assert reads == []
    (result / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    assert run(output="out").already_done
    said = capsys.readouterr().err
    assert "warning: out/stages/sft/tokenizer_config.json was changed after training" in said
    flip(result / WEIGHTS)
    assert "damaged" in refused(output="out")
    assert reads == [WEIGHTS]
