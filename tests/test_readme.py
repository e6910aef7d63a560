"""The README is true: its set-up lines are the ones it promises, and its commands run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
LINES = [
    line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
SETUP = [line for line in LINES if line.startswith("python3 -m venv")]
HAVE = TEXT.partition("| I have | do |")[2].partition("\n\n")[0]
COMMANDS = list(
    dict.fromkeys(
        [*(line for line in LINES if line not in SETUP), *re.findall(r"`(advise[^`]*)`", HAVE)]
    )
)


OF_A_RUN = ("advise chat", "advise export --to merged")  # these take the newest run
TRAINING = ("advise run ", *OF_A_RUN)


def advise(arguments, folder, **others):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "advisor", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
        **others,
    )


def test_there_are_exactly_two_set_up_lines():
    """One runs the demo, one runs the tests, and CI calls the second."""
    assert len(SETUP) == 2
    assert SETUP[0].endswith("advise demo")
    assert SETUP[1].endswith("-m pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


AXOLOTL = """\
base_model: Qwen/Qwen3-0.6B
datasets: [{path: train.jsonl, ds_type: json, type: alpaca_chat.load_qa}]
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 0.0002
bf16: true
output_dir: out
"""


def prepare(folder, model=None):
    """Fill a folder with the files that the README's commands name.

    Without a model they are about one that advice can be given on and nobody can train.
    """
    if model is None:
        model = folder / "model"
        write_fake_model(model, CONFIG)
    (folder / "train.jsonl").write_text(
        "".join(
            json.dumps({"question": f"What is {i}?", "answer": f"It is {i}, as ever."}) + "\n"
            for i in range(60)
        )
    )
    shutil.copytree(ROOT / "examples", folder / "examples")
    answers = re.search(r"```yaml\n(task: qa.*?)```", TEXT, flags=re.S)[1]
    (folder / "answers.yaml").write_text(
        answers.replace("gpu: {name: RTX 4090, count: 1}", "gpu: none") + f"model: {model}\n"
    )
    (folder / "axolotl.yaml").write_text(AXOLOTL)
    done = advise(["--json", "--answers", "answers.yaml", "--plan", "plan.yaml"], folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    prepare(folder)
    return folder


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if not command.startswith(TRAINING)]
)
def test_a_command_of_the_readme_runs(command, call, prepared, tmp_path):
    """Each ends with exit code 0 (the bare wizard: with its hint, since a test has no terminal)."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    words = shlex.split(command)
    code, out, err = call(*words[1:])
    assert (words[0], code) == ("advise", 2 if words == ["advise"] else 0), err + out


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith(TRAINING)]
)
def test_a_command_of_the_readme_that_needs_a_model_runs(command, tiny_model, tmp_path):
    """It trains, or takes the newest run."""
    prepare(tmp_path, tiny_model)
    words = shlex.split(command)[1:]
    if "MODEL" in words:
        words[words.index("MODEL")] = str(tiny_model)
        words += ["--gpu", "none", "--max-steps", "2"]
    if command.startswith(OF_A_RUN):
        trained = advise(["run", "plan.yaml", "--max-steps", "2"], tmp_path)
        assert trained.returncode == 0, trained.stderr
    done = advise(words, tmp_path, input="What is 7?\n")
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_transcript_is_what_is_printed(call, monkeypatch):
    """The first screen's transcript is the command's real output."""
    monkeypatch.setenv("COLUMNS", "80")
    command, shown = re.search(r"```console\n\$ (.*?)\n(.*?)```", TEXT, flags=re.S).groups()
    code, out, err = call(*shlex.split(command)[1:])
    assert code == 0, err
    printed = [line.rstrip() for line in out.splitlines()]
    lines = [line.rstrip() for line in shown.strip("\n").splitlines() if line.strip() != "..."]
    assert len(lines) > 10
    assert [line for line in lines if line not in printed] == []


def test_every_command_is_in_the_table():
    """The table of commands names each command that exists, and no other."""
    from advisor.cli import COMMANDS

    named = set(re.findall(r"^\| `advise ([a-z]+)", TEXT, flags=re.M))
    assert named == set(COMMANDS)


def test_the_accuracy_is_todays():
    """How wrong the estimates are is what the pages on accuracy say, in rounded numbers."""
    section = " ".join(
        TEXT.partition("## How wrong the estimates are")[2].partition("##")[0].split()
    )
    memory = (ROOT / "docs" / "accuracy.md").read_text("utf-8")
    times = (ROOT / "docs" / "accuracy-time.md").read_text("utf-8")

    def row(page, name):
        return [cell.strip() for cell in re.search(rf"\| {name} \|(.*)\|", page)[1].split("|")]

    def whole(cell):
        return f"{float(cell.rstrip('%')):.0f} %"

    inside = row(memory, "inside the band")
    went, ran_out = row(memory, "went through"), row(memory, "ran out of memory")
    assert went[3] == "0"
    for words in (
        f"Against {re.search(r'^([0-9]+) peaks', memory, re.M)[1]} peaks",
        f"median error is {whole(row(memory, 'median error')[0])};",
        f"{whole(inside[0])} of them lie inside the band, {whole(inside[1])} where",
        f"{ran_out[4]} of {ran_out[0]} runs that ran out of memory are predicted to",
        f"none of {went[0]} that went through is called too big",
        f"within {float(row(times, 'median factor')[0]) * 100 - 100:.0f} %",
        f"{whole(row(times, 'within a factor of 1.5')[0])} within a factor of 1.5",
    ):
        assert words in section, words
