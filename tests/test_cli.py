"""The command line as a person meets it: exit codes, messages, and nothing half-written."""

import errno
import hashlib
import itertools
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from unittest.mock import Mock

import click
import pytest

from advisor import commands
from advisor.cli import COMMANDS, advise
from advisor.commands import demo
from advisor.methods import schemes
from advisor.plan.read import read_plan
from advisor.record.stage import KeptBase
from tests.conftest import ROOT
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG

PARAGRAPHS = "\n\n".join(f"A paragraph about {i}, {'with more to say ' * 20}" for i in range(60))
MODEL = "--gpu 'RTX 4090' --model Qwen/Qwen3-8B"
SMALL = "--model Qwen/Qwen3-0.6B"


def rows(count=60, **form):
    """Rows of a file; {} in a text becomes the number of the row."""
    return "".join(
        json.dumps({key: text.format(n) for key, text in form.items()}) + "\n" for n in range(count)
    )


# More than a handful, with which a prompt would be tried first.
PAIRS = rows(240, question="What is {0} plus {0}?", answer="It is twice {0}, of course.")
PREFERENCE = {"prompt": "Question {}?", "chosen": "A good answer {}.", "rejected": "Bad {}."}


@pytest.fixture
def typed(call):
    """A line as it is typed behind `advise`; returns exit code, stdout, stderr."""
    return lambda line: call(*shlex.split(line))


@pytest.fixture
def answer(typed):
    """The document that a line behind `advise --json` prints."""
    return lambda line: json.loads(typed(f"--json {line}")[1])


@pytest.fixture
def files(tmp_path):
    """A folder with one file of each kind."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "prefer.jsonl").write_text(rows(600, **PREFERENCE))
    (tmp_path / "text.txt").write_text(PARAGRAPHS)
    return tmp_path


def test_json_is_one_document_and_messages_go_to_stderr(typed):
    """Standard output holds the JSON document alone, with every key that scripts build on."""
    code, out, err = typed("--json --task qa --gpu 'RTX 4090'")
    document = json.loads(out)
    assert (code, document["schema_version"], "suggestion" in err) == (0, 1, True)
    assert (document["missing"], document["plan"]) == (["data.path"], None)
    for found, keys in (
        (document, "recommendation guide alternatives flips unknown warnings situation hardware"
                   " data rules"),
        (document["recommendation"], "composition remedies stages decided_by because estimate"),
        (document["recommendation"]["estimate"], "peak_gib low_gib high_gib hours usd fits"),
    ):  # fmt: skip
        assert set(keys.split()) <= set(found)


@pytest.mark.parametrize("model", ["answerdotai/ModernBERT-base", "distilbert-base-uncased"])
@pytest.mark.parametrize("task", ["chat_assistant", "reasoning", "generation"])
def test_an_encoder_is_not_taken_to_write(typed, answer, model, task):
    """A model that only reads is taken for sorting; for text, one that writes is named."""
    asked = f"--model {model} --data-kind paired --gpu 'RTX 4090' --task"
    code, out, err = typed(f"--json {asked} {task}")
    assert (code, "recommendation" in json.loads(out)) == (2, False)
    assert [one for one in ("it cannot write an answer", "such as Qwen/") if one not in err] == []
    if task == "reasoning":
        found = answer(f"{asked} classification --budget high")
        assert found["recommendation"]["composition"] == "encoder:sft+full"


def test_advice_warns_of_little_data_as_the_check_does(typed, answer, tmp_path):
    """A stage says if examples are few, in a file or stated; documents do not count as examples."""
    (tmp_path / "few.jsonl").write_text(
        rows(30, prompt="Is {} odd?", completion="Count to {}, see.")
    )
    corpus = "Document {} tells of a building and its windows, and of who lived there."
    (tmp_path / "corpus.txt").write_text("\n\n".join(corpus.format(n) for n in range(30)))
    # A teacher writes the missing ones, so that training is advised.
    texts = f"--task generation {MODEL} --teacher texts"
    beside = (
        f"--task generation --gpu none {SMALL} --data corpus.txt --choose 'cpt>sft+lora' --force"
    )
    words = "30 rows are too few: below 50 it seldom works; 500 to 10,000 are usual"
    for asked, said in (
        (f"{texts} --data few.jsonl", [words]),
        (f"{texts} --data-kind paired --data-rows 30", [words]),
        (beside, []),
        (f"{beside} --examples few.jsonl", [words]),
    ):
        few = [text for text in answer(asked)["warnings"] if "too few" in text]
        warnings = [text for text in few if not text.startswith("continued pre-training: ")]
        assert warnings == [f"supervised fine-tuning: {one}" for one in said], asked
    assert words in " ".join(typed("check few.jsonl")[1].split())


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(10**9, ["200,000 tokens on average are longer than the 1,024"]), (10**6, [])],
)
def test_rows_longer_than_what_is_read_are_told(answer, tokens, said):
    """Time and cost count what fits, and the answer says if stated rows are longer on average."""
    asked = f"--task qa {MODEL} --data-kind paired --data-rows 5000 --data-tokens {tokens}"
    found = [text for text in answer(asked)["warnings"] if "longer than" in text]
    assert [words in text for words, text in zip(said, found, strict=True)] == [True] * len(said)


def test_departments_miss_their_files_alone(answer):
    """One module a team needs a file a team; a model's name only warns against what was stated."""
    assert answer(f"--task multi_department --n-tasks 2 {MODEL}")["missing"] == ["tasks"]
    stated = answer(f"--task qa {MODEL} --signal base_model_untuned")["warnings"]
    assert "follows instructions already; you said otherwise, and that counts" in " ".join(stated)


def test_a_denied_signal_is_in_the_line_to_type(typed, tmp_path):
    """What was said not to be so is said again by the ways out."""
    (tmp_path / "a.yaml").write_text(
        "task: qa\nbudget: {hours: 0.1}\nsignals: {prompting_tried: false, rag_tried: true}\n"
        "model: meta-llama/Llama-3.3-70B-Instruct\ngpu: RTX 4090\n"
        "data: {kind: paired, rows: 5000, tokens: 1500000}\n"
    )
    code, out, _ = typed("--json --answers a.yaml")
    commands = [way["command"] for way in json.loads(out)["nothing_fits"]["ways_out"]]
    assert (code, bool(commands)) == (3, True)
    words = {"--signal prompting_tried=no", "--signal rag_tried"}
    assert [one for one in commands for word in words if word not in one] == []


def test_the_time_of_several_tasks_is_that_of_all_their_examples(answer, tmp_path):
    """Each task's rows are read once, whichever is longest; stated amounts are of all tasks."""
    long = json.dumps({"question": "What? " + "word " * 600, "answer": "Much."}) + "\n"
    (tmp_path / "small.jsonl").write_text(PAIRS + long)
    parts = (PAIRS.replace("What is", f"{part}: what is") for part in range(50))
    (tmp_path / "large.jsonl").write_text("".join(parts))
    stated = "--data-kind paired --data-rows 5000 --data-tokens 1500000"
    large, several, one, twelve = (
        answer(f"{MODEL} --task {question}")["recommendation"]["estimate"]["hours"]
        for question in (
            "qa --data large.jsonl",
            "multi_department --tasks a=small.jsonl --tasks b=large.jsonl",
            f"qa {stated}",
            f"multi_department --n-tasks 12 {stated}",
        )
    )
    assert several > 0.9 * large
    assert twelve < 2 * one


def test_each_of_several_tasks_is_measured_on_a_base_that_is_loaded_once(typed, answer, tmp_path):
    """Advice gives the whole time of all tasks as their plan's estimate does, with one load."""
    names = ("legal", "sales", "hr")
    for name in names:
        form = {"prompt": f"{name}, question {{}}?", "completion": f"In {name} it takes {{}} days."}
        (tmp_path / f"{name}.jsonl").write_text(rows(240, **form))
    tasks = " ".join(f"--tasks {name}={name}.jsonl" for name in names)
    advice = answer(f"--task multi_department {tasks} {MODEL} --plan plan.yaml")
    single = [one["times"] for one in json.loads(typed("estimate plan.yaml --json")[1])]
    assert len(single) == 3
    total = (sum(one["total_s"] for one in single) - 2 * single[0]["load_s"]) / 3600
    said = advice["recommendation"]["estimate"]["times"]["total_hours"]
    assert said == pytest.approx(total, rel=0.05)


def test_a_stage_that_scores_its_answers_needs_a_reward_model_or_one_trained_before(typed, files):
    """Without either the plan is refused; the named folder must hold a model and is in the plan."""
    plan = files / "plans" / "plan.yaml"
    plan.parent.mkdir()
    (files / "rm").mkdir()
    asked = f"--json --task chat_assistant --gpu 'RTX 4090' {SMALL} --data prefer.jsonl --force"
    for chosen, code, said in (
        ("rloo+lora", 2, "reward_model is missing"),
        ("rloo+lora", 2, "--reward-model"),
        ("'sft>rm>ppo+lora'", 0, ""),
        ("rloo+lora --reward-model rm", 2, "rm: holds no model"),
    ):
        found, _, err = typed(f"{asked} --plan plans/plan.yaml --choose {chosen}")
        assert (found, said in err) == (code, True), err
    (files / "rm" / "config.json").write_text("{}")
    code, _, err = typed(f"{asked} --plan plans/plan.yaml --choose {chosen}")
    assert code == 0, err
    read = read_plan(plan)
    assert (read.stages[0].options["reward_model"], read.data.path) == ("../rm", "../prefer.jsonl")
    assert str(files) not in plan.read_text().partition("\n")[2]


@pytest.mark.parametrize("data", ["pairs.jsonl", "rows"])
def test_a_plan_replaces_no_file_unasked(call, tmp_path, data):
    """A file stays unless it says the same or --force is given; data and inputs always stay."""
    (tmp_path / "rows").mkdir()
    inside = "rows/pairs.jsonl" if data == "rows" else data
    (tmp_path / inside).write_text(PAIRS)
    (tmp_path / "answers.yaml").write_text(
        f"task: qa\ngpu: RTX 4090\nmodel: Qwen/Qwen3-8B\ndata: {{path: {data}}}\n"
    )
    asked = ["--json", "--answers", "answers.yaml", "--plan"]
    place = f"{data}/plan.yaml" if data == "rows" else "plan.yaml"  # an own launch file aside
    path = tmp_path / place
    assert [call(*asked, place)[0] for _ in range(2)] == [0, 0]
    written = path.read_text()
    edited = written.replace("learning_rate: ", "learning_rate: 0.5 # was ")
    path.write_text(edited)
    code, out, err = call(*asked, place)
    assert (code, "name another file, or add --force" in err) == (2, True)
    document = json.loads(out)  # the answer stands, and why the plan was not written
    assert document["recommendation"]["composition"]
    assert (document["error"][0]["where"], path.read_text()) == (f"--plan {place}", edited)
    assert (call(*asked, place, "--force")[0], path.read_text()) == (0, written)
    before = {name: (tmp_path / name).read_text() for name in (inside, "answers.yaml")}
    for name in (*before, tmp_path / inside):
        code, _, err = call(*asked, name, "--force")
        assert (code, "it is never overwritten" in err) == (2, True), err
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_every_plan_that_advice_makes_reads_back(answer, files):
    """Whatever the task, budget and card, its launch file holds the recommendation and is read."""
    tasks = ("qa", "generation", "domain_expertise", "chat_assistant", "other")
    cards = ("Tesla T4", "A100 80GB", "none", "unknown")
    for place, (task, gpu) in enumerate(itertools.product(tasks, cards)):
        budget = ("low", "high")[(place + place // 4) % 2]  # each of a task's, and of a card's
        data = "prefer" if task == "chat_assistant" else "pairs"
        asked = f"--task {task} --budget {budget} --gpu '{gpu}' {SMALL} --data {data}.jsonl"
        chosen = answer(f"{asked} --plan {place}.yaml")["recommendation"]["composition"]
        assert read_plan(files / f"{place}.yaml").origin.composition == chosen


@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.parametrize(
    "chain", ["cpt", "cpt>sft", "sft>sft", "sft>dpo", "sft>rm>rm>ppo", "sft>rm>ppo>ppo"]
)
def test_every_plan_that_is_chosen_reads_back(typed, files, chain, scheme):
    """Settings keep to what a method refuses, and no two stages share a name."""
    data = "text.txt --examples pairs.jsonl" if chain.startswith("cpt") else "prefer.jsonl"
    asked = f"--task other --gpu 'A100 80GB' {SMALL} --data {data} --force --plan plan.yaml"
    code, _, err = typed(f"--json {asked} --choose '{chain}+{scheme}'")
    assert code == 0, err
    stages = read_plan(files / "plan.yaml").stages
    assert [stage.objective for stage in stages] == chain.split(">")
    assert {stage.start_from for stage in stages} <= {None, "sft"}
    assert {stage.packing for stage in stages if stage.objective == "cpt"} <= {scheme != "prefix"}


def test_a_setting_that_the_method_refuses_gives_way_with_the_reason(typed, files, approved):
    """A prefix goes without packing, and the plan says why."""
    asked = f"--task domain_expertise --gpu unknown {SMALL} --data text.txt"
    assert typed(f"--json {asked} --choose cpt+prefix --force --plan plan.yaml")[0] == 0
    text = (files / "plan.yaml").read_text()
    approved([line for line in text.splitlines() if "does not go with" in line])
    assert "packing: false" in text


@pytest.mark.parametrize("name", ["Legal", "Legal dept", "abteilung-ö", "x/y", "法"])
def test_a_task_that_cannot_be_a_folder_is_refused_where_it_is_named(call, files, name, approved):
    """Flags and answers files keep to the names that a plan allows, and say which would do."""
    answers = {"task": "multi_department", "tasks": {name: "pairs.jsonl"}}
    (files / "answers.yaml").write_text(json.dumps(answers))
    flags = ["--task", "multi_department", "--tasks", f"{name}=pairs.jsonl"]
    said = (call("--json", *asked) for asked in (flags, ["--answers", "answers.yaml"]))
    approved([[code, err.splitlines()] for code, _, err in said])


def test_a_mapping_makes_odd_columns_usable(answer, tmp_path):
    """`--map question=COL answer=COL` is kept in the plan; of two limits both are kept."""
    (tmp_path / "odd.jsonl").write_text(rows(240, foo="What is {}?", bar="It is {}."))
    asked = f"--task qa --gpu none {SMALL} --data odd.jsonl --map question=foo answer=bar"
    document = answer(f"{asked} --budget usd=5 --budget hours=3")
    assert document["plan"]["data"]["mapping"] == {"question": "foo", "answer": "bar"}
    facts = document["situation"]["facts"]
    assert (facts["budget_usd"], facts["budget_hours"]) == (5, 3)


@pytest.mark.parametrize(
    ("machine", "said", "written"),
    [
        (f"--gpu none {SMALL}", "start it with: advise run 'my plan.yaml'\n", "advise run"),
        (f"--gpu 'RTX 4090' {SMALL}",
         "carry it to the GPU: advise export 'my plan.yaml' --to bundle\n", "advise run"),
        ("--gpu 'A100 SXM4 40GB' --gpus 8 --model meta-llama/Llama-3.1-70B",
         "carry it to the GPU: advise export 'my plan.yaml' --to bundle\n", "expected: sharded over 8 GPUs"),
    ],
)  # fmt: skip
def test_a_written_plan_says_how_it_is_started(typed, files, machine, said, written):
    """It says if it starts here or is carried to other GPUs, and how and why it shares them."""
    _, _, err = typed(f"--json --task qa --data pairs.jsonl {machine} --plan 'my plan.yaml'")
    assert said in err
    text = (files / "my plan.yaml").read_text()
    assert ("advise run" in text.splitlines()[0], written in text) == (True, True)
    assert ("strategy: fsdp" in text) is ("--gpus 8" in machine)


def test_a_model_without_weights_is_refused_before_anything_is_written(typed, files):
    """A configuration alone is advised on; a run says what is missing and leaves no folder."""
    write_fake_model(files / "m", CONFIG)
    (files / "m" / "model.safetensors").unlink()
    (files / "m" / "tokenizer.json").unlink()
    code, _, err = typed("run --task qa --data pairs.jsonl --model m --gpu none")
    assert (code, "has no weights" in err, "has no tokenizer" in err) == (2, True, True)
    assert not (files / "runs").exists()


@pytest.mark.parametrize(
    "line",
    [
        "",  # no terminal, no questions: the flag for scripts
        "--jsn",
        "session",
        "run",
        "run plan.yaml --task qa",
        "run nowhere.yaml",
        "--task qa run",
        "check nowhere.csv",
        "estimate",
        "estimate --model Qwen/Qwen3-8B --rank 0",
        "estimate --specs answers.yaml",
        "rules document/scenari-5",
        "rules learning_rate",
        "rules lora/lrr",
        # Nothing that was typed is dropped: two values of one flag are a fault.
        "--task qa --task other",
        "--task qa --gpu none --gpu H100",
        "--task qa --budget usd=5,usd=6",
        "--task qa --gpu unknown --signal prompting_tried=maybe",
    ],
)
def test_bad_input_is_a_clear_error(typed, tmp_path, line, approved):
    """Exit code 2, what is wrong and what next, on stderr (--json: tests/test_json_errors.py)."""
    (tmp_path / "answers.yaml").write_text("tsk: qa\n")
    code, out, err = typed(line)
    assert (code, out) == (2, "")
    approved(re.sub("(?i)no such option.*", "no such option", err))  # the rest is click's
    assert [path.name for path in tmp_path.iterdir()] == ["answers.yaml"]


def test_every_command_says_in_the_list_what_its_own_help_says(call):
    """The line in `advise --help` is the first sentence of each command's own help."""
    listed = " ".join(call("--help")[1].split())
    for name, line in COMMANDS.items():
        command = advise.get_command(click.Context(advise), name)
        assert line.removesuffix(".") == command.get_short_help_str(limit=200).removesuffix(".")
        assert line in listed
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    modules = {name: import_module(f"advisor.commands.{name}") for name in names}
    defined = {
        name for name in names if isinstance(getattr(modules[name], name, None), click.Command)
    }
    assert defined == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--json --answers -", "a map with the keys"),
        ("estimate --json --specs -", "not valid JSON"),
        ("", "--json"),
    ],
)
def test_a_closed_standard_input_is_an_empty_one(typed, monkeypatch, line, said):
    """`<&-` ends with what is missing, never as a bug."""
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = typed(line)
    assert (code, said in err) == (2, True), err


def shell(line, folder):
    """A line of shell with `advise` in it; returns exit code and what was said on stderr."""
    done = subprocess.run(
        ["bash", "-c", line.replace("advise", f"{sys.executable} -m advisor")],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["rules", "--help", "--json --task qa --gpu unknown"])
def test_a_reader_that_leaves_early_is_no_failure(command, tmp_path):
    """`advise ... | head` ends quietly with exit code 0; a full disk is one sentence and code 4."""
    assert shell(f"advise {command} | true; exit ${{PIPESTATUS[0]}}", tmp_path) == (0, "")
    if os.path.exists("/dev/full"):
        said = "the output: no space left to write it\n  free some space, or choose another place\n"
        assert shell(f"advise {command} > /dev/full", tmp_path) == (4, said)


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    """A folder deleted under a shell is named as that."""
    (tmp_path / "gone").mkdir()
    said = "the folder that this was started in is no longer there\n  cd into one that is\n"
    assert shell("cd gone && rmdir ../gone && advise probe", tmp_path) == (4, said)


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
    """Permissions, full disks and bad names say their file; a missing file of ours is a bug."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: readable)
    refused = OSError(number, os.strerror(number), str(tmp_path / "file"))
    monkeypatch.setattr("advisor.commands.probe.probe_machine", Mock(side_effect=refused))
    found, _, err = call("probe")
    assert (found, said in err, "file" in err) == (code, True, True), err


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


def test_the_demo_trains_on_the_shop_s_rows_and_general_ones(tmp_path, monkeypatch):
    """One file in the user's cache folder, the same every time, with every line of both files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = demo.demo_data()
    assert path.is_relative_to(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (len(lines), all(json.loads(line)["messages"] for line in lines)) == (248, True)
    assert demo.demo_data().read_text(encoding="utf-8").splitlines() == lines
    assert demo.demo_answers("folder", path).value("data_path") == str(path)


def test_the_demo_brings_what_its_base_answers(tmp_path, monkeypatch):
    """Whole, with the day and the versions it was measured with; what is there already stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    demo.demo_data()
    kept = list((tmp_path / "finetune-advisor" / "base").iterdir())
    assert kept
    for path in kept:
        found = json.loads(path.read_text("utf-8"))
        text = json.dumps(found["value"], sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == found["sha256"]
        assert path.stem == found["fingerprint"][:32]
        counts = [len(found["value"][name]) for name in ("losses", "general", "samples")]
        assert counts == [25, 24, 16]
        about = KeptBase.from_dict(found["value"]["kept"])
        assert re.match(r"measured on 20\d\d-\d\d-\d\d \(a CPU elsewhere, torch 2", about.sentence)
        path.write_text("own")
    demo.demo_data()
    assert {path.read_text() for path in kept} == {"own"}


@pytest.mark.long  # about two minutes on two idle cores
def test_the_demo_learns_and_loses_nothing(tmp_path, smollm):
    """On the real model it answers as the shop does, with a general loss at most a tenth higher.
    What it brings of its base is that of the model made of the wheel, and was not measured again.
    """
    cache = tmp_path / "cache" / "finetune-advisor"
    cache.mkdir(parents=True)
    (cache / "models").symlink_to(smollm.parent)
    runs = {"ADVISE_RUNS": str(tmp_path / "runs.jsonl"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "advisor", "demo", "--output", str(tmp_path / "run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **runs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    verdict, (stage,) = record["verdict"], record["stages"]
    found = stage["evaluation"]
    assert (verdict["word"], verdict["general"]["status"]) == ("better", "kept")
    assert found["holdout_loss_after"] < found["holdout_loss_before"] - 1.5
    assert found["general"]["after"] <= 1.1 * found["general"]["before"]
    asked = [one["tuned"] for one in found["samples"] if "Kettlewren" in one["expected"]]
    style = r"Hello, and thank you for writing to Kettlewren![\s\S]*Your Kettlewren Team"
    assert len([answer for answer in asked if re.fullmatch(style, answer)]) >= 0.8 * len(asked) > 0
    assert "  General  kept" in done.stdout
    bundled = json.loads(next(demo.MEASURED.iterdir()).read_text("utf-8"))["value"]["kept"]
    same = [
        version(name).split(".")[:2] == was.split(".")[:2]
        for name, was in bundled["versions"].items()
    ]
    is_known = all(same) and (smollm / "complete.json").is_file()
    assert ("  base     measured on" in done.stdout) == is_known
    assert re.search(r"^  asked  .*\n  before  .*\n  now   ", done.stderr, re.M)
