"""Exported OpenAI fine-tuning jobs: read in each form, answered for, and carried into a plan.

The golden page is written anew, after looking at the change, by
UPDATE_GOLDEN=1 python -m pytest tests/other_tools/test_openai_job.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.flips import one_card
from advisor.commands.openai_job import job_report
from advisor.ground.errors import InputError
from advisor.other_tools.openai_job.answers import data_mapping
from advisor.other_tools.openai_job.carry import carried, not_carried
from advisor.other_tools.openai_job.files import file_beside, read_jobs
from advisor.other_tools.openai_job.job import read_job
from advisor.other_tools.openai_job.report import chosen_job
from advisor.other_tools.openai_job.service import openai_service
from advisor.plan.read import read_plan
from advisor.probe.catalogue import cheapest_cards
from tests.data.test_examples import jsonl
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, MACHINE, STAND_IN

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "openai_job_80.txt"
HYPER = {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.8}
JOB: dict[str, Any] = {
    "object": "fine_tuning.job",
    "id": "ftjob-b1",
    "model": "gpt-4o-mini-2024-07-18",
    "created_at": 1721764800,
    "finished_at": 1721768800,
    "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:bike-desk:9xYz",
    "organization_id": "org-1",
    "result_files": ["file-r1"],
    "status": "succeeded",
    "validation_file": "file-val",
    "training_file": "file-b1",
    "hyperparameters": HYPER,
    "trained_tokens": 78000,
    "error": {},
    "integrations": [{"type": "wandb", "wandb": {"project": "bikes"}}],
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": HYPER}},
    "metadata": None,
}
DPO = {
    **JOB,
    "id": "ftjob-d1",
    "training_file": "file-d1",
    "hyperparameters": None,
    "method": {
        "type": "dpo",
        "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": "auto"}},
    },
}
GRADER = {
    "type": "string_check",
    "name": "total",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.total }}",
}
REINFORCED = {
    **JOB,
    "id": "ftjob-r1",
    "model": "o4-mini-2025-04-16",
    "training_file": "file-r1",
    "hyperparameters": None,
    "method": {
        "type": "reinforcement",
        "reinforcement": {"grader": GRADER, "hyperparameters": {"n_epochs": 1, "eval_samples": 2}},
    },
}


def chats(count: int = 200) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "You answer for a bicycle shop."},
                {"role": "user", "content": f"Do you have tyre {at}?" + " I ride." * (at % 20)},
                {"role": "assistant", "content": f"Tyre {at} is on shelf {at % 7}."},
            ]
        }
        for at in range(count)
    ]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder with a job and its training file, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path, chats(), "file-b1.jsonl")
    (tmp_path / "job.json").write_text(json.dumps(JOB, indent=2))
    return tmp_path


def written(folder: Path, text: str, name: str = "job.json") -> Path:
    (folder / name).write_text(text)
    return folder / name


# --------------------------------------------------------------------------- read

OLDER = {**JOB, "id": "ftjob-a1", "created_at": 5}
FAILED = {**JOB, "id": "ftjob-c1", "status": "failed", "created_at": 9_000_000_000}
FORMS = [
    ("an object", json.dumps(JOB, indent=2), ["ftjob-b1"]),
    ("indented by tabs", json.dumps(JOB, indent="\t"), ["ftjob-b1"]),
    (
        "a page of the API",
        json.dumps({"object": "list", "data": [FAILED, JOB], "has_more": False}),
        ["ftjob-c1", "ftjob-b1"],
    ),
    ("a list", json.dumps([JOB, OLDER]), ["ftjob-b1", "ftjob-a1"]),
    ("one a line", f"{json.dumps(OLDER)}\n\n{json.dumps(JOB)}\n", ["ftjob-a1", "ftjob-b1"]),
    (
        "a request",
        json.dumps({"model": "gpt-4.1-nano-2025-04-14", "training_file": "file-b1"}),
        [""],
    ),
]


@pytest.mark.parametrize(("text", "ids"), [form[1:] for form in FORMS], ids=[f[0] for f in FORMS])
def test_each_form_of_an_export_is_read(tmp_path, text, ids):
    """An object, a page of the API, a list, one job a line, and the body of a request."""
    jobs = read_jobs(written(tmp_path, text))
    assert jobs is not None
    assert [job.id for job in jobs] == ids


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"object": "fine_tuning.job.event", "id": "e"}),
        json.dumps({"messages": [{"role": "user", "content": '"fine_tuning.job"'}]}),
        json.dumps({"model": "x", "training_file": "y", "messages": []}),
        "name: a plan",
        "",
    ],
)
def test_other_files_are_no_jobs(tmp_path, text):
    """Events, rows that quote a job, plans and empty files are left to who reads them."""
    assert read_jobs(written(tmp_path, text)) is None


def test_what_a_job_says_is_read_whole(tmp_path):
    """Hyperparameters of either place, the suffix out of the model's name, what is automatic."""
    (job,) = read_jobs(written(tmp_path, json.dumps(JOB))) or ()
    assert (job.model, job.method, job.epochs, job.batch_size) == (JOB["model"], "supervised", 2, 1)
    assert (job.suffix, job.seed, job.trained_tokens) == ("bike-desk", 7, 78000)
    assert (job.integrations, job.unread) == (("wandb",), ())
    (pairs,) = read_jobs(written(tmp_path, json.dumps(DPO))) or ()
    assert (pairs.beta, pairs.epochs, pairs.automatic) == (0.2, 2, ("batch_size",))
    again = read_job({**JOB, "model": JOB["fine_tuned_model"], "new_key": 1}, where="")
    assert (again.model, again.started_from) == (JOB["model"], JOB["fine_tuned_model"])
    assert again.unread == ("new_key",)


FAULTS = [
    ("cut off", json.dumps(JOB, indent=2)[:-40], r"job.json:\d+:\d+: invalid JSON"),
    ("no training file", json.dumps({**JOB, "training_file": None}), "'training_file' is missing"),
    ("no model", json.dumps({k: v for k, v in JOB.items() if k != "model"}), "'model' is missing"),
    (
        "a method of its own",
        json.dumps({**JOB, "method": {"type": "supervisd"}}, indent=1),
        r"job.json:\d+:\d+[\s\S]*did you mean 'supervised'",
    ),
    (
        "epochs in words",
        json.dumps({**JOB, "hyperparameters": {"n_epochs": "three"}}, indent=1),
        r"job.json:\d+:\d+: [\s\S]*n_epochs",
    ),
    ("a negative beta", json.dumps({**DPO, "method": {"dpo": {"hyperparameters": {"beta": -1}}}}),
     "beta"),
    ("a broken line", f"{json.dumps(JOB)}\n{{\n{json.dumps(JOB)}\n", r"job.json:2:\d+"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_faulty_export_is_an_error_with_its_place(tmp_path, monkeypatch, text, said):
    """Broken JSON, missing keys and wrong values are named with line and column."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    with pytest.raises(InputError, match=said):
        read_jobs("job.json")


def test_all_faults_of_a_file_come_together(tmp_path):
    """A list with two faulty jobs names both."""
    jobs = [{**JOB, "model": None}, JOB, {**JOB, "seed": "seven"}]
    with pytest.raises(InputError) as caught:
        read_jobs(written(tmp_path, json.dumps(jobs, indent=1)))
    assert len(caught.value.faults) == 2


VALUES = [None, 0, -1, 1.5, True, "", "x", "auto", [], ["a"], {}, {"type": "x"}, [{}], 10**30]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each part of a value."""
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    return [at for key, part in parts for at in ((*path, key), *places(part, (*path, key)))]


@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(tmp_path_factory, data):
    """No value of a job ends in a bug: it is read, refused with its place, or no job at all."""
    job = json.loads(json.dumps(data.draw(st.sampled_from([JOB, DPO, REINFORCED]))))
    *path, last = data.draw(st.sampled_from(places(job)))
    part = job
    for key in path:
        part = part[key]
    part[last] = data.draw(st.sampled_from(VALUES))
    file = written(tmp_path_factory.mktemp("any"), json.dumps(job, indent=1))
    faults: tuple[Any, ...] = ()
    jobs = None
    try:
        jobs = read_jobs(file)
    except InputError as error:
        faults = tuple(error.faults)
    assert all(fault.where.startswith(str(file)) for fault in faults)
    for one in jobs or ():
        for objectives in ((), ("sft",), ("grpo",)):
            carried(one, objectives)
            not_carried(one, objectives)
        data_mapping(one)


def test_the_newest_job_that_succeeded_is_answered_for():
    """A newer failure and older successes are listed beside it."""
    jobs = [read_job(data, where="") for data in (FAILED, OLDER, JOB)]
    best, others = chosen_job(jobs)
    assert best.id == "ftjob-b1"
    assert [job.id for job in others] == ["ftjob-c1", "ftjob-a1"]


def test_the_training_file_is_found_beside_the_job_alone(saved):
    """Under its id with or without an ending, or its name; never outside the folder."""
    assert file_beside("job.json", "file-b1") == Path("file-b1.jsonl")
    assert file_beside("job.json", "file-b1.jsonl") == Path("file-b1.jsonl")
    assert file_beside("job.json", "/etc/hostname") is None
    assert file_beside("job.json", "..") is None


# --------------------------------------------------------------------------- carried


@given(
    epochs=st.one_of(st.none(), st.just("auto"), st.integers(1, 50)),
    seed=st.one_of(st.none(), st.integers(0, 2**31 - 1)),
    rate=st.one_of(st.none(), st.just("auto"), st.floats(0.01, 10)),
    objectives=st.sampled_from([("sft",), ("sft", "dpo"), ("grpo",), ()]),
)
def test_every_value_is_carried_or_said_not_to_be(epochs, seed, rate, objectives):
    """No value of a job is lost in silence, and none is both."""
    values = {"n_epochs": epochs, "learning_rate_multiplier": rate}
    job = read_job(
        {**JOB, "seed": seed, "hyperparameters": values, "method": None}, where="job.json"
    )
    taken, lost = carried(job, objectives), not_carried(job, objectives)
    for key in ("n_epochs", "learning_rate_multiplier"):
        named = [one for one in (*taken, *lost) if one.theirs.startswith(key)]
        wanted = values[key] is not None and bool(objectives or values[key] == "auto")
        assert len(named) == (wanted or (key != "n_epochs" and values[key] is not None))
    assert sum(one.theirs == f"seed: {seed}" for one in taken) == (
        len(objectives) if seed is not None else 0
    )


def test_the_column_that_a_grader_reads_is_the_right_answer():
    """One reference is mapped; none or several are left to the person."""
    job = read_job(REINFORCED, where="")
    assert data_mapping(job) == {"messages": "messages", "ground_truth": "total"}
    assert "`verifier: exact`" in next(
        one.ours for one in not_carried(job, ("grpo",)) if one.theirs.startswith("grader")
    )
    python = {"type": "python", "source": "item['a']", "x": "{{item.a}} {{ item.b }}"}
    method = {"type": "reinforcement", "reinforcement": {"grader": python}}
    other = read_job({**REINFORCED, "method": method}, where="")
    assert data_mapping(other) == {}
    assert any("reward: file.py:function" in one.ours for one in not_carried(other, ("grpo",)))


def test_the_last_day_is_that_of_the_base_model():
    """A snapshot has its own day, a name without a date the one of its snapshots."""
    service = openai_service()
    assert service.new_jobs_until == "2027-01-06"
    assert service.last_day("gpt-4o-mini-2024-07-18") == "2027-01-14"
    assert service.last_day("gpt-4o-mini") == "2027-01-14"
    assert service.last_day("gpt-4.1-nano-2025-04-14") == "2026-10-23"
    assert service.last_day("gpt-9") is None
    assert service.source.url.startswith("https://developers.openai.com/")


# --------------------------------------------------------------------------- answered


def test_the_plan_has_what_the_job_says(saved, call):
    """Name, epochs and seed are the job's, and each says so; counts above the stage follow."""
    code, out, err = call("check", "job.json", "--gpu", "L4", "--plan", "plan.yaml")
    assert (code, "wrote plan.yaml" in err) == (0, True)
    assert out.splitlines()[-1] == "Next: advise run plan.yaml"
    plan = read_plan(saved / "plan.yaml")
    (stage,) = plan.stages
    assert (plan.name, stage.objective, stage.epochs, stage.seed) == ("bike-desk", "sft", 2, 7)
    assert plan.data is not None
    assert plan.data.path == "file-b1.jsonl"
    text = (saved / "plan.yaml").read_text()
    assert "# of the OpenAI job: n_epochs: 2" in text
    assert "Seed: 7." in text
    assert "--set" not in text


def test_pairs_become_a_dpo_stage_with_the_beta_of_the_job(saved):
    """A job for preferences is advised on its pairs."""
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Tyre {at}?"}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": f"Shelf {at % 7}, row {at}."}],
            "non_preferred_output": [{"role": "assistant", "content": f"No idea, {at}."}],
        }
        for at in range(900)
    ]
    jsonl(saved, rows, "file-d1.jsonl")
    report, _ = job_report("job.json", [read_job(DPO, where="job.json")], gpu="L4")
    assert report.plan is not None
    (stage,) = [stage for stage in report.plan.stages if stage.objective == "dpo"]
    assert (stage.epochs, stage.options["beta"]) == (2, 0.2)


def test_items_with_references_become_practice_on_them(saved):
    """The grader's column is the answer that is checked."""
    rows = [
        {"messages": [{"role": "user", "content": f"{at} + {at}?"}], "total": str(2 * at), "x": "y"}
        for at in range(400)
    ]
    jsonl(saved, rows, "file-r1.jsonl")
    report, _ = job_report("job.json", [read_job(REINFORCED, where="job.json")], gpu="H100")
    assert report.plan is not None
    assert [stage.objective for stage in report.plan.stages] == ["grpo"]
    assert report.plan.data is not None
    assert report.plan.data.mapping == {"messages": "messages", "ground_truth": "total"}


def test_a_machine_without_gpu_gets_one_to_rent(saved, monkeypatch):
    """The cheapest GPU that holds what is advised, with its price; with a GPU here, that one."""
    monkeypatch.setattr("advisor.commands.openai_job.probe", lambda: MACHINE)
    jobs = read_jobs("job.json") or ()
    report, _ = job_report("job.json", jobs)
    assert report.rented in cheapest_cards(0)
    assert report.advice.recommendation.estimate.fits == "fits"
    assert report.cost_usd is not None
    assert report.rented is not None
    assert report.rented.name in report.price
    (card,) = [card for card in cheapest_cards(0) if card.name == "L4"]
    here = replace(one_card(card), origin="probed")
    monkeypatch.setattr("advisor.commands.openai_job.probe", lambda: here)
    own, _ = job_report("job.json", jobs)
    assert (own.rented, own.advice.situation.hardware) == (None, here)


def test_a_job_whose_rows_are_elsewhere_is_answered_without_a_plan(saved, call):
    """The answer stands; a plan is refused with the file to save and where it goes."""
    (saved / "file-b1.jsonl").unlink()
    code, out, _ = call("check", "job.json", "--gpu", "L4")
    assert code == 0
    assert "about 39,000 tokens of data" in " ".join(out.split())
    code, _, err = call("check", "job.json", "--gpu", "L4", "--plan", "plan.yaml")
    assert code == 2
    assert "save it as file-b1.jsonl: GET /v1/files/file-b1/content" in err
    assert not (saved / "plan.yaml").exists()


def test_a_training_file_that_cannot_be_used_says_why(saved, call):
    """Its fault is on the page, and a plan is refused with it."""
    jsonl(saved, [{"messages": [{"role": "user", "content": "Hi"}]}] * 9, "file-b1.jsonl")
    code, out, _ = call("check", "job.json", "--gpu", "L4")
    assert code == 0
    assert "cannot be used" in out
    assert "Next: advise check file-b1.jsonl" in out
    code, _, err = call("check", "job.json", "--gpu", "L4", "--plan", "plan.yaml")
    assert (code, "no answer to learn from" in err) == (2, True)


def test_too_few_rows_are_answered_with_what_to_do_instead(saved, call):
    """No plan, exit 3 if one was asked for, and the command that trains all the same works."""
    jsonl(saved, chats(20), "file-b1.jsonl")
    code, out, _ = call("check", "job.json", "--gpu", "L4", "--plan", "plan.yaml")
    assert (code, (saved / "plan.yaml").exists()) == (3, False)
    assert out.startswith("No training is needed")
    words = shlex.split(out.split("To train all the same:")[1])
    assert call(*words[1:])[0] == 0
    assert read_plan(saved / "plan.yaml").stages[0].objective == "sft"


def test_a_model_that_does_not_fit_is_exit_3_with_the_way_out(saved, call):
    """The verdict comes first, and the commands that would fit last."""
    code, out, _ = call("check", "job.json", "--gpu", "T4", "--model", "Qwen/Qwen3-32B")
    assert code == 3
    assert out.startswith("Nothing that suits the task fits on one T4")
    assert "\n  advise run --task other --data file-b1.jsonl" in out


def test_the_document_says_the_same(saved, call):
    """One JSON document with the verdict, the end of the service and the advice."""
    code, out, _ = call("check", "job.json", "--gpu", "L4", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["service"]["answers_until"] == "2027-01-14"
    assert document["job"]["training_file_here"] == "file-b1.jsonl"
    assert document["machine"]["usd"] > 0
    assert document["advice"]["plan"]["name"] == "bike-desk"
    assert {one["theirs"] for one in document["carried"]} == {
        "suffix: bike-desk",
        "n_epochs: 2",
        "seed: 7",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("job.json", "--fix", "a.jsonl"), "--fix has no effect on a fine-tuning job"),
        (("job.json", "--show-row", "1"), "--show-row has no effect on a fine-tuning job"),
        (("file-b1.jsonl", "--plan", "a.yaml"), "--plan"),
    ],
)
def test_options_of_the_other_kind_are_refused(saved, call, arguments, said):
    """What has no effect on this kind of file is an error that says so."""
    code, _, err = call("check", *arguments)
    assert (code, said in err) == (2, True)


def test_the_page(saved, call, monkeypatch):
    """What a person reads at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("check", "job.json", "--gpu", "L4")
    assert code == 0
    page = "\n".join(line.rstrip() for line in out.splitlines()) + "\n"
    assert all(len(line) <= 80 for line in page.splitlines())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")


def test_every_command_of_the_page_on_moving_runs(saved, call, monkeypatch):
    """docs/openai.md: from the job to the trained model, as its commands stand there."""
    text = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(advise .+)$", text, re.MULTILINE)
    assert len(commands) == 3
    write_fake_model(saved / "model", CONFIG)
    monkeypatch.setattr("advisor.launch.run.trainers_root", lambda: STAND_IN)
    monkeypatch.setattr("advisor.launch.run._probed", lambda: MACHINE)
    for command in commands:
        words = shlex.split(command)[1:]
        if "--plan" in words:  # a model and a machine that are here
            words = [*("none" if word == "L4" else word for word in words), "--model", "model"]
        code, out, err = call(*words)
        assert code == 0, (command, out, err)
    assert "done" in (next((saved / "runs").iterdir()) / "run.json").read_text()
