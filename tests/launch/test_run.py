"""`advise run`: folders, resuming, stages and their parts, tasks, trials, and what past runs teach."""

import hashlib
import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.estimate.padding import row_lengths
from advisor.ground.errors import AdviseError, InputError, MachineNotReady, Stopped, TrainingFailed
from advisor.ground.types import DataProfile, TokenStats
from advisor.launch import earlier, teaching
from advisor.launch.expected import StageEstimator
from advisor.launch.teaching import run_as_measured
from advisor.plan.entries import entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan, resolve_path
from advisor.plan.write import plan_digest
from advisor.record import content as contents
from advisor.record.files import read_record
from advisor.record.run import DryRun
from advisor.record.stage import Measured
from advisor.render.report import write_report
from advisor.render.run import summary_lines
from advisor.situation.of_plan import plan_run, plan_shape
from tests.launch.conftest import (
    MACHINE,
    PLAN,
    SECOND,
    STAND_IN,
    TASKS,
    fails,
    flip,
    record_of,
    refused,
    run,
    start,
    write_rows,
)


def seen(folder, name="sft"):
    """How the stand-in was started for a stage."""
    return json.loads((folder / "stages" / name / "seen.json").read_text())


def test_a_plan_is_trained_into_its_own_folder(shop, monkeypatch, capfd, approved):
    """The folder is named after plan and digest, and a hostile trainers/ is never imported."""
    for name in ("trainers", "advisor", "path/trainers"):
        (shop / name).mkdir(parents=True)
        (shop / name / "__init__.py").write_text("raise SystemExit('hostile')")
    monkeypatch.setenv("PYTHONPATH", "path")
    done = run()
    assert seen(done.folder)["file"].startswith(str(STAND_IN))
    assert seen(done.folder)["cuda"] == ""
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "talk on the trainer's stdout" in captured.err
    assert done.folder == shop / "runs" / f"shop-{plan_digest(read_plan('plan.yaml'))}"
    found = record_of(done.folder)
    assert (found["status"], found["schema_version"]) == ("done", 1)
    stage = found["stages"][0]
    wanted = ("name", "objective", "update", "quantization", "steps", "loss_first", "loss_last")
    approved({key: stage[key] for key in ("status", *wanted)})
    assert (stage["measured"]["peak_bytes"], found["versions"]) == (2**29, {"torch": "2.0"})
    assert stage["expected"]["peak_bytes"] > 0
    assert found["resolved"]["sft"]["learning_rate"] == 2e-4
    assert sorted(os.listdir(done.folder)) == [".lock", "plan.yaml", "run.json", "stages"]


def test_a_rate_that_the_plan_leaves_out_is_told(shop, capsys):
    """A preference stage does not take the rate of supervised fine-tuning without a word."""
    pairs = ({"prompt": f"{n}?", "chosen": f"Yes, {n}.", "rejected": "no"} for n in range(9))
    write_rows(shop / "train.jsonl", pairs)
    plan = PLAN.replace("objective: sft", "objective: dpo")
    run(text=plan.replace("    learning_rate: 2e-4\n", ""))
    assert "warning: stage sft names no learning_rate and takes 0.0002" in capsys.readouterr().err


def test_a_run_that_its_trainer_refuses_leaves_nothing(shop):
    """All is as it was, and no command is named that would resume it; an older folder stays."""
    told = fails("input", InputError, output="out")
    assert "row 3 has no answer" in told
    assert "resume" not in told
    assert not (shop / "out").exists()
    fails("oom", output="out")
    fails("input", InputError, output="out")
    assert (shop / "out" / "run.json").is_file()


INSIDE = (
    "stages", "stages/sft", "stages/sft/checkpoints", "stages/sft/checkpoints/checkpoint-7",
    "stages/sft/.saving", "stages/sft/trained", "prepared", "prepared/sft.arrow", "metrics.jsonl",
    "run.json", ".lock", "plan.yaml", "report.html",
)  # fmt: skip


def test_what_leads_out_of_a_run_is_refused(shop):
    """A run writes, renames and deletes there: it names the link or the pipe, and touches nothing."""
    fails("oom", output="out")
    victim = shop / "victim"
    for name in INSIDE:
        place = shop / "out" / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("x") if place.suffix else place.mkdir()
        place.rename(victim)
        before = [(one, one.stat().st_mtime_ns) for one in (victim, *sorted(victim.rglob("*")))]
        place.symlink_to(victim)
        said = f"out/{name}: is a link to {victim}, outside of the run folder"
        assert said in refused(output="out")
        place.unlink()
        os.mkfifo(place)
        assert f"out/{name}: is not a regular file" in refused(output="out")
        place.unlink()
        assert [
            (one, one.stat().st_mtime_ns) for one in (victim, *sorted(victim.rglob("*")))
        ] == before
        victim.rename(place)


@pytest.mark.extra("other_tools", "merged")
@pytest.mark.parametrize("words", ["run out", "chat out", "check out", "export out --to merged"])
def test_every_command_refuses_a_run_with_a_link_that_leads_out(call, shop, words):
    """Whoever sends a run folder must not choose what else is read or written, a loop included."""
    link = run(output="out").folder / "report.html"
    for to in ("/dev/zero", shop, link.name):
        link.symlink_to(to)
        code, out, err = call(*words.split())
        is_out = to != link.name
        assert (f"report.html: is a link to {to}, outside" in out + err) is is_out, err
        assert code == 2 if is_out else code != 70, err
        link.unlink(missing_ok=True)


def test_the_run_folder_itself_may_be_a_link(shop):
    """Another disk holds it then, as a whole; links inside it may lead to places inside it."""
    (shop / "elsewhere").mkdir()
    (shop / "out").symlink_to(shop / "elsewhere", target_is_directory=True)
    stage = run(output="out").folder / "stages" / "sft"
    shutil.rmtree(stage)
    (shop / "out" / "latest").symlink_to("stages")
    run(output="out")
    assert stage.is_dir()
    assert record_of("elsewhere")["status"] == "done"


def test_a_finished_run_is_left_alone(shop, capsys):
    """It needs neither trainer, data nor model; but run.json alone does not make a stage done."""
    folder = run(output="out").folder
    stage, text = folder / "stages" / "sft", (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"status": "done"', '"status": "running"', 1))
    again = run(output="out")
    assert not again.already_done
    assert again.status == read_record(folder).status == "done"
    shutil.rmtree(stage)
    assert not run(output="out").already_done
    assert (stage / "adapter_model.safetensors").exists()
    (stage / "seen.json").unlink()
    before = (folder / "run.json").read_bytes()
    shutil.rmtree(shop / "model")
    (shop / "train.jsonl").unlink()
    capsys.readouterr()
    assert run(output="out").already_done
    assert "is finished" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before
    assert not (stage / "seen.json").exists()


def test_an_edited_plan_gets_its_own_folder(shop):
    """Another value is another run, by edit or by --set, and so is a trial."""
    folders = {run().folder, run(set_values=["stages.sft.rank=4"]).folder}
    trial = run(max_steps=3, judge=False)
    assert seen(trial.folder)["argv"][-3:] == ["--no-judge", "--max-steps", "3"]
    found = trial.record
    assert (found.max_steps, found.judge, found.stages[0].steps) == (3, False, 3)
    assert run(max_steps=3).already_done
    folders |= {trial.folder, run(text=PLAN.replace("2e-4", "1e-4")).folder}
    assert len(folders) == 4
    assert all(path.name.startswith("shop-") for path in folders)


@pytest.mark.parametrize(
    ("text", "own", "only"),
    [(PLAN, "stages.sft.save_minutes=3", None), (TASKS, "tasks.hr.overrides.save_steps=2", "hr")],
)
def test_when_to_save_may_change_on_the_way(shop, text, own, only):
    """It is the same run, and the plan in its folder has the later value."""
    fails("fail", text=text, only=only)
    (folder,) = (shop / "runs").iterdir()
    found = run(set_values=["stages.sft.save_steps=3", own], only=only)
    assert (found.folder, found.record.attempts) == (folder, 2)
    assert read_plan(folder / "plan.yaml").stages[0].save_steps == 3
    changed = ["stages.sft.save_steps=4"]
    assert run(folder / "plan.yaml", set_values=changed, only=only).already_done


def test_a_changed_plan_says_which_run_it_leaves_behind(shop, capsys):
    """With the keys that differ and the step where it stopped; without a checkpoint, that too."""
    fails("fail")
    (folder,) = (shop / "runs").iterdir()
    line = {"stage": "sft", "task": None, "step": 3, "steps": 10}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    changed = ["stages.sft.rank=4", "stages.sft.seed=7"]
    assert "rank, seed are not as in this plan" in refused(output=folder, set_values=changed)
    for source in ("plan.yaml", folder):
        capsys.readouterr()
        run(source, set_values=changed)
        left = f"rank, seed differ, so a new run begins; runs/{folder.name} stopped at step 3 of 10"
        assert left in capsys.readouterr().err
    run()
    assert "stage sft starts at step 0: it has no checkpoint" in capsys.readouterr().err


def test_the_copy_of_the_plan_runs_by_itself(shop, tmp_path_factory):
    """It has --set applied, the reasons, and relative paths that start from the run folder."""
    first = run(set_values=["stages.sft.micro_batch_size=2"])
    text = (first.folder / "plan.yaml").read_text()
    copy = read_plan(first.folder / "plan.yaml")
    assert (copy.model, copy.data.path) == ("../../model", "../../train.jsonl")
    assert resolve_path(first.folder / "plan.yaml", copy.model) == shop / "model"
    assert str(shop) not in "".join(line for line in text.splitlines() if "$schema" not in line)
    assert copy.stages[0].micro_batch_size == 2
    assert "# few rows (lora/rank)" in text
    assert run(first.folder / "plan.yaml").already_done
    assert run(first.folder).already_done
    assert run(first.folder / "plan.yaml", set_values=["stages.sft.rank=4"]).folder != first.folder
    far = run(output=tmp_path_factory.mktemp("far") / "out").folder
    copy = read_plan(far / "plan.yaml")
    assert not Path(copy.model).is_absolute()
    assert resolve_path(far / "plan.yaml", copy.model) == shop / "model"
    absolute = run(text=PLAN.replace("model: model", f"model: {shop}/model"))
    copy = read_plan(absolute.folder / "plan.yaml")
    assert (copy.model, copy.data.path) == (str(shop / "model"), "../../train.jsonl")


def test_a_plan_made_a_moment_ago_is_run_and_kept(shop):
    """Paths of a Plan are relative to the current folder; the reasons go into the copy."""
    plan = read_plan("plan.yaml")
    assert isinstance(plan, Plan)
    done = run(plan, comments={("stages", 0, "learning_rate"): "usual (lora/lr)"}, output="out")
    assert done.folder == shop / "out"
    assert "# usual (lora/lr)" in (shop / "out" / "plan.yaml").read_text()
    assert run(plan, output="out").already_done


@pytest.mark.parametrize("content", ["run", "files", "file", "broken", "trial"])
def test_a_folder_that_holds_something_else_is_refused(shop, content):
    """Exit code 2 with the next step, and nothing is touched."""
    out = shop / "out"
    match content:
        case "run":
            run(output=out, set_values=["stages.sft.rank=4"])
        case "trial":
            run(output=out, max_steps=2)
        case "file":
            out.write_text("x")
        case "files" | "broken":
            out.mkdir()
            (out / ("run.json" if content == "broken" else "thesis.txt")).write_text("{")
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert "--output DIR" in refused(output=out)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_stages_run_in_order_and_go_on_where_they_failed(shop, capsys):
    """The next call trains the failed stage alone, and none before the stage it starts from."""
    said = refused(text=PLAN + SECOND, only="second")
    assert "starts from sft, which is not trained yet" in said
    said = fails("input@second", InputError)
    assert "stage second: row 3 has no answer\n  the hint" in said
    folder = next((shop / "runs").iterdir())
    found = record_of(folder)
    assert [stage["status"] for stage in found["stages"]] == ["done", "failed"]
    assert (found["status"], found["stages"][1]["error"]["exit_code"]) == ("failed", 2)
    (folder / "stages" / "sft" / "seen.json").unlink()
    capsys.readouterr()
    done = run()
    said = capsys.readouterr().err
    assert "stage sft: already done" in said
    assert "stage second (2 of 2)" in said
    assert [stage.status for stage in done.record.stages] == ["done", "done"]
    assert (done.status, done.record.attempts) == ("done", 2)
    assert "error" not in record_of(folder)["stages"][1]
    assert not (folder / "stages" / "sft" / "seen.json").exists()


def test_tasks_are_trained_each_and_one_can_be_named(shop):
    """Each task has its entry and folder; --only trains one task or stage, the rest waits."""
    one = run(text=TASKS, only="hr")
    assert [(stage.name, stage.task, stage.status) for stage in one.record.stages] == [
        ("sft-legal", "legal", "pending"),
        ("sft-hr", "hr", "done"),
    ]
    assert one.record.status == "stopped"
    assert "--task" in seen(one.folder, "sft-hr")["argv"]
    assert run(only="hr").already_done
    assert run().record.status == "done"
    assert "did you mean 'legal'" in refused(only="leagl")


@pytest.mark.parametrize(("end", "status"), [("stopped", "stopped"), ("killed", "done")])
def test_a_comparison_of_modules_that_did_not_end_is_made_by_the_next_call(
    shop, monkeypatch, end, status
):
    """And a module that is trained again makes the table old."""
    run(text=TASKS, output="run", only="legal")  # the stand-in trains one task in a process
    monkeypatch.setenv("STAND_IN_COMPARES", end)
    with pytest.raises(Stopped) if status == "stopped" else nullcontext():
        run(output="run")
    assert (record_of("run")["status"], record_of("run")["cross_evaluation"]) == (status, None)
    monkeypatch.delenv("STAND_IN_COMPARES")
    done = run(output="run")
    assert (done.record.status, set(done.record.cross_evaluation)) == ("done", {"legal", "hr"})
    assert run(output="run").already_done
    for path in (shop / "run/stages/sft-hr").glob("*.safetensors"):
        path.unlink()
    monkeypatch.setenv("STAND_IN_COMPARES", "killed")
    assert run(output="run").record.cross_evaluation is None


def test_a_dry_run_keeps_its_measurement_and_the_plan(shop):
    """The folder holds nothing else, and the real run starts in it, by its name or the plan's."""
    measured = run(dry_run=True)
    assert isinstance(measured, DryRun)
    assert sorted(os.listdir(measured.folder)) == [".lock", "dry_run.json", "plan.yaml"]
    stage = json.loads((measured.folder / "dry_run.json").read_text())["stages"][0]
    assert Measured.from_dict(stage["measured"]) == Measured(
        peak_bytes=1000, step_s=0.5, largest_batch_tokens=100
    )
    assert stage["expected"]["peak_bytes"] > 0
    assert run(measured.folder).folder == measured.folder
    assert run().already_done
    assert isinstance(run(dry_run=True), DryRun)
    assert run().already_done


@pytest.mark.extra("other_tools")
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(
            (mode, TrainingFailed)
            for mode in ("sigkill", "oom", "segfault", "crash", "half", "no-result", "nan", "disk")
        ),
        ("full", MachineNotReady),
    ],
)
def test_a_failed_trainer_is_explained(shop, monkeypatch, mode, kind, approved):
    """With the exit code of its kind, and run.json says failed; the next call trains it."""
    for module in ("stages", "failure_report"):
        monkeypatch.setattr(f"advisor.launch.{module}.oom_kills", lambda: 7)
    said = fails(mode, kind)
    folder = next((shop / "runs").iterdir())
    said = re.sub(r"(cannot be read: )[^\n\d]*\d.*", r"\1WHERE", said)
    approved(said.replace(folder.name, "RUN"))
    assert [record_of(folder)["status"], record_of(folder)["stages"][0]["status"]] == ["failed"] * 2
    assert run().status == "done"


def test_what_an_earlier_attempt_left_does_not_count(shop, approved):
    """A plan may be corrected in its folder until there is a line of metrics."""
    for text in (PLAN, f"{PLAN}    seed: 7\n"):
        assert "the loss is not a number" in fails("fail", text=text, output="my run")
    (shop / "my run" / "metrics.jsonl").write_text("{}\n")
    approved(refused(text=PLAN, output="my run"))
    (shop / "my run" / "stages" / "sft" / "result.json").write_text("{}")
    assert "without a readable result.json" in fails("no-result", text=text, output="my run")


def test_a_record_that_contradicts_its_plan_is_refused_untouched(shop):
    """A damaged name of a method is told before anything in the folder is noted or corrected."""
    path = run(output="run").folder / "run.json"
    path.write_text(path.read_text().replace('"objective": "sft"', '"objective": ".sft"'))
    shutil.move(shop / "run", shop / "moved")
    before = (shop / "moved" / "run.json").read_bytes()
    told = "stage sft: objective is '.sft', and sft in the plan"
    assert told in refused(plan="moved", output="moved")
    assert (shop / "moved" / "run.json").read_bytes() == before


# Of a stage that several processes train they are two children of `advise run`. The stand-in leaves
# what several real processes leave.


def parts(shop):
    return (shop / "out" / "stages" / "sft" / "parts").read_text().split()


@pytest.mark.parametrize(
    ("mode", "wanted", "sizes"),
    [
        ("parts", ["whole", "judge"], []),
        # Memory that runs out while judging: a smaller micro-batch, and nothing is trained again.
        ("parts-memory", ["whole", "judge", "judge"], [2]),
        # The judging finds that what was trained is of another plan.
        ("parts-other", ["whole", "judge", "whole", "judge"], []),
    ],
)
def test_the_training_comes_first_and_the_judging_after_it(shop, mode, wanted, sizes):
    """Two children, one result."""
    record = run(mode=mode, output="out").record
    assert (record.status, parts(shop)) == ("done", wanted)
    assert [one.micro_batch_size for one in record.adjusted] == sizes


def test_a_judging_that_did_not_end_is_made_by_the_next_call(shop):
    """Neither a failure nor a stop between the two parts loses a trained step."""
    process = start(shop, "parts-stopped", output="out")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == Stopped.exit_code
    assert "stage sft: stopped: no step is lost" in said
    assert record_of()["status"] == "stopped"
    assert "the result never stops" in fails("parts-fail", output="out")
    assert (record_of()["status"], run("out", mode="parts").status) == ("failed", "done")
    assert parts(shop) == ["whole", "judge", "judge"]


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
    assert "model is not as in this plan" in said
    assert run().folder != begun


def test_what_has_not_changed_is_not_read_again(shop, monkeypatch):
    """Size and times of a file decide whether it is read to resume."""
    monkeypatch.setattr(contents, "FRESH_NS", -(10**10))
    break_off()
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    run()


def test_a_copy_of_the_project_is_resumed_where_it_is(shop, begun, tmp_path_factory, monkeypatch):
    """The run goes on with the files of the new place, and is found finished where it is moved."""
    there = tmp_path_factory.mktemp("copied") / "shop"
    shutil.copytree(shop, there)
    shutil.rmtree(shop)
    shop.mkdir()
    monkeypatch.chdir(there)
    copy = there / begun.relative_to(shop)
    assert (run().folder, record_of(copy)["attempts"]) == (copy, 2)
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
    """A trained task stays so in a moved project; one still to train needs its first data."""
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
    """A run of an earlier version, whose record lacks the files, is not trained further."""
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


WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def result(shop):
    return run(output="my run").folder / "stages" / "sft"


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
    before = (shop / "my run" / "run.json").read_bytes()
    capsys.readouterr()
    for plan in ("plan.yaml", "my run", "my run/plan.yaml"):
        text = refused(plan=plan, output=None if plan != "plan.yaml" else "my run")
        assert f"my run/stages/sft/{name} {said}: the result of stage sft is damaged" in text
    assert "finished" not in capsys.readouterr().err
    assert (shop / "my run" / "run.json").read_bytes() == before
    again = "rm 'my run'/stages/sft/*.safetensors && advise run 'my run'"
    assert f"train the stage again from the beginning: {again}" in text
    for path in result.glob("*.safetensors"):
        path.unlink()
    assert not run("my run").already_done
    assert run("my run").already_done


def test_no_stage_starts_from_a_damaged_result(shop, monkeypatch):
    """The second stage is refused, also by --only, while the first one's result is damaged."""
    run(text=PLAN + SECOND, output="out", only="sft")
    flip(shop / "out" / "stages" / "sft" / WEIGHTS)
    for only in (None, "second"):
        assert "the result of stage sft is damaged" in refused(output="out", only=only)
    assert not (shop / "out" / "stages" / "second").exists()


def test_results_are_read_only_if_they_were_touched(result, monkeypatch, capsys):
    """Gigabytes are not hashed at each call; an adapted tokenizer is told, and does no harm."""
    reads, original = [], earlier.file_digest
    monkeypatch.setattr(
        earlier, "file_digest", lambda path: reads.append(path.name) or original(path)
    )
    finished_ns = max(path.stat().st_ctime_ns for path in result.iterdir())
    monkeypatch.setattr(earlier, "_finished_ns", lambda stage: finished_ns)
    assert run(output="my run").already_done
    assert reads == []
    (result / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    assert run(output="my run").already_done
    said = capsys.readouterr().err
    assert "warning: my run/stages/sft/tokenizer_config.json was changed after training" in said
    flip(result / WEIGHTS)
    assert "damaged" in refused(output="my run")
    assert reads == [WEIGHTS]


HERE = replace(MACHINE, cpu_model="A Processor")
NOTE = teaching._note


@pytest.fixture
def runs(shop, monkeypatch):
    """The file of past runs of this test; by default a result says all that can be measured."""
    path = shop / "runs.jsonl"
    monkeypatch.setenv("ADVISE_RUNS", str(path))
    measure(monkeypatch, largest_batch_tokens=100, counter="rss_growth")
    return path


def measure(monkeypatch, **values):
    """What the stand-in's result says that it measured."""

    monkeypatch.setattr(
        teaching, "_note", lambda *args, **keys: NOTE(*args[:2], replace(args[2], **values), **keys)
    )


def lines(path):
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line]


def test_a_run_is_noted_and_corrects_the_next(shop, runs, capsys):
    """run.json keeps the formula beside; page and report name the runs behind it."""
    first = run(hardware=HERE, output="one").record.stages[0]
    assert first.expected.learned is None
    (line,) = lines(runs)
    assert (line["kind"], line["machine"]) == ("run", "A Processor, 2 cores")
    assert (line["family"], line["objective"], line["update"]) == ("llama", "sft", "lora")
    assert line["memory"][0]["measured_bytes"] == first.measured.peak_bytes
    assert line["expected_step_s"] == first.expected.step_s
    done = run(hardware=HERE, output="two")
    second = done.record.stages[0].expected
    assert second.learned.memory_runs == second.learned.time_runs == 1
    assert second.learned.formula_bytes == first.expected.peak_bytes
    assert second.learned.formula_step_s == pytest.approx(first.expected.step_s)
    assert first.expected.step_s < second.step_s < first.measured.step_s  # at most six times
    assert lines(runs)[1]["expected_step_s"] == pytest.approx(first.expected.step_s)
    assert "warning" not in capsys.readouterr().err
    assert "corrected by 1 run here: memory x " in " ".join(summary_lines(done))
    write_report(done.folder, done.record)
    assert "corrected by 1 run here" in (done.folder / "report.html").read_text()


def test_a_dry_run_teaches_too(shop, runs):
    """Its steps had the longest rows, and the formula is asked about those."""
    run(hardware=HERE, dry_run=True, output="one")
    (line,) = lines(runs)
    assert (line["kind"], line["measured_step_s"]) == ("dry_run", 0.5)
    assert run(hardware=HERE, output="two").record.stages[0].expected.learned.memory_runs == 1


def test_a_run_teaches_only_what_it_knows(shop, runs, monkeypatch):
    """A peak without its largest batch could mean anything, and time needs counted rows."""
    with monkeypatch.context() as patch:
        measure(patch, largest_batch_tokens=None)
        run(hardware=HERE, output="one")
    expect = StageEstimator.expect
    monkeypatch.setattr(
        StageEstimator, "expect", lambda one, entry: expect(replace(one, profiles={}), entry)
    )
    run(hardware=HERE, output="two")
    of_time, of_memory = lines(runs)
    assert (of_time["memory"], of_time["measured_step_s"]) == ([], 0.2)
    assert of_memory["measured_step_s"] is None
    assert of_memory["memory"]


@pytest.mark.parametrize("case", ["off", "no name", "failed"])
def test_what_teaches_nothing(shop, runs, monkeypatch, case):
    """Where it is switched off, of a machine without a name, and of a run that failed."""
    if case == "off":
        monkeypatch.setenv("ADVISE_RUNS", "off")
    with pytest.raises(AdviseError) if case == "failed" else nullcontext():
        run(mode={"failed": "oom"}.get(case), hardware=MACHINE if case == "no name" else HERE)
    assert not runs.exists()


@pytest.mark.parametrize("damaged", [True, False])
def test_a_file_that_cannot_be_used_stops_no_run(shop, runs, capsys, damaged):
    """The run is done, what went wrong is said, and the rest of a damaged file counts."""
    _ = runs.write_bytes(b"\x00{\n") if damaged else runs.mkdir()
    assert run(hardware=HERE).record.status == "done"
    said = capsys.readouterr().err
    if damaged:
        assert f"{runs}: 1 line left out: damaged" in said
    else:
        assert f"{runs}: no plain file" in said or f"{runs}: Is a directory" in said
        assert "ADVISE_RUNS=off" in said


def stats(**changes):
    """Rows of 10 to 600 tokens, most of them short."""
    found = TokenStats(
        total=60_000, mean=60.0, p50=40, p90=120, p95=200, p99=400, longest=600,
        counted_by="tokenizer of m", histogram=((64, 800), (128, 150), (512, 45), (1024, 5)),
    )  # fmt: skip
    return replace(found, **changes)


def test_an_expectation_counts_rows_as_long_as_the_data_are(shop):
    """Memory follows the longest row of the data where that is shorter than seq_len."""
    plan = read_plan(shop / "plan.yaml")
    entry, llama = entries(plan)[0], plan_shape(plan, shop / "plan.yaml")
    run = plan_run(plan, plan.stages[0], llama, HERE)
    assert run_as_measured(run, Measured(largest_batch_tokens=1318)).longest_tokens == 330
    assert run_as_measured(run, Measured()) is None
    shape = replace(llama, architecture="gemma3_text")
    data = DataProfile(path="d", kind="paired", format="messages", mapping={}, rows=1000,
                       tokens=stats(), objectives=("sft",))  # fmt: skip

    def peak(seq_len, profile=data, model=shape, hardware=HERE):
        one = replace(entry, stage=replace(entry.stage, seq_len=seq_len))
        profiles = {entry.data.path: profile}
        estimator = StageEstimator(plan=plan, shape=model, hardware=hardware, profiles=profiles)
        return estimator.expect(one).peak_bytes

    assert peak(1024) == peak(2048) == peak(600)
    assert peak(512) < peak(600) < peak(1024, None)
    # Rows of a llama are laid end to end on the CPU.
    assert peak(1024, model=replace(shape, architecture="llama")) < peak(1024)


def test_a_longest_row_that_is_not_certain_gets_a_margin():
    """Of a sample, or of characters, a row may be longer than the longest seen; a bin has a row."""
    approximate, whole = stats(counted_by="characters / 4 (approximation)"), (800, 150, 45, 5)
    for counted, seq_len, share, edges, rows in (
        (stats(), 4096, 1, (64, 128, 512, 600), whole),
        (stats(), 4096, 0.001, (64, 128, 512, 600), (1, 1, 1, 1)),
        (stats(sampled_rows=1000, total=600_000), 4096, 0.5,
         (64, 128, 512, 750), (4000, 750, 225, 25)),
        (approximate, 4096, 1, (88, 152, 536, 774), whole),
        (approximate, 512, 1, (88, 152, 512), (800, 150, 50)),
    ):  # fmt: skip
        lengths = tuple(zip(edges, rows, strict=True))
        assert row_lengths(counted, seq_len=seq_len, share=share) == lengths
    assert row_lengths(stats(histogram=()), seq_len=512) == ()
