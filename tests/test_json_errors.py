"""--json: standard output holds exactly one JSON document, whatever goes wrong."""

import json

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from advisor.cli import COMMANDS, advise
from advisor.commands.session import AT
from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from tests.conftest import PAIRS, examples
from tests.launch.conftest import MACHINE, STAND_IN, shop

__all__ = ["shop"]  # a fixture

ERROR = jsonschema.Draft7Validator(schemas(load_rules())["error"])
ASKED = "--task qa --gpu none"
CASES = {  # arguments -> (exit code, where the first fault is)
    # flags that cannot be read
    "--json --nope": (2, "--nope"),
    "--json --bugdet low --task qa": (2, "--bugdet"),
    "--json --task": (2, "--task"),
    "--json=yes --task qa": (2, "--json"),
    "--json chek": (2, ""),
    "--json plan.yaml": (2, ""),
    "--json run": (2, ""),
    "--task qa run --json": (2, ""),
    "--json --data-rows many": (2, "--data-rows"),
    "check --json": (2, "FILE..."),
    "check --json pairs.jsonl more": (2, "--json"),
    "check --json pairs.jsonl --seq-len 2": (2, "--seq-len"),
    "run --json --max-steps 0": (2, "--max-steps"),
    "run --json --stes 3": (2, "--stes"),
    "estimate --json --gpus two": (2, "--gpus"),
    "probe --json extra": (2, "advise probe"),
    "chat --json": (2, "--json"),
    # answers
    "--json": (2, "task"),
    "--json --task qq": (2, "--task"),
    "--json --task qa --task code": (2, "--task"),
    "--json --task qa --budget lots": (2, "--budget"),
    "--json --task qa --budget usd=nan": (2, "--budget.usd"),
    "--json --task qa --depth deep": (2, "--depth"),
    "--json --task qa --gpu RTX4099": (2, "--gpu"),
    "--json --task qa --data-rows -3": (2, "--data-rows"),
    "--json --task qa --gpus 0": (2, "--gpus"),
    "--json --task qa --tasks legal": (2, "--tasks"),
    "--json --task qa --signal rag_tried --signal rag_tried=no": (2, "--signal rag_tried"),
    "--json --task qa --gpu none --data-kind none --data-rows 9": (2, "data_kind"),
    "--json --task chat_assistant --gpu none --model distilbert-base-uncased": (2, "model_family"),
    "--json --answers none.yaml": (2, "none.yaml"),
    "--json --answers typo.yaml": (2, "typo.yaml:1:1"),
    "--json --answers broken.yaml": (2, "broken.yaml:2:1"),
    f"--json {ASKED} --rules none.yaml": (2, "none.yaml"),
    f"--json {ASKED} --rules typo.yaml": (2, "typo.yaml:2:1"),
    # data and models
    f"--json {ASKED} --data nowhere.jsonl": (2, "nowhere.jsonl"),
    f"--json {ASKED} --data empty.jsonl": (2, "empty.jsonl"),
    f"--json {ASKED} --data cut.jsonl": (2, "cut.jsonl:2:18"),
    f"--json {ASKED} --data odd.jsonl": (2, "odd.jsonl"),
    f"--json {ASKED} --model ./empty": (2, "./empty"),
    "check --json nowhere.jsonl": (2, "nowhere.jsonl"),
    "check --json empty.jsonl": (2, "empty.jsonl"),
    "check --json odd.jsonl": (2, "odd.jsonl"),
    "check --json pairs.jsonl --map speaker=prompt": (2, "--map"),
    "check --json pairs.jsonl --template a=b": (2, "--template"),
    "check --json pairs.jsonl --show-row 0": (2, "--show-row 0"),
    # choices and plans
    f"--json {ASKED} --choose simpoo": (2, AT),
    f"--json {ASKED} --choose sft+lroa": (2, AT),
    f"--json {ASKED} --choose ia3": (2, AT),
    f"--json {ASKED} --data-kind paired --data-rows 900 --plan p.yaml": (2, "data.path"),
    f"--json {ASKED} --data pairs.jsonl --plan .": (2, "--plan ."),
    f"--json {ASKED} --data pairs.jsonl --plan pairs.jsonl": (2, "--plan pairs.jsonl"),
    "run --json": (2, ""),
    "run --json none.yaml": (2, "none.yaml"),
    "run --json typo.yaml": (2, "typo.yaml:1:1"),
    "run --json typo.yaml --task qa": (2, ""),
    f"run --json {ASKED} --data nowhere.jsonl": (2, "nowhere.jsonl"),
    "run --json --task qq": (2, "--task"),
    # estimates and the rest
    "estimate --json": (2, ""),
    "estimate --json --model none/of-this-name": (2, "estimate"),
    "estimate --json --specs none.json": (2, "--specs none.json"),
    "estimate --json --specs cut.jsonl": (2, "specs:2:1"),
    "estimate --json none.yaml": (2, "none.yaml"),
    "estimate --json --model Qwen/Qwen3-8B --rank 0": (2, "estimate.rank"),
    "rules --json": (2, "--json"),
    "rules lint --json --rules none.yaml": (2, "none.yaml"),
    "rules diff --json shipped": (2, ""),
    "rules diff --json shipped none.yaml": (2, ""),
}


@pytest.fixture
def inputs(tmp_path):
    """Files that are wrong, each in its own way, and one that is right."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", \n')
    (tmp_path / "odd.jsonl").write_text('{"foo": 1, "bar": 2}\n' * 5)
    (tmp_path / "typo.yaml").write_text("version: 1\ntsk: qa\n")
    (tmp_path / "broken.yaml").write_text("task: [qa\n")
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize("arguments", CASES)
def test_what_goes_wrong_is_one_document(call, inputs, arguments):
    """Every fault with what, where, what is allowed and the next step; the same on stderr."""
    expected, where = CASES[arguments]
    code, out, err = call(*arguments.split())
    document = json.loads(out)
    ERROR.validate(document)
    assert code == expected, err
    assert document["error"][0]["where"] == where
    assert err.strip()
    assert "Traceback" not in out + err


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

    def fail():
        raise error

    monkeypatch.setattr("advisor.commands.probe.probe_machine", fail)
    ended, out, _ = call("probe", "--json")
    document = json.loads(out)
    ERROR.validate(document)
    assert ended == code
    (fault,) = document["error"]
    if code == 70:
        log = fault["hint"].removeprefix("the details are in ")
        assert "ZeroDivisionError: of two" in open(log).read()  # noqa: SIM115


@pytest.mark.parametrize(
    ("mode", "code", "hint"),
    [("nan", 5, True), ("crash", 5, False), ("input", 2, False), ("full", 4, True)],
)
def test_a_run_that_fails_is_one_document(call, shop, monkeypatch, mode, code, hint):
    """The stage, what was wrong in it, and the next step; run.json in the folder says the rest."""
    monkeypatch.setattr("advisor.launch.call.trainers_root", lambda: STAND_IN)
    monkeypatch.setattr("advisor.launch.call.probe", lambda: MACHINE)
    monkeypatch.setenv("STAND_IN", mode)
    ended, out, _ = call("run", "plan.yaml", "--json", "--output", "run")
    document = json.loads(out)
    ERROR.validate(document)
    (fault,) = document["error"]
    assert (ended, fault["where"], bool(fault["hint"]) or not hint) == (code, "stage sft", True), (
        fault
    )
    assert json.loads((shop / "run" / "run.json").read_text())["status"] == "failed"


def test_an_answer_stands_beside_what_went_wrong(call, inputs):
    """A plan that cannot be written takes nothing away from the advice; data that train nothing
    are described all the same.
    """
    _, out, _ = call("--json", *ASKED.split(), "--data-kind", "paired", "--plan", "p.yaml")
    document = json.loads(out)
    jsonschema.validate(document, schemas(load_rules())["advice"])
    assert document["recommendation"]["composition"]
    assert document["error"][0]["allowed"].startswith("--data FILE")
    _, out, _ = call("run", "--json", *ASKED.split(), "--data-kind", "paired")
    document = json.loads(out)
    jsonschema.validate(document, schemas(load_rules())["advice"])
    assert document["error"][0]["where"] == "data.path"
    code, out, _ = call("check", "--json", "odd.jsonl")
    document = json.loads(out)
    assert code == 2
    ERROR.validate(document)


def test_all_faults_are_in_the_document(call, tmp_path):
    """Text names the first twenty faults of a file, JSON all."""
    rows = "".join(f'{{"question": "a{n}", "answer": \n' for n in range(40))
    (tmp_path / "many.jsonl").write_text(rows)
    _, out, err = call("--json", *ASKED.split(), "--data", "many.jsonl")
    assert "more of the same input" in err
    faults = json.loads(out)["error"]
    assert len(faults) > 20
    assert len({fault["where"] for fault in faults}) == len(faults)


def test_secrets_are_masked_in_the_document(call):
    """As in the text."""
    token = "hf_" + "aB3" * 12
    _, out, err = call("--json", "--task", token)
    assert token not in out + err


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
    if {"--help", "-h", "--version", "--answers", "--specs"} & set(words):
        return  # help is text, and `-` reads standard input
    code, out, err = call(*words[:at], "--json", *words[at:])
    if "--" in words[:at]:
        return  # then --json is no flag
    document = json.loads(out)
    assert code in (0, 2, 3, 4), err
    assert "Traceback" not in err
    if code in (2, 4):
        ERROR.validate(document)
