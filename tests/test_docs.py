"""The pages are true: the README's lines run, links lead somewhere, flags and commands exist, and the
rooms are those that the layer test keeps.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from advisor.cli import COMMANDS, advise
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG
from tests.test_layers import ORDER

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
LINES = [
    line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
SETUP = [line for line in LINES if line.startswith("python3 -m venv")]
HAVE = TEXT.partition("| I have | do |")[2].partition("\n\n")[0]
README_COMMANDS = list(
    dict.fromkeys(
        [*(line for line in LINES if line not in SETUP), *re.findall(r"`(advise[^`]*)`", HAVE)]
    )
)


OF_A_RUN = ("advise chat", "advise export --to merged")  # these take the newest run
TRAINING = ("advise run ", *OF_A_RUN)


def run_advise(arguments, folder, **others):
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
    """One runs the demo, one runs the tests, and CI calls the second; the page fits on three
    screens, the rest is on its own pages.
    """
    assert len(TEXT.splitlines()) <= 120
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
    done = run_advise(["--json", "--answers", "answers.yaml", "--plan", "plan.yaml"], folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    prepare(folder)
    return folder


@pytest.mark.parametrize(
    "command", [command for command in README_COMMANDS if not command.startswith(TRAINING)]
)
def test_a_command_of_the_readme_runs(command, call, prepared, tmp_path):
    """Each ends with exit code 0 (the bare wizard: with its hint, since a test has no terminal)."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    words = shlex.split(command)
    code, out, err = call(*words[1:])
    assert (words[0], code) == ("advise", 2 if words == ["advise"] else 0), err + out


@pytest.mark.smoke
@pytest.mark.train
@pytest.mark.parametrize(
    "command", [command for command in README_COMMANDS if command.startswith(TRAINING)]
)
def test_a_command_of_the_readme_that_needs_a_model_runs(command, tiny_model, tmp_path):
    """It trains, or takes the newest run."""
    prepare(tmp_path, tiny_model)
    words = shlex.split(command)[1:]
    if "MODEL" in words:
        words[words.index("MODEL")] = str(tiny_model)
        words += ["--gpu", "none", "--max-steps", "2"]
    if command.startswith(OF_A_RUN):
        trained = run_advise(["run", "plan.yaml", "--max-steps", "2"], tmp_path)
        assert trained.returncode == 0, trained.stderr
    done = run_advise(words, tmp_path, input="What is 7?\n")
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


# --------------------------------------------------------------------------- every page


PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "rules/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FAULTS = (ROOT / "tests" / "faults" / "__main__.py").read_text("utf-8")
OTHER_TOOLS = {  # of pytest, of the benchmark for GPUs, of the long form of the faults, of vLLM
    *("--pdb", "--device"),
    "--max-loras",  # of vLLM
    *re.findall(r'add_argument\(\s*"(--[a-z-]+)"', FAULTS),
    *(f"--{name}" for name in re.findall(r'^        \("([a-z]+)", ', FAULTS, re.MULTILINE)),
}
GONE = {"CHANGELOG.md"}  # names what no longer exists

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(page):
    """What a link may name behind #: the headings, as forges spell them, and explicit ids."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@by_name
def test_links_lead_somewhere(page):
    """Every relative link names a file of the project, and a heading of it if it names one."""
    wrong = []
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_each_promise_of_security_names_a_test_that_is_there():
    """The table of SECURITY.md says what shows each of its lines."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", text))
    assert len(named) > 6
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def options():
    """Command, '' for `advise` itself -> its options."""
    with advise.make_context("advise", ["--help"], resilient_parsing=True) as context:
        commands = {name: advise.get_command(context, name) for name in COMMANDS}
    commands[""] = advise
    return {
        name: {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        | {"--help"}
        for name, command in commands.items()
    }


def commands_of(page):
    """Every call of `advise`, and every flag that stands alone, in code of the page."""
    text = page.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    lines += SPAN.findall(BLOCK.sub("", text))
    for line in lines:
        line = line.strip().removeprefix("$ ").partition("  #")[0]
        if re.match(r"(advise\b|--[a-z])", line):
            yield line


@by_name
def test_commands_and_flags_exist(page, options):
    """A page names no command and no flag that `advise` does not have."""
    every = set().union(*options.values()) | OTHER_TOOLS
    wrong = []
    for line in () if page.name in GONE else commands_of(page):
        words = line.split()
        command = words[1] if len(words) > 1 and words[0] == "advise" else ""
        if words[0] == "advise" and re.fullmatch(r"[a-z]+", command) and command not in options:
            wrong.append(line)
        allowed = options.get(command, options[""]) if words[0] == "advise" else every
        wrong += [line for flag in FLAG.findall(line) if flag not in allowed]
    assert wrong == []


def test_the_rooms_are_those_of_the_layer_test():
    """docs/architecture.md lists the rooms that exist, in the order in which they may import."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## The rooms of advisor/")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    shown = [tuple(re.findall(r"`(\w+)`", row)) for row in rows]
    folder = ROOT / "advisor"
    there = [
        tuple(
            room for room in rooms if (folder / room).is_dir() or (folder / f"{room}.py").is_file()
        )
        for rooms in ORDER[1:]  # the first is the package itself
    ]
    assert shown == [rooms for rooms in there if rooms]


def test_the_rooms_of_the_trainers_are_shown():
    """docs/architecture.md names every folder of trainers/, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## The rooms of trainers/")[2].partition("\n## ")[0]
    shown = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
             for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    folders = {path.parent.name for path in (ROOT / "trainers").glob("*/__init__.py")}
    assert shown == folders


def test_the_glossary_is_sorted_and_says_each_word_once():
    """A reader finds a word where the alphabet says."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    words = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)[1:]
    words = [word for word in words if set(word) != {"-"}]
    assert 40 < len(words) <= 60  # a newcomer learns no more
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))


def test_every_key_of_a_plan_has_a_meaning():
    """No key is left to guess at, on docs/plan.md and in an editor."""
    rows = re.findall(
        r"^\| (`.+) \|$", (ROOT / "docs" / "plan.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 40
    assert [row for row in rows if not row.rpartition("|")[2].strip()] == []
