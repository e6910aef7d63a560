"""A run is the same run wherever its project lies and however its folders are called, as long as
model and data hold the same; what changed is named.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from advisor.ground import content
from advisor.ground.errors import InputError, TrainingFailed
from advisor.launch.input_digests import old_digest
from advisor.plan.read import read_plan, resolve_path
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
    assert "put the old content back, start a new run with --output DIR" in refused.value.text()
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
    assert set(held["inputs"]) == {"model", "data ../../train.jsonl"}
    files = held["input_files"]["model"]
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (
        files["model.safetensors"]["bytes"] == (shop / "model" / "model.safetensors").stat().st_size
    )
    assert held["inputs"]["data ../../train.jsonl"] == sha256(shop / "train.jsonl")


def test_a_renamed_model_folder_is_the_same_model(shop, begun, capsys):
    """Plan and folder name the model anew: the run is found, resumed, and the change is named."""
    rename_model(shop)
    done = run()
    assert done.folder == begun
    assert record(begun)["attempts"] == 2
    assert read_plan(begun / "plan.yaml").model == "../../smol"
    assert (
        "the model was model when this run began and is smol now: the same content"
        in capsys.readouterr().err
    )
    assert run().already_done


def test_a_renamed_model_with_other_content_is_another_one(shop, begun):
    """In the same folder it is refused with the file that differs; by itself it is a new run."""
    rename_model(shop)
    alter(shop / "smol" / "model.safetensors")
    with pytest.raises(InputError) as refused:
        run(output=begun)
    assert (
        "the settings are the same, and the model is not the same: smol/model.safetensors has"
        " other content (the same size)" in refused.value.text()
    )
    assert run().folder != begun


def test_another_plan_is_refused_without_reading_the_model(shop, begun, monkeypatch):
    """Only a plan that differs in nothing but its paths is worth reading gigabytes for."""
    monkeypatch.setattr(content, "_whole", lambda fd: pytest.fail("the model was read"))
    rename_model(shop)
    with pytest.raises(InputError, match="its model, data or stages are not"):
        run(output=begun, set_values=["stages.sft.rank=4"])


def test_what_has_not_changed_is_not_read_again(shop, monkeypatch):
    """Size and times of a file decide whether it is read to resume."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))
    break_off(monkeypatch)
    monkeypatch.setattr(content, "_whole", lambda fd: pytest.fail("a file was read again"))
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


def test_a_plan_with_whole_paths_is_moved_with_its_files(shop, tmp_path_factory, monkeypatch):
    """Absolute paths that were edited to the new place name the same content."""
    absolute = PLAN.replace("model: model", f"model: {shop}/model").replace(
        "path: train", f"path: {shop}/train"
    )
    (shop / "plan.yaml").write_text(absolute)
    begun = break_off(monkeypatch)
    there = tmp_path_factory.mktemp("moved") / "shop"
    shop.rename(there)
    shop.mkdir()
    monkeypatch.chdir(there)
    (there / "plan.yaml").write_text(absolute.replace(str(shop), str(there)))
    assert run().folder == there / begun.relative_to(shop)


def test_a_run_folder_is_told_where_its_files_are_now(shop, begun):
    """A plan in a run folder whose model and data moved away: --set names the new place."""
    (shop / "elsewhere").mkdir()
    for name in ("model", "train.jsonl"):
        (shop / name).rename(shop / "elsewhere" / name)
    moved = begun.rename(shop / "alone")
    with pytest.raises(InputError, match="no such folder"):
        run(moved)
    done = run(moved, set_values=["model=../elsewhere/model", "data.path=../elsewhere/train.jsonl"])
    assert done.folder == moved
    assert run(moved).already_done


def test_a_finished_run_notes_where_its_files_are_now(shop, capsys):
    """A finished run whose model was renamed stays finished; its plan names the new folder."""
    done = run()
    rename_model(shop)
    assert run().already_done
    assert "the model was model when this run began and is smol now" in capsys.readouterr().err
    assert read_plan(done.folder / "plan.yaml").model == "../../smol"
    assert record(done.folder)["model"] == "smol"
    before = (done.folder / "run.json").read_bytes()
    assert run().already_done
    assert run(done.folder).already_done
    assert (done.folder / "run.json").read_bytes() == before


def test_the_same_model_by_another_path_is_not_called_renamed(shop, capsys):
    """A run that was called by the plan in its folder, and now by the plan beside the model, whose
    data alone have another name.
    """
    run(output="out")
    Path("train.jsonl").rename("rows.jsonl")
    copy = Path("out/plan.yaml")
    copy.write_text(copy.read_text().replace("train.jsonl", "rows.jsonl"))
    run("out/plan.yaml")
    Path("rows.jsonl").rename("train.jsonl")
    capsys.readouterr()
    assert run(output="out").already_done
    assert "the model was" not in capsys.readouterr().err


def test_results_of_a_moved_project_name_their_base_where_it_is(
    shop, tmp_path_factory, monkeypatch, capsys
):
    """Finished modules look for their base in the moved project, and their hashes stay right, also
    if the run is killed between the record and the file.
    """
    (shop / "plan.yaml").write_text(
        PLAN + "  - {name: second, objective: sft, update: lora, learning_rate: 1e-4}\n"
    )
    run(only="sft")
    there = tmp_path_factory.mktemp("copied") / "shop"
    shutil.copytree(shop, there)
    monkeypatch.chdir(there)
    begun = next((there / "runs").iterdir())
    config = begun / "stages" / "sft" / "adapter_config.json"
    stale = config.read_bytes()
    assert json.loads(stale)["base_model_name_or_path"] == str(shop / "model")
    capsys.readouterr()
    assert run().status == "done"
    assert "the base of sft has another place now" in capsys.readouterr().err
    assert json.loads(config.read_bytes())["base_model_name_or_path"] == str(there / "model")
    config.write_bytes(stale)  # killed before the file was written
    assert run().already_done
    assert json.loads(config.read_bytes())["base_model_name_or_path"] == str(there / "model")
    before = (begun / "run.json").read_bytes()
    capsys.readouterr()
    assert run().already_done
    assert "another place" not in capsys.readouterr().err
    assert (begun / "run.json").read_bytes() == before


def test_departments_are_moved_and_their_data_renamed(shop, tmp_path_factory, monkeypatch, capsys):
    """A task stays trained in a moved project and with renamed data; other data is refused."""
    (shop / "plan.yaml").write_text(TASKS)
    (shop / "hr.jsonl").write_text((shop / "train.jsonl").read_text().replace("number", "form"))
    run(only="legal")
    begun = break_off(monkeypatch, only="hr")
    there = tmp_path_factory.mktemp("moved") / "shop"
    shop.rename(there)
    shop.mkdir()
    monkeypatch.chdir(there)
    (there / "hr.jsonl").rename(there / "staff.jsonl")
    (there / "plan.yaml").write_text(TASKS.replace("hr.jsonl", "staff.jsonl"))
    done = run(only="hr")
    assert done.folder == there / begun.relative_to(shop)
    assert [stage.status for stage in done.record.stages] == ["done", "done"]
    assert run().already_done
    said = capsys.readouterr().err
    assert "the data was hr.jsonl when this run began and is staff.jsonl now" in said
    (there / "more.jsonl").write_text((there / "staff.jsonl").read_text() * 2)
    (there / "plan.yaml").write_text(TASKS.replace("hr.jsonl", "more.jsonl"))
    with pytest.raises(InputError, match="holds other tasks: hr"):
        run(output=done.folder)


def test_a_run_of_an_earlier_version_is_compared_as_it_was_recorded(shop, begun, capsys):
    """Digests of 16 digits: data by content, the model by names and sizes, which is said."""
    old = record(begun)
    for key, path, what in (
        ("model", shop / "model", "model"),
        ("data train.jsonl", shop / "train.jsonl", "data"),  # as earlier versions named it
    ):
        old["inputs"][key] = old_digest(path, what)
    del old["content_digests"], old["input_files"], old["inputs"]["data ../../train.jsonl"]
    (begun / "run.json").write_text(json.dumps(old))
    config = shop / "model" / "config.json"
    kept = config.read_text()
    config.write_text(kept + "\n")
    with pytest.raises(InputError, match="the model has changed"):
        run()
    config.write_text(kept)
    assert run().folder == begun
    assert "only its configuration and the names and sizes" in capsys.readouterr().err
    assert len(record(begun)["inputs"]["model"]) == 64


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
