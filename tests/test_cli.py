"""The command line as a person meets it: exit codes, messages, and nothing half-written."""

import errno
import io
import json
import os
import pkgutil
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from advisor.advice import comparing
from advisor.cli import COMMANDS, advise
from advisor.methods import schemes
from advisor.methods.composition import parse_composition
from advisor.methods.remedies import remedies, remedy
from advisor.plan.read import read_plan
from tests.conftest import PAIRS, ROOT

PARAGRAPHS = "\n\n".join(f"A paragraph about {i}, {'with more to say ' * 20}" for i in range(60))


def preferences(count=60):
    """Rows of a file of preferences."""
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"A good answer {i}.", "rejected": f"Bad {i}."}
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_is_one_document_and_messages_go_to_stderr(call):
    """Standard output holds the JSON document alone."""
    code, out, err = call("--json", "--task", "qa", "--gpu", "RTX 4090")
    document = json.loads(out)
    assert (code, document["schema_version"]) == (0, 1)
    assert "suggestion" in err
    assert document["missing"] == ["data.path"]
    assert document["plan"] is None


@pytest.mark.parametrize("model", ["answerdotai/ModernBERT-base", "distilbert-base-uncased"])
@pytest.mark.parametrize("task", ["chat_assistant", "reasoning", "generation"])
def test_an_encoder_is_not_taken_to_write(call, model, task):
    """A model that only reads and sorts is refused for a task whose answer is text, with one that
    writes; for sorting it is taken.
    """
    code, out, err = call(
        "--json", "--task", task, "--model", model, "--data-kind", "paired", "--gpu", "RTX 4090"
    )
    assert (code, "recommendation" in json.loads(out)) == (2, False)
    assert "it cannot write an answer" in err
    assert "such as Qwen/" in err
    code, out, _ = call(
        "--json",
        "--task",
        "classification",
        "--model",
        model,
        *shlex.split("--data-kind paired --budget high --gpu 'RTX 4090'"),
    )
    assert (code, json.loads(out)["recommendation"]["composition"]) == (0, "encoder:sft+full")


def test_contradictions_come_together(call):
    """What cannot be true at once is refused, each with its reason; what a model's name seems to
    say only warns.
    """
    signals = (
        "base_model_never_succeeds",
        "base_model_sometimes_succeeds",
        "base_model_untuned",
        "instruct_model_start",
    )
    code, _, err = call(
        "--json",
        "--task",
        "qa",
        "--gpu",
        "none",
        *(part for name in signals for part in ("--signal", name)),
    )
    assert (code, err.count("this cannot be")) == (2, 2)
    _, out, _ = call(
        *shlex.split(
            "--json --task reasoning --data-kind prompts_with_verifier --gpu unknown "
            "--signal base_model_sometimes_succeeds"
        )
    )
    assert {"base_model_never_succeeds": True} not in [
        flip["change"] for flip in json.loads(out)["flips"]
    ]
    code, _, err = call(
        *shlex.split(
            "--json --task qa --gpu none --model Qwen/Qwen3-8B --signal base_model_untuned"
        )
    )
    assert (code, "follows instructions already; you said otherwise, and that counts" in err) == (
        0,
        True,
    )


def test_advice_warns_of_little_data_as_the_check_does(call, tmp_path):
    """A stage that wants more data than there are says so, for a file as for a stated amount."""
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"Is {n} odd?", "completion": f"Count to {n} and see."}) + "\n"
            for n in range(30)
        )
    )
    asked = ("--json", "--task", "generation", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B")
    asked = (
        *asked,
        "--teacher",
        "texts",
    )  # who writes the missing ones, so that training is advised
    for stated in (("--data", data), ("--data-kind", "paired", "--data-rows", 30)):
        (said,) = [
            text for text in json.loads(call(*asked, *stated)[1])["warnings"] if "too few" in text
        ]
        assert (
            said
            == "supervised fine-tuning: 30 rows are too few: below 50 it seldom works; 500 to 10,000 are usual"
        )
        assert said.removeprefix("supervised fine-tuning: ") in " ".join(
            call("check", data)[1].split()
        )


def test_documents_are_not_too_few_examples(call, tmp_path):
    """Beside documents the examples are counted, not the documents."""
    examples = tmp_path / "pairs.jsonl"
    examples.write_text(
        "".join(
            json.dumps({"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}."}) + "\n"
            for n in range(40)
        )
    )
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(
            f"Document {n} tells of building {n} and its {n} windows, and of who lived there."
            for n in range(30)
        )
    )
    asked = shlex.split(
        "--json --task generation --gpu none --model Qwen/Qwen3-0.6B --data corpus.txt "
        "--choose 'cpt>sft+lora' --force"
    )
    assert not [
        text
        for text in json.loads(call(*asked)[1])["warnings"]
        if text.startswith("supervised fine-tuning:")
    ]
    (said,) = [
        text
        for text in json.loads(call(*asked, "--examples", examples)[1])["warnings"]
        if text.startswith("supervised fine-tuning:")
    ]
    assert said.startswith("supervised fine-tuning: 40 rows are too few: below 50")


def test_rows_longer_than_what_is_read_are_told(call):
    """Time and cost count what fits; of stated rows that are longer on average the answer says
    so.
    """
    asked = shlex.split(
        "--json --task qa --gpu 'RTX 4090' --model Qwen/Qwen3-8B --data-kind paired "
        "--data-rows 5000 --data-tokens"
    )
    said = [
        text
        for text in json.loads(call(*asked, "1000000000")[1])["warnings"]
        if "longer than" in text
    ]
    assert ["200,000 tokens on average are longer than the 1,024" in text for text in said] == [
        True
    ]
    assert not [
        text for text in json.loads(call(*asked, "1000000")[1])["warnings"] if "longer than" in text
    ]


def test_departments_miss_their_files_alone(call, tmp_path):
    """One module a team needs a file a team, not one file for all; a name that a plan would refuse
    is refused at once.
    """
    asked = shlex.split(
        "--json --task multi_department --n-tasks 2 --gpu 'RTX 4090' --model Qwen/Qwen3-8B"
    )
    assert json.loads(call(*asked)[1])["missing"] == ["tasks"]
    data = tmp_path / "legal.jsonl"
    data.write_text('{"prompt": "Who signs?", "completion": "The head of the department."}\n' * 3)
    code, _, err = call(
        *shlex.split("--json --task multi_department --gpu 'RTX 4090' --tasks"), f"HR Team={data}"
    )
    assert (code, "the name is 'HR Team'" in err) == (2, True)


def test_the_contract_keys_are_always_there(call):
    """Every key that scripts build on is in the document."""
    _, out, _ = call("--json", "--task", "other", "--gpu", "unknown")
    document = json.loads(out)
    assert {
        "schema_version",
        "recommendation",
        "guide",
        "alternatives",
        "flips",
        "unknown",
        "warnings",
        "situation",
        "hardware",
        "data",
        "rules",
        "plan",
        "missing",
    } <= set(document)
    assert {"composition", "remedies", "stages", "decided_by", "because", "estimate"} <= set(
        document["recommendation"]
    )
    assert {"peak_gib", "low_gib", "high_gib", "hours", "usd", "fits"} <= set(
        document["recommendation"]["estimate"]
    )


def test_a_complete_question_gets_a_runnable_plan(call, tmp_path):
    """With data and a real model the plan is in the document, and in the file of --plan, and reads
    back.
    """
    (tmp_path / "train.jsonl").write_text(PAIRS)
    code, out, _ = call(
        *shlex.split(
            "--json --task qa --gpu 'RTX 4090' --model Qwen/Qwen3-8B --data train.jsonl "
            "--plan plan.yaml"
        )
    )
    assert code == 0
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan.model == "Qwen/Qwen3-8B"
    assert plan.origin.composition == json.loads(out)["recommendation"]["composition"] == "sft+lora"
    text = (tmp_path / "plan.yaml").read_text()
    assert text.startswith("# Launch file of `advise`.")
    assert "lora/lr" in text
    assert 15 <= len(text.splitlines()) <= 60


def test_a_stage_that_scores_its_answers_needs_a_reward_model_or_one_trained_before(call, tmp_path):
    """Without either the plan is refused with the flag that names one; the flag's folder must hold
    a model, and stands in the plan, relative paths included.
    """
    (tmp_path / "prefer.jsonl").write_text(preferences())
    (tmp_path / "plans").mkdir()
    asked = shlex.split(
        "--json --task chat_assistant --gpu 'RTX 4090' --model Qwen/Qwen3-0.6B "
        "--data prefer.jsonl --force --plan plans/plan.yaml --choose"
    )
    code, _, err = call(*asked, "rloo+lora")
    assert (code, "reward_model is missing" in err, "--reward-model" in err) == (2, True, True)
    assert call(*asked, "sft>rm>ppo+lora")[0] == 0
    (tmp_path / "plans" / "plan.yaml").unlink()
    (tmp_path / "rm").mkdir()
    code, _, err = call(*asked, "rloo+lora", "--reward-model", "rm")
    assert (code, "rm: holds no model" in err) == (2, True)
    (tmp_path / "rm" / "config.json").write_text("{}")
    code, out, err = call(*asked, "rloo+lora", "--reward-model", "rm")
    assert code == 0, err
    plan = tmp_path / "plans" / "plan.yaml"
    assert read_plan(plan).stages[0].options["reward_model"] == "../rm"
    assert read_plan(plan).data.path == "../prefer.jsonl"
    assert str(tmp_path) not in plan.read_text().partition("\n")[2]
    assert json.loads(out)["situation"]


def test_a_plan_replaces_no_file_unasked(call, tmp_path):
    """A launch file that is there is left alone unless it says the same or --force is given; what
    the plan is made from is never replaced.
    """
    (tmp_path / "train.jsonl").write_text(PAIRS)
    (tmp_path / "answers.yaml").write_text(
        "task: qa\ngpu: RTX 4090\nmodel: Qwen/Qwen3-8B\ndata: {path: train.jsonl}\n"
    )
    asked = ["--json", "--answers", "answers.yaml", "--plan"]
    assert call(*asked, "plan.yaml")[0] == 0
    written = (tmp_path / "plan.yaml").read_text()
    assert call(*asked, "plan.yaml")[0] == 0
    edited = written.replace("learning_rate: ", "learning_rate: 0.5 # was ")
    (tmp_path / "plan.yaml").write_text(edited)
    code, out, err = call(*asked, "plan.yaml")
    assert (code, "name another file, or add --force" in err) == (2, True)
    document = json.loads(out)  # the answer stands, and why the plan was not written
    assert document["recommendation"]["composition"]
    assert document["error"][0]["where"] == "--plan plan.yaml"
    assert (tmp_path / "plan.yaml").read_text() == edited
    assert call(*asked, "plan.yaml", "--force")[0] == 0
    assert (tmp_path / "plan.yaml").read_text() == written
    for name in ("train.jsonl", "answers.yaml", tmp_path / "train.jsonl"):
        before = (tmp_path / name).read_text()
        code, out, err = call(*asked, name, "--force")
        assert (code, "it is never overwritten" in err) == (2, True), err
        assert (tmp_path / name).read_text() == before


def test_every_plan_that_advice_makes_reads_back(call, tmp_path):
    """Whatever the task, budget and card, the launch file passes its own reader."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "prefer.jsonl").write_text(preferences(600))
    made = 0
    for task, data in (
        ("qa", "pairs.jsonl"),
        ("generation", "pairs.jsonl"),
        ("domain_expertise", "pairs.jsonl"),
        ("chat_assistant", "prefer.jsonl"),
        ("other", "pairs.jsonl"),
    ):
        for budget in ("low", "high"):
            for gpu in ("Tesla T4", "A100 80GB", "none", "unknown"):
                name = f"{task}-{budget}-{gpu.replace(' ', '')}.yaml"
                code, _, err = call(
                    "--json",
                    "--task",
                    task,
                    "--budget",
                    budget,
                    "--gpu",
                    gpu,
                    "--model",
                    "Qwen/Qwen3-0.6B",
                    "--data",
                    data,
                    "--plan",
                    name,
                )
                assert code == 0, err
                read_plan(tmp_path / name)
                made += 1
    assert made == 40


def test_a_way_on_can_be_pasted(call, tmp_path):
    """Where the answer trains nothing, the line that trains all the same goes through a shell as it
    stands.
    """
    (tmp_path / "text.txt").write_text(PARAGRAPHS)
    asked = shlex.split(
        "--json --task domain_expertise --depth domain_knowledge --gpu 'A100 80GB' "
        "--model Qwen/Qwen3-0.6B --data text.txt --plan p.yaml"
    )
    code, out, err = call(*asked)
    assert code == 3
    document = json.loads(out)
    assert (document["plan"], len(document["missing"])) == (None, 1)
    assert not (tmp_path / "p.yaml").exists()
    line = err.split("to train all the same: ")[1].splitlines()[0]
    (tmp_path / "FILE").with_suffix(".jsonl").write_text(PAIRS)
    flags = shlex.split(line.partition(" (")[0].replace("FILE", "FILE.jsonl"))
    assert parse_composition(flags[1]).chain
    assert (flags[0], flags[2]) == ("--choose", "--force")
    code, out, err = call(*asked, *flags)
    assert (code, json.loads(out)["plan"] is not None) == (0, True), err


@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.parametrize(
    "chain", ["cpt", "cpt>sft", "sft>sft", "sft>dpo", "sft>rm>rm>ppo", "sft>rm>ppo>ppo"]
)
def test_every_plan_that_is_chosen_reads_back(call, tmp_path, chain, scheme):
    """No chosen composition gets a launch file that its own reader refuses: settings keep to what a
    method refuses, and no two stages share a name.
    """
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "text.txt").write_text(PARAGRAPHS)
    (tmp_path / "prefer.jsonl").write_text(preferences())
    data = (
        ["--data", "text.txt", "--examples", "pairs.jsonl"]
        if chain.startswith("cpt")
        else ["--data", "prefer.jsonl"]
    )
    asked = [
        *shlex.split("--json --task other --gpu 'A100 80GB' --model Qwen/Qwen3-0.6B"),
        *data,
        "--choose",
        f"{chain}+{scheme}",
        "--force",
        "--plan",
        "plan.yaml",
    ]
    code, _, err = call(*asked)
    assert code == 0, err
    stages = read_plan(tmp_path / "plan.yaml").stages
    assert [stage.objective for stage in stages] == chain.split(">")
    assert {stage.start_from for stage in stages} <= {None, "sft"}
    assert {stage.packing for stage in stages if stage.objective == "cpt"} <= {scheme != "prefix"}


def test_a_setting_that_the_method_refuses_gives_way_with_the_reason(call, tmp_path):
    """A prefix goes without packing, and the plan says why."""
    (tmp_path / "text.txt").write_text(PARAGRAPHS)
    asked = shlex.split(
        "--json --task domain_expertise --gpu unknown --model Qwen/Qwen3-0.6B "
        "--data text.txt --choose cpt+prefix --force"
    )
    assert call(*asked, "--plan", "plan.yaml")[0] == 0
    text = (tmp_path / "plan.yaml").read_text()
    assert "packing: false" in text
    assert "the update prefix does not go with true: several rows would share one prefix" in text
    assert "the update prefix does not go with true: it drops the cache" in text


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("Legal", "such as legal"),
        ("Legal dept", "such as legal-dept"),
        ("abteilung-ö", "such as abteilung-o"),
        ("x/y", "such as x-y"),
        ("法", ""),
    ],
)
def test_a_task_that_cannot_be_a_folder_is_refused_where_it_is_named(call, tmp_path, name, fit):
    """Flags and answers files keep to the names that a plan allows, and say which would do."""
    (tmp_path / "a.jsonl").write_text(PAIRS)
    (tmp_path / "answers.yaml").write_text(
        json.dumps({"task": "multi_department", "tasks": {name: "a.jsonl"}})
    )
    for asked in (
        ["--json", "--task", "multi_department", "--tasks", f"{name}=a.jsonl"],
        ["--json", "--answers", "answers.yaml"],
    ):
        code, _, err = call(*asked)
        assert (code, f"the name is '{name}'" in err, "lower-case letters" in err, fit in err) == (
            2,
            True,
            True,
            True,
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json"], "task is not stated"),
        (["--json", "--task", "qq"], "--task is 'qq'"),
        (["--json", "--task", "qa", "--gpu", "RTX 4099"], "4099"),
        (["--json", "--task", "qa", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--json", "--task", "qa", "--data", "empty.jsonl"], "empty"),
        (["--json", "--task", "qa", "--data", "table.xlsx"], "CSV"),
        (["--json", "--task", "qa", "--data", "letter.docx"], "CSV"),
        (["--json", "--task", "qa", "--data", "paper.pdf"], "CSV"),
        (["--json", "--task", "qa", "--data", "odd.jsonl"], "column"),
        (["--json", "--task", "qa", "--data", "broken.jsonl"], "broken.jsonl:2"),
        (["--json", "--task", "qa", "--model", "./emptyfolder"], "config.json"),
        (["--json", "--task", "qa", "--n-tasks", "3", "--tasks", "a=x.jsonl"], "n_tasks is 3"),
        (
            ["--json", "--task", "qa", "--plan", "p.yaml", "--gpu", "unknown"],
            "data.path is missing, and a plan needs it",
        ),
        (["--json", "--answers", "answers.yaml"], "answers.yaml:1:1: unknown key 'tsk'"),
        (["--json", "--answers", "none.yaml"], "no such file"),
        (["--json", "--task", "qa", "--rules", "none.yaml"], "no such file"),
        (["--jsn"], "no such option"),
        (["run"], "there is no ./plan.yaml"),
        (["run", "plan.yaml", "--task", "qa"], "both a plan and answers"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["--task", "qa", "run"], "flags before the command"),
        (["rules", "document/scenari-5"], "did you mean 'document/scenario-5'"),
        (["check", "nowhere.csv"], "nowhere.csv"),
        (["estimate"], "nothing to estimate"),
        (["estimate", "--model", "Qwen/Qwen3-8B", "--rank", "0"], "rank"),
        (["estimate", "--specs", "answers.yaml"], 'such as [{"model"'),
        (["--json", "--task", "qa", "--data-tokens", "nan"], "--data-tokens is nan"),
        (["--json", "--task", "qa", "--data-rows", "inf"], "--data-rows is inf"),
        (["--json", "--model", "a/b", "--model-params-b", "nan"], "--model-params-b is nan"),
        (["--json", "--task", "qa", "--budget", "usd=nan,hours=inf"], "--budget.hours is inf"),
    ],
    ids=lambda value: "-".join(value[:4])[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_a_clear_error(call, tmp_path, arguments, said):
    """Exit code 2, what is wrong and the next step on stderr, no traceback, no new file; with --json
    the same on stdout as one document, else nothing.
    """
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("table.xlsx", "letter.docx"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(200))
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7\n" + bytes(100))
    (tmp_path / "odd.jsonl").write_text('{"foo": 1, "bar": 2}\n' * 5)
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", \n')
    (tmp_path / "emptyfolder").mkdir()
    (tmp_path / "answers.yaml").write_text("tsk: qa\n")
    before = sorted(tmp_path.iterdir())
    code, out, err = call(*arguments)
    assert code == 2, err
    assert bool(json.loads(out)["error"]) if "--json" in arguments else out == ""
    assert said.lower() in err.lower()
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_every_command_says_in_the_list_what_its_own_help_says(call):
    """The line in `advise --help` is the first sentence of the command's own help, and every module
    that defines a command is in the list.
    """
    import click

    from advisor import commands

    _, listed, _ = call("--help")
    for name, line in COMMANDS.items():
        command = advise.get_command(click.Context(advise), name)
        assert line.removesuffix(".") == command.get_short_help_str(limit=200).removesuffix(".")
        assert line in " ".join(listed.split())
    modules = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    defined = {
        name
        for name in modules
        if isinstance(getattr(import_module(f"advisor.commands.{name}"), name, None), click.Command)
    }
    assert defined == set(COMMANDS)


def test_an_unknown_command_is_a_clear_error(call):
    """Exit code 2, and nothing is loaded by that name."""
    code, out, err = call("session")
    assert (code, out) == (2, "")
    assert "unknown command 'session'" in err


def test_without_a_terminal_the_wizard_points_to_json(call):
    """No terminal, no questions: exit 2 and the flag for scripts."""
    code, _, err = call()
    assert code == 2
    assert "--json" in err


def test_an_unplanned_exception_is_called_a_bug(call, monkeypatch, tmp_path):
    """Exit code 70, and the trace goes to a file that is named."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("advisor.commands.probe.probe_machine", lambda: 1 / 0)
    code, _, err = call("probe")
    assert code == 70
    assert "this is a bug" in err
    assert "ZeroDivisionError" in next(tmp_path.glob("advise-bug-*.log")).read_text()


def test_answers_come_from_standard_input_too(call, monkeypatch):
    """`--answers -` reads YAML or JSON from stdin."""
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"task": "generation", "gpu": "unknown"}'))
    )
    code, out, _ = call("--json", "--answers", "-")
    assert (code, json.loads(out)["recommendation"]["composition"]) == (0, "sft+lora")


def test_a_closed_standard_input_is_an_empty_one(call, monkeypatch):
    """`<&-` ends with what is missing, never as a bug."""
    for arguments, said in (
        (["--json", "--answers", "-"], "a map with the keys"),
        (["estimate", "--json", "--specs", "-"], "not valid JSON"),
        ([], "--json"),
    ):
        monkeypatch.setattr(sys, "stdin", None)
        code, _, err = call(*arguments)
        assert (code, said in err) == (2, True), err


def shell(line, folder):
    """A line of shell with `advise` in it; returns exit code and what was said on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line.replace("advise", f"{sys.executable} -m advisor")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["rules", "--help", "rules lint --json"])
def test_a_reader_that_leaves_early_is_no_failure(command, tmp_path):
    """`advise ... | head` ends quietly with exit code 0, in text as in JSON."""
    assert shell(f"advise {command} | true; exit ${{PIPESTATUS[0]}}", tmp_path) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_not_a_bug(tmp_path):
    """A full disk behind standard output is exit code 4, with one sentence."""
    for command in ("rules", "--json --task qa --gpu unknown --model Qwen/Qwen3-8B"):
        assert shell(f"advise {command} > /dev/full", tmp_path) == (
            4,
            "the output: no space left to write it\n  free some space, or choose another place\n",
        )


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    """A folder deleted under a shell is named as that."""
    (tmp_path / "gone").mkdir()
    code, err = shell("cd gone && rmdir ../gone && advise probe", tmp_path)
    assert (code, err) == (
        4,
        "the folder that this was started in is no longer there\n  cd into one that is\n",
    )


@pytest.mark.parametrize(
    ("number", "readable", "code", "said"),
    [
        (errno.EACCES, False, 2, "no permission to read it"),
        (errno.EACCES, True, 4, "no permission to write here"),
        (errno.ENOSPC, True, 4, "no space left"),
        (errno.ENAMETOOLONG, True, 2, "File name too long"),
        (errno.ENOENT, True, 70, "this is a bug"),
    ],
)
def test_what_the_system_refuses_is_told_apart_from_bugs(
    call, monkeypatch, tmp_path, number, readable, code, said
):
    """A missing permission, a full disk or an impossible name says so with its file; a file of ours
    that is missing is a bug.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: readable)

    def refuse():
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))

    monkeypatch.setattr("advisor.commands.probe.probe_machine", refuse)
    found, _, err = call("probe")
    assert (found, said in err, "file" in err) == (code, True, True), err


def test_rules_can_be_listed_and_explained(call):
    """`advise rules` lists, `advise rules ID` explains with its source."""
    code, out, _ = call("rules")
    assert code == 0
    assert "document/scenario-5" in out
    code, out, _ = call("rules", "document/scenario-5")
    assert code == 0
    assert "Scenario 5: Limited Budget, One GPU" in out
    assert "Wilson Wu" in out


def test_rules_diff_names_the_situations_that_change(call, monkeypatch):
    """`advise rules diff A B`: the step, the condition, the rules and an example with both answers,
    as text and as data.
    """
    compare, known = comparing.compare_answers, {}

    def compared(first, second):
        """What takes seconds, and is the same for the text and for the data."""
        sets = (first.digest, second.digest)
        if sets not in known:
            known[sets] = compare(first, second)
        return known[sets]

    monkeypatch.setattr(comparing, "compare_answers", compared)
    code, out, err = call("rules", "diff", "document", "shipped")
    assert code == 0, err
    assert "knowledge_source: where the facts that the answers need should come from" in out
    assert "base/knowledge-weights -> evidence/" in out
    assert ": sft+lora -> rag" in out
    code, out, err = call("rules", "diff", "document", "shipped", "--json")
    steps = json.loads(out)["steps"]
    assert {step["step"] for step in steps} >= {"chain", "rank", "settings"}
    code, out, err = call("rules", "diff", "shipped", str(ROOT / "rules"))
    assert code == 0
    assert out.endswith("every situation has the same answer\n")


@pytest.mark.parametrize("words", [["shipped"], ["shipped", "nowhere"], ["a", "b", "c"]])
def test_rules_diff_says_what_a_rule_set_is(words, call):
    """One, three or an unknown one: bad input, and what is allowed."""
    code, out, err = call("rules", "diff", *words)
    assert code == 2
    assert not out
    assert "`shipped`, `document` (the guide alone), a file of rules" in err


def test_a_mapping_makes_odd_columns_usable(call, tmp_path):
    """`--map question=COL answer=COL` works for check, for advice, and is kept in the plan."""
    (tmp_path / "odd.jsonl").write_text(
        "".join(
            json.dumps({"foo": f"What is {i}?", "bar": f"It is {i}."}) + "\n" for i in range(60)
        )
    )
    code, out, err = call("check", "odd.jsonl", "--map", "question=foo", "answer=bar", "--json")
    assert code == 0, err
    assert json.loads(out)["kind"] == "paired"
    code, out, err = call(
        *shlex.split(
            "--json --task qa --gpu none --model Qwen/Qwen3-0.6B --data odd.jsonl "
            "--map question=foo answer=bar"
        )
    )
    assert code == 0, err
    assert json.loads(out)["plan"]["data"]["mapping"] == {"question": "foo", "answer": "bar"}


def test_check_shows_the_page_of_broken_data(call, tmp_path):
    """Where the kind was recognised the page is printed, and the exit code says that nothing can be
    trained.
    """
    (tmp_path / "train.jsonl").write_text(
        '{"question": "What?", "answer": ""}\n' * 10 + '{"question": "Who?", "answer": "Me."}\n'
    )
    code, out, _ = call("check", "train.jsonl")
    assert code == 2
    assert "answer" in out


def test_a_plan_of_a_sharded_model_says_how_it_is_started(call, tmp_path):
    """The file's header and its line of the strategy say how it starts and why, and the message
    packs it for the machine with the GPUs.
    """
    (tmp_path / "train.jsonl").write_text(PAIRS)
    flags = shlex.split(
        "--json --task qa --data train.jsonl --model meta-llama/Llama-3.1-70B "
        "--gpu 'A100 SXM4 40GB' --gpus 8 --plan plan.yaml"
    )
    code, _, err = call(*flags)
    text = (tmp_path / "plan.yaml").read_text()
    assert code == 0
    assert "strategy: fsdp" in text
    assert "expected: sharded over 8 GPUs" in text
    assert "advise run" in text.splitlines()[0]
    assert "advise export plan.yaml --to bundle" in err


def test_a_plan_in_the_datas_own_folder_can_be_written_again(call, tmp_path):
    """What lies in a folder of data is never replaced, a launch file aside."""
    (tmp_path / "train.jsonl").write_text(PAIRS)
    flags = shlex.split("--json --task qa --data . --model Qwen/Qwen3-8B --gpu 'RTX 4090'")
    assert [call(*flags, "--plan", "plan.yaml")[0] for _ in range(2)] == [0, 0]
    (tmp_path / "plan.yaml").write_text((tmp_path / "plan.yaml").read_text() + "# mine\n")
    assert call(*flags, "--plan", "plan.yaml")[0] == 2
    assert call(*flags, "--plan", "plan.yaml", "--force")[0] == 0
    assert call(*flags, "--plan", "train.jsonl", "--force")[0] == 2
    assert (tmp_path / "train.jsonl").read_text() == PAIRS


@pytest.mark.parametrize("name", remedies())
def test_what_helps_without_training_is_explained_like_a_method(call, name):
    """By the name that stands in an answer: how one begins, and the rules that lead to it."""
    code, out, _ = call("rules", name)
    assert code == 0
    assert remedy(name).meaning in " ".join(out.split())
    assert "recommended by" in out
    assert not remedy(name).first or "begin" in out


def test_a_denied_signal_is_in_the_line_to_type(call, tmp_path):
    (tmp_path / "a.yaml").write_text(
        "task: qa\nbudget: {hours: 0.1}\nsignals: {prompting_tried: false, rag_tried: true}\nmodel:"
        " meta-llama/Llama-3.3-70B-Instruct\ngpu: RTX 4090\n"
        "data: {kind: paired, rows: 5000, tokens: 1500000}\n"
    )
    code, out, _ = call("--json", "--answers", "a.yaml")
    commands = [way["command"] for way in json.loads(out)["nothing_fits"]["ways_out"]]
    assert code == 3
    assert commands
    assert all(
        "--signal prompting_tried=no" in command and "--signal rag_tried" in command
        for command in commands
    )
    assert (
        call("--json", "--task", "qa", "--gpu", "unknown", "--signal", "prompting_tried=maybe")[0]
        == 2
    )


def test_a_flag_has_one_value_and_limits_go_together(call):
    """Nothing that was typed is dropped: two values of one flag are a fault, two limits are both
    kept.
    """
    code, _, err = call(*shlex.split("--json --task qa --task other --gpu none --gpu H100"))
    assert code == 2
    assert "--task is given 2 times: qa, other" in err
    assert "--gpu is given 2 times" in err
    assert call("--json", "--task", "qa", "--budget", "usd=5,usd=6")[0] == 2
    code, out, _ = call(
        *shlex.split("--json --task qa --gpu unknown --budget usd=5 --budget hours=3")
    )
    assert code == 0
    facts = json.loads(out)["situation"]["facts"]
    assert (facts["budget_usd"], facts["budget_hours"]) == (5, 3)


def test_the_time_of_several_tasks_is_that_of_all_their_examples(call, tmp_path):
    """Each task's rows are read once, whichever task has the longest row; stated amounts are of all
    tasks together.
    """
    long = json.dumps({"question": "What? " + "word " * 600, "answer": "Much."}) + "\n"
    (tmp_path / "small.jsonl").write_text(PAIRS + long)
    (tmp_path / "large.jsonl").write_text(
        "".join(PAIRS.replace("What is", f"{part}: what is") for part in range(50))
    )
    flags = ("--json", "--model", "Qwen/Qwen3-8B", "--gpu", "RTX 4090")

    def hours(*question):
        _, out, _ = call(*flags, *question)
        return json.loads(out)["recommendation"]["estimate"]["hours"]

    large = hours("--task", "qa", "--data", "large.jsonl")
    assert (
        hours("--task", "multi_department", "--tasks", "a=small.jsonl", "--tasks", "b=large.jsonl")
        > 0.9 * large
    )
    stated = ("--data-kind", "paired", "--data-rows", "5000", "--data-tokens", "1500000")
    assert hours("--task", "multi_department", "--n-tasks", "12", *stated) < 2 * hours(
        "--task", "qa", *stated
    )


def test_each_of_several_tasks_is_measured_on_a_base_that_is_loaded_once(call, tmp_path):
    """The whole time that advice says is that of all tasks as the estimate of its plan says it of
    each, without loading their base again.
    """
    names = ("legal", "sales", "hr")
    for name in names:
        rows = [
            {"prompt": f"{name}, question {n}?", "completion": f"In {name} it takes {n} days."}
            for n in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [part for name in names for part in ("--tasks", f"{name}={name}.jsonl")]
    flags = ("--task", "multi_department", *tasks, "--model", "Qwen/Qwen3-8B", "--gpu", "RTX 4090")
    advice = json.loads(call("--json", *flags, "--plan", "plan.yaml")[1])
    said = advice["recommendation"]["estimate"]["times"]
    single = [one["times"] for one in json.loads(call("estimate", "plan.yaml", "--json")[1])]
    assert len(single) == 3
    total = (sum(one["total_s"] for one in single) - 2 * single[0]["load_s"]) / 3600
    assert said["total_hours"] == pytest.approx(total, rel=0.05)


def test_a_model_without_weights_is_refused_before_anything_is_written(call, tmp_path):
    """A folder with a configuration alone can be advised on, and a run says what is missing, with
    no run folder left behind.
    """
    (tmp_path / "a.jsonl").write_text(PAIRS)
    (tmp_path / "m").mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 300,
    }
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    code, _, err = call("run", "--task", "qa", "--data", "a.jsonl", "--model", "m", "--gpu", "none")
    assert code == 2
    assert "has no weights" in err
    assert "has no tokenizer" in err
    assert not (tmp_path / "runs").exists()


def test_the_line_of_a_written_plan_starts_it_where_it_can(call, tmp_path):
    """Here where it trains here; where the GPU is in another machine it is carried there."""
    (tmp_path / "train.jsonl").write_text(PAIRS)
    flags = ("--json", "--task", "qa", "--data", "train.jsonl", "--model", "Qwen/Qwen3-0.6B")
    for gpu, said in (
        ("none", "start it with: advise run plan.yaml"),
        ("RTX 4090", "carry it to the GPU: advise export plan.yaml --to bundle"),
    ):
        _, _, err = call(*flags, "--gpu", gpu, "--plan", "plan.yaml", "--force")
        assert said in err


@pytest.mark.parametrize(
    ("name", "said"),
    [("learning_rate", "a key of plan.yaml"), ("lora/lrr", "did you mean 'lora/lr'?")],
)
def test_a_name_that_is_no_rule_is_explained(call, name, said):
    """A key of a plan is no rule, and no misspelt one."""
    code, _, err = call("rules", name)
    assert code == 2
    assert said in err


def test_one_answer_is_one_answer(call):
    """PPO tries one answer to each prompt, GRPO several."""
    assert "one answer to each prompt" in call("rules", "ppo")[1]
    assert "answers to each prompt (key `generations`)" in call("rules", "grpo")[1]


def test_a_fault_in_what_the_flags_are_made_of_is_said_in_words():
    """Flags are made of the facts as the command is imported: a fault of that file is no bug."""
    code = (
        "from advisor.ground.errors import InputError\n"
        "from advisor.ruleset import facts\n"
        "def broken(*_): raise InputError('not valid YAML', where='facts.yaml:3:1')\n"
        "facts.load_facts = broken\n"
        "from advisor.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "facts.yaml:3:1: not valid YAML\n"
