"""Optional features: each is a folder that may be missing, broken, or somebody else's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.export.exporter import ExportRequest
from advisor.extras.merged.extra import export
from advisor.ground.extras import extras
from tests.data.conftest import jsonl

ROOT = Path(__file__).resolve().parents[2]
PLAN = """\
version: 1
model: m/m
data: {path: train.jsonl}
stages: [{name: sft, objective: sft, update: lora, learning_rate: 1e-4}]
"""
# Runs each command line of argv[2] with the extra of argv[1] hidden, and prints what came of it.
HIDING = """
import contextlib, io, json, sys
from tests.conftest import hide

hide(sys.argv[1])
commands = json.loads(sys.argv[2])
from advisor.cli import main
ended = []
for command in commands:
    out, err, sys.argv[1:] = io.StringIO(), io.StringIO(), command
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            ended.append((end.code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""
ROWS = [{"prompt": f"How much is {n} and 1?", "completion": str(n + 1)} for n in range(40)]


def run_without(name, folder, *commands):
    """(exit code, standard output, standard error) of each command, with one extra hidden."""
    done = subprocess.run(
        [sys.executable, "-c", HIDING, name, json.dumps(commands)], cwd=folder, timeout=120,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


KEYS = {  # of a plan, and what is said of one where its extra is missing
    "hub": ("push_to: mia/shop", ["5:1: unknown key 'push_to'", "the extra 'hub' is not here"]),
    "trackers": ("trackers: [wandb]", ["5:1: unknown key 'trackers'",
                 "the extra 'trackers' is not here", "remove the key"]),
}  # fmt: skip
# What stands under `extras` belongs to an extra; one that is not there is to be installed.
SONAR = ("extras: {sonar: {depth: 3}}", ["5:10: unknown key 'sonar'", "ADVISE_METHODS"])


@pytest.mark.parametrize("name", list(extras()))
def test_everything_else_works_without_an_extra(name, tmp_path):
    """Advice, the check of data and the forms of an export do not need it; in a plan the fault names
    the key, the extra and what to do.
    """
    jsonl(tmp_path, ROWS, "train.jsonl")
    key, said = KEYS.get(name, SONAR)
    (tmp_path / "plan.yaml").write_text(f"{PLAN}{key}\n")
    advice = ["--json", "--task", "qa", "--gpu", "none", "--data", "train.jsonl"]
    commands = (
        advice,
        ["check", "train.jsonl", "--json"],
        ["export", "--help"],
        ["run", "plan.yaml"],
    )
    codes, outputs, errors = zip(*run_without(name, tmp_path, *commands), strict=True)
    assert codes == (0, 0, 0, 2)
    assert json.loads(outputs[0])["recommendation"]["composition"]
    assert (json.loads(outputs[1])["rows"], "Forms of a run's result:" in outputs[2]) == (40, True)
    assert [part for part in said if part not in errors[3]] == []


OWN = '''
from msgspec import Struct

from advisor.extras.protocol import Extra, Form


class Keys(Struct, frozen=True, kw_only=True):
    """Its keys."""

    depth: int = 1


class Sonar(Extra):
    """Looks below."""

    NAME = "sonar"
    HELP = "looks below"
    KEYS = Keys
    EXPORTERS = (
        Form(
            NAME="chart",
            HELP="a chart of the sea",
            TAKES="plan",
            function="advisor.extras.sonar.chart:export",
        ),
    )

    def recognise(self, path):
        return (lambda path, options: print("a sea") or 0) if path.endswith(".sea") else None


EXTRA = Sonar()
'''
SHOW = """
import json, sys
from advisor.plan.read import read_plan
from advisor.plan.write import plan_text
print(plan_text(read_plan(sys.argv[1])))
"""


def test_a_folder_of_ones_own_brings_extras(tmp_path):
    """Their keys, files and forms are known; one that is broken takes only itself away."""
    sonar, plan = "own/extras/sonar", f"{PLAN}extras: {{sonar: {{depth: 3}}}}\n"
    for name, text in {
        f"{sonar}/extra.py": OWN,
        f"{sonar}/chart.py": "import nothing_of_this_name",
        "own/extras/leaky/extra.py": "1 / 0\n",
        "deep.sea": "",
        "plan.yaml": plan,
        "wrong.yaml": plan.replace("depth", "depht"),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def ended(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT), "ADVISE_METHODS": str(tmp_path / "own")},
        )  # fmt: skip

    shown = ended("-c", SHOW, "plan.yaml")
    assert "extras:\n  sonar:\n    depth: 3\n" in shown.stdout, shown.stderr
    listed = ended("-m", "advisor", "export", "--help").stdout
    assert [one for one in ("a chart of the sea", "merged") if one not in listed] == []
    check = ended("-m", "advisor", "check", "deep.sea")
    export = ended("-m", "advisor", "export", "plan.yaml", "--to", "chart")
    run = ended("-m", "advisor", "run", "wrong.yaml")
    assert (check.stdout, export.returncode, run.returncode) == ("a sea\n", 2, 2)
    assert "advisor.extras.sonar.chart cannot be used: ModuleNotFoundError" in export.stderr
    assert "unknown key 'depht'" in run.stderr
    assert "did you mean 'depth'" in run.stderr
    for done in (check, export, run):
        assert "extra leaky is left out: ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("code", "expected"), [(0, ["Serve it:  vllm serve run/export/merged"]), (4, [])]
)
def test_a_merged_result_says_how_to_serve_it(tmp_path, monkeypatch, code, expected):
    """The next step, in the words of the current folder; a failure has its own."""
    (tmp_path / "run/export/merged").mkdir(parents=True)
    (tmp_path / "run/export/merged/merge.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("device_of", "record_of", "writing_stages"):
        monkeypatch.setattr(f"advisor.extras.merged.extra.{name}", lambda *_, **__: "cpu")
    said = []
    wanted = ExportRequest(
        source=tmp_path / "run", out=None, only=None, say=said.append, run_tool=lambda *_: code
    )
    assert (export(wanted), said[:1]) == (code, expected)
