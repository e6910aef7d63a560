"""Nothing that a person, a file or a flag can say is a bug of ours: exit code 2, place and next step; with
--json standard output holds exactly one JSON document, whatever goes wrong."""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from advisor.cli import COMMANDS, advise
from advisor.commands.choosing import AT
from advisor.commands.output import print_json
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.record.files import read_record
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from tests.conftest import PAIRS, ROOT, examples
from tests.launch.conftest import MACHINE, STAND_IN, shop

__all__ = ["shop"]  # a fixture

ERROR = jsonschema.Draft7Validator(schemas(load_rules())["error"])
ASKED = "--task qa --gpu none"
CASES = {  # arguments -> where the first fault is, and what the message says of it
    # flags that cannot be read
    "--json --nope": "--nope",
    "--json --bugdet low --task qa": "--bugdet",
    "--json --task": "--task",
    "--json=yes --task qa": "--json",
    "--json chek": "",
    "--json plan.yaml": "",
    "--json run": "",
    "--task qa run --json": "",
    "--json --data-rows many": "--data-rows",
    "check --json": "FILE...",
    "check --json pairs.jsonl more": "--json",
    "check --json pairs.jsonl --seq-len 2": "--seq-len",
    "run --json --max-steps 0": "--max-steps",
    "run --json --stes 3": "--stes",
    "estimate --json --gpus two": "--gpus",
    "probe --json extra": "advise probe",
    "chat --json": "--json",
    # answers
    "--json": ("task", "task is not stated"),
    "--json --task qq": ("--task", "--task is 'qq'"),
    "--json --task qa --task code": "--task",
    "--json --task qa --budget lots": "--budget",
    "--json --task qa --budget usd=nan": ("--budget usd=", "--budget usd is nan"),
    "--json --task qa --budget $1.50/h": ("--budget", "a price by time is no limit"),
    "--json --task qa --budget 1,50": ("--budget", "can be read in two ways"),
    "--json --task qa --gpu 2x4090-48gb": ("--gpu", "all together?"),
    "--json --task qa --gpu 4090+3090": ("--gpu", "several kinds of GPU"),
    "--json --task qa --depth deep": "--depth",
    "--json --task qa --gpu RTX4099": ("--gpu", "4099"),
    "--json --task qa --data-rows -3": "--data-rows",
    "--json --task qa --gpus 0": "--gpus",
    "--json --task qa --tasks legal": "--tasks",
    "--json --task qa --signal rag_tried --signal rag_tried=no": "--signal rag_tried",
    "--json --task qa --gpu none --data-kind none --data-rows 9": "--data-kind",
    "--json --task chat_assistant --gpu none --model distilbert-base-uncased": "--model",
    "--json --answers none.yaml": ("none.yaml", "no such file"),
    "--json --answers typo.yaml": ("typo.yaml:1:1", "unknown key"),
    "--json --answers broken.yaml": "broken.yaml:2:1",
    f"--json {ASKED} --rules none.yaml": ("none.yaml", "no such file"),
    f"--json {ASKED} --rules typo.yaml": "typo.yaml:2:1",
    "--json --task qa --data-tokens nan": ("--data-tokens", "--data-tokens is nan"),
    "--json --task qa --data-rows inf": ("--data-rows", "--data-rows is inf"),
    "--json --model a/b --model-params-b nan": ("--model-params-b", "--model-params-b is nan"),
    "--json --task qa --budget usd=nan,hours=inf": ("--budget usd=", "--budget hours is inf"),
    "--json --task qa --n-tasks 3 --tasks a=x.jsonl": ("--n-tasks", "n_tasks is 3"),
    # data and models
    f"--json {ASKED} --data table.xlsx": ("table.xlsx", "CSV"),
    f"--json {ASKED} --data letter.docx": ("letter.docx", "a Word document"),
    f"--json {ASKED} --data paper.pdf": ("paper.pdf", "a PDF document"),
    f"--json {ASKED} --data nowhere.jsonl": "nowhere.jsonl",
    f"--json {ASKED} --data empty.jsonl": ("empty.jsonl", "the file is empty"),
    f"--json {ASKED} --data cut.jsonl": "cut.jsonl:2:18",
    f"--json {ASKED} --data odd.jsonl": ("odd.jsonl", "column"),
    f"--json {ASKED} --model ./empty": ("./empty", "config.json"),
    "check --json nowhere.jsonl": ("nowhere.jsonl", "\n  data files here: "),
    "check --json empty.jsonl": "empty.jsonl",
    "check --json odd.jsonl": "odd.jsonl",
    "check --json cut.ipynb": "cut.ipynb:1:12",
    "check --json train.py": "train.py:1:7",
    "check --json trainer_state.json": "trainer_state.json:2:1",
    "check --json pairs.jsonl --map speaker=prompt": "--map",
    "check --json pairs.jsonl --template a=b": "--template",
    "check --json pairs.jsonl --show-row 0": "--show-row 0",
    # choices and plans
    f"--json {ASKED} --choose simpoo": AT,
    f"--json {ASKED} --choose sft+lroa": AT,
    f"--json {ASKED} --choose ia3": AT,
    f"--json {ASKED} --data-kind paired --data-rows 900 --plan p.yaml": (
        "data.path",
        "data.path is missing, and a plan needs it",
    ),
    f"--json {ASKED} --data pairs.jsonl --choose cpt+lora --force --plan p.yaml": "a data file with plain"
    " documents for the stage cpt",
    f"--json {ASKED} --signal prompting_tried --data pairs.jsonl --plan .": "--plan .",
    f"--json {ASKED} --signal prompting_tried --data pairs.jsonl --plan pairs.jsonl": "--plan pairs.jsonl",
    "run --json": "",
    "run --json none.yaml": "none.yaml",
    "run --json typo.yaml": "typo.yaml:1:1",
    "run --json typo.yaml --task qa": "",
    f"run --json {ASKED} --data nowhere.jsonl": "nowhere.jsonl",
    "run --json --task qq": "--task",
    # estimates and the rest
    "estimate --json": "",
    "estimate --json --model none/of-this-name": "--model",
    "estimate --json --specs none.json": "--specs none.json",
    "estimate --json --specs cut.jsonl": "specs:2:1",
    "estimate --json none.yaml": "none.yaml",
    "estimate --json --model Qwen/Qwen3-8B --rank 0": "--rank",
    "rules --json": "--json",
    "rules lint --json --rules none.yaml": "none.yaml",
    "rules diff --json shipped": "",
    "rules diff --json shipped none.yaml": "",
}


@pytest.fixture
def inputs(tmp_path):
    """Files that are wrong, each in its own way, and one that is right."""
    for name, text in {
        "pairs.jsonl": PAIRS,
        "empty.jsonl": "",
        "cut.jsonl": '{"question": "a", "answer": "b"}\n{"question": "a", \n',
        "cut.ipynb": '{"cells": [',
        "train.py": "def f(:\n",
        "trainer_state.json": '{"log_history": [\n',
        "odd.jsonl": '{"foo": 1, "bar": 2}\n' * 5,
        "typo.yaml": "version: 1\ntsk: qa\n",
        "broken.yaml": "task: [qa\n",
        "table.xlsx": "PK\x03\x04" + "\0" * 200,
        "letter.docx": "PK\x03\x04" + "\0" * 200,
        "paper.pdf": "%PDF-1.7\n" + "\0" * 100,
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()


def faults_in(out):
    """The faults of the one document that was printed, which has the published form."""
    document = json.loads(out)
    ERROR.validate(document)
    return document["error"]


@pytest.mark.extra("other_tools")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(line, one if isinstance(one, tuple) else (one, "")) for line, one in CASES.items()],
    ids=CASES,
)
def test_what_goes_wrong_is_one_document(call, inputs, tmp_path, arguments, expected):
    """Every fault says what, where, what is allowed and what next, as stderr does; no new file."""
    before = sorted(tmp_path.iterdir())
    code, out, err = call(*arguments.split())
    where, said = expected
    assert (code, faults_in(out)[0]["where"]) == (2, where), err
    assert err.strip()
    assert (said in err, "Traceback" in out + err) == (True, False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MachineNotReady("no driver", hint="install one"), 4),
        (TrainingFailed("no loss", where="stage sft"), 5),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("of two"), 70),
    ],
    ids=lambda value: str(value)[:20],
)
def test_every_exit_code_has_its_document(call, monkeypatch, error, code):
    """A machine that is not ready, a failed training, a stop, and a bug, which names its log."""
    monkeypatch.setattr("advisor.commands.probe.probe_machine", Mock(side_effect=error))
    ended, out, _ = call("probe", "--json")
    (fault,) = faults_in(out)
    assert ended == code
    if code == 70:
        log = Path(fault["hint"].removeprefix("the details are in "))
        assert "ZeroDivisionError: of two" in log.read_text()


@pytest.mark.parametrize(
    ("mode", "code", "hint"),
    [("nan", 5, True), ("crash", 5, False), ("input", 2, False), ("full", 4, True)],
)
def test_a_run_that_fails_is_one_document(call, shop, monkeypatch, mode, code, hint):
    """The stage, what was wrong in it, and the next step; run.json says the rest, where anything
    was trained.
    """
    monkeypatch.setattr("advisor.launch.call.trainers_root", lambda: STAND_IN)
    monkeypatch.setattr("advisor.launch.call.probe", lambda: MACHINE)
    monkeypatch.setenv("STAND_IN", mode)
    ended, out, _ = call("run", "plan.yaml", "--json", "--output", "run")
    (fault,) = faults_in(out)
    assert (ended, fault["where"]) == (code, "stage sft"), fault
    assert fault["hint"] or not hint
    record = shop / "run" / "run.json"
    assert record.exists() is (mode != "input")
    assert mode == "input" or json.loads(record.read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        (f"--json {ASKED} --data-kind paired --plan p.yaml", "allowed", "--data examples.jsonl"),
        (f"run --json {ASKED} --data-kind paired", "where", "data.path"),
    ],
)
def test_an_answer_stands_beside_what_went_wrong(call, inputs, line, key, value):
    """A plan that cannot be written takes nothing away from the advice."""
    document = json.loads(call(*line.split())[1])
    jsonschema.validate(document, schemas(load_rules())["advice"])
    assert document["recommendation"]["composition"]
    assert document["error"][0][key].startswith(value)


def test_all_faults_are_in_the_document(call, tmp_path):
    """Text names the first twenty faults of a file, JSON all."""
    rows = "".join(f'{{"question": "a{n}", "answer": \n' for n in range(40))
    (tmp_path / "many.jsonl").write_text(rows)
    _, out, err = call("--json", *ASKED.split(), "--data", "many.jsonl")
    assert "more of the same input" in err
    places = [fault["where"] for fault in faults_in(out)]
    assert len(set(places)) == len(places) > 20


OPTIONS = sorted({name for option in advise.params for name in option.opts})
WORDS = st.sampled_from(
    [*COMMANDS, *OPTIONS, "qa", "low", "none", "RTX 4090", "pairs.jsonl", "paired", "-1", "0",
     "nan", "sft+lora", "dpo", "x=y", "--", "-", "--specs", "--set", "--map", "lint", "=", ""]
)  # fmt: skip
NO_TRAINING = {"demo", "chat", "run"}


@examples(2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS | st.text(max_size=6), max_size=7), at=st.integers(0, 7))
@example(words=["--task", "--", "x"], at=0)
@example(words=["rules", "lint"], at=2)
def test_random_arguments_print_one_document(call, inputs, monkeypatch, words, at):
    """Whatever the arguments are: one JSON document, a documented exit code, no traceback."""
    words = [word for word in words if word not in NO_TRAINING and "\0" not in word]
    if {"--help", "-h", "--version", "-V", "--answers", "--specs"} & set(words):
        return  # help is text, and `-` reads standard input
    code, out, err = call(*words[:at], "--json", *words[at:])
    if "--" not in words[:at]:  # else --json is no flag
        document = json.loads(out)
        assert code in (0, 2, 3, 4), err
        assert "Traceback" not in err
        assert code not in (2, 4) or ERROR.is_valid(document), document


RECORD = json.loads((ROOT / "tests" / "record" / "records" / "finished.json").read_text())


@pytest.mark.parametrize("size", ["0", "-3", "x", "²", "1", "5", "9" * 30])
def test_any_size_of_the_screen_prints(call, monkeypatch, size):
    """COLUMNS and LINES of 0, as some editors set them, and other nonsense do not stop output."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    code, out, _ = call("rules", "lora/lr")
    assert (code, "lora/lr" in out) == (0, True)
    assert max(map(len, out.splitlines())) <= 1000


FILES = {
    "a pipe that nobody writes into": ("estimate", "pipe.yaml"),
    "a folder": ("estimate", "folder.yaml"),
    "a file without an end": ("estimate", "endless.yaml"),
    "the home of nobody": ("run", "~nobody-has-this-name/plan.yaml"),
    "a name with a zero byte": ("estimate", "a\0b.yaml"),
    "data for a plan": ("run", "calls.jsonl"),
    "data for answers": ("--answers", "calls.jsonl"),
    "answers that end as a text does": ("--answers", "nowhere.txt"),
    "a plan with a space": ("a b.yaml", "--why"),
    "an address": ("check", "https://a.org/b.jsonl"),
    "a bucket": ("check", "s3://a/b.jsonl"),
    "questions of nothing": ("check", "nulls.jsonl"),
    "calls of nothing": ("check", "calls.jsonl"),
    "an infinite weight": ("check", "weights.jsonl"),
    "a huge weight": ("check", "huge.jsonl"),
}


@pytest.mark.parametrize("line", FILES.values(), ids=FILES.keys())
def test_no_file_is_a_bug(call, tmp_path, line, approved):
    """What cannot be read is named, with what is wrong."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "nulls.jsonl").write_text('{"prompt": null, "completion": "Hello"}\n' * 9)
    turn = {"role": "assistant", "content": "Hello", "name": "shop"}
    for file, more in (
        ("calls", {"tool_calls": [1]}),
        ("weights", {"weight": float("inf")}),
        ("huge", {"weight": 10**400}),
    ):
        row = {"messages": [{"role": "user", "content": "Hi"}, {**turn, **more}]}
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    code, out, err = call(*line)
    assert code == 2
    approved([out.splitlines(), err.splitlines()])


RECORDS = {
    "too deep": ("[" * 100_000, "nested too deeply"),
    "too long a number": ('{"schema_version": ' + "1" * 5000 + "}", "digits"),
    "no number": ('{"schema_version": 1e999}', "too large for a number"),
    "half a character": ('{"schema_version": 1, "name": "\\ud800"}', "surrogate"),
    "no text": (b"\xff\xfe", "cannot be read"),
    "a list": ("[]", "no schema_version"),
    "a stage without its objective": (
        json.dumps({**RECORD, "stages": [{"name": "sft"}]}),
        "stages[0].objective is missing",
    ),
    "a stage elsewhere": (
        json.dumps({**RECORD, "stages": [{**RECORD["stages"][0], "folder": "../../etc"}]}),
        "a folder inside the run folder",
    ),
}


@pytest.mark.parametrize(("content", "told"), RECORDS.values(), ids=RECORDS.keys())
def test_a_damaged_record_is_named(tmp_path, content, told):
    """run.json with anything else in it is refused, with its path."""
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_record(tmp_path, hint="run the plan again")
    said = ("run.json", told, "run the plan again")
    assert [words for words in said if words not in caught.value.text()] == []


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "a link to /dev/zero"),
        (os.mkfifo, "not a regular"),
    ],
    ids=["endless", "pipe"],
)
def test_a_record_that_never_ends_is_not_read(tmp_path, monkeypatch, make, told):
    """A link to /dev/zero, or a pipe, does not fill memory or wait for ever."""
    monkeypatch.setattr("advisor.record.files.MOST_BYTES", 1000)
    make(tmp_path / "run.json")
    with pytest.raises(InputError, match=told):
        read_record(tmp_path)


def test_json_holds_whatever_a_row_does(capsys):
    """A number that is not finite, and half a character, are printed as JSON can hold them."""
    print_json({"sample": [float("inf"), 1.5], "file": "caf\udce9.jsonl"})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"sample": ["inf", 1.5], "file": "caf\udce9.jsonl"}


def test_the_answers_of_a_person_need_no_file(call):
    """`--answers` takes what the shell hands over as a pipe, with `<(...)`."""
    reading, writing = os.pipe()
    os.write(writing, b"{task: qa, gpu: RTX 4090}")
    os.close(writing)
    code, out, _ = call("--json", "--answers", f"/dev/fd/{reading}")
    assert (code, json.loads(out)["plan"]) == (0, None)


NAMES = ("name", "objective", "update", "quantization", "scheduler")
NO_TEXT = {
    (key, value) for key in NAMES for value in ("[sft]", "{a: 1}", "[[lora]]", "3", "null")
} - {("quantization", "null")}  # that is none


@pytest.mark.parametrize(("key", "value"), sorted(NO_TEXT))
def test_a_name_that_is_no_text_has_a_place(call, tmp_path, key, value):
    """What is looked up in a table may be anything in a plan; the line says what it should be."""
    stage = {"name": "sft", "objective": "sft", "update": "lora", "quantization": "nf4"}
    lines = "".join(f"    {name}: {text}\n" for name, text in {**stage, key: value}.items())
    (tmp_path / "plan.yaml").write_text(
        "version: 1\nname: shop\nmodel: Qwen/Qwen3-4B\ndata: {path: train.jsonl}\nstages:\n  -\n"
        f"{lines}    epochs: 1\n"
    )
    code, _, err = call("estimate", "plan.yaml")
    assert (code, f"`{key}`" in err, "plan.yaml:" in err) == (2, True, True), err
