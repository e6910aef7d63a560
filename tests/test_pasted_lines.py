"""What is printed to be pasted is pasted here, into a shell."""

import json
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from advisor.cli import COMMANDS
from advisor.ground import resources as program
from advisor.record.run import FinishedRun, RunRecord
from advisor.render.report import report_page
from advisor.render.run import summary_lines
from tests.conftest import ROOT
from tests.render.test_run import record
from tests.test_docs import SETUP

CALLED = ".venv/bin/advise"  # as people call it who have not activated the environment
ROWS = {
    "chats.jsonl": lambda n: {"messages": [
        {"role": "user", "content": f"Where is order {n}?"},
        {"role": "assistant", "content": f"Order {n} left us on day {n}, and reaches you soon."},
    ]},
    "labels.jsonl": lambda n: {"text": f"text {n} on things", "label": "abc"[n % 3]},
    "pairs.jsonl": lambda n: {"prompt": f"q {n}", "chosen": f"good {n}", "rejected": f"bad {n}"},
    "marks.jsonl": lambda n: {"prompt": f"q {n}", "completion": f"a {n}", "label": n % 2 == 0},
    "sums.jsonl": lambda n: {"prompt": f"What is {n} + 1?", "ground_truth": str(n + 1)},
    "my documents.jsonl": lambda n: {"text": f"Paragraph {n} says what number {n} is. " * 20},
    "calls.jsonl": lambda n: {"prompt": f"Cancel {n}", "completion": json.dumps(
        {"name": "cancel", "arguments": {"order": n}}
    )},
}  # fmt: skip


def script(path: Path, body: str, *, program: str = "/bin/sh") -> None:
    """A program for the shells of these tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{program}\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the program where a virtual environment has it, and nothing on the path."""
    body = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom advisor.cli import main\nmain()"
    script(tmp_path / CALLED, body, program=sys.executable)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    """The environment of a shell that knows nothing of ours."""
    told = {"PATH": "/usr/bin:/bin", "COLUMNS": "80", "TERM": "xterm", "LANG": "C.UTF-8"}
    return {**told, "HOME": str(Path.cwd()), "NO_COLOR": "1", **more}


def pasted(line: str, **more: str) -> str:
    """What a shell prints of a line that it takes; there is no terminal."""
    code, out, err = ended(line, **more)
    assert code == 0, f"{line}\n{err}"
    return out


def ended(line: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a line in a shell."""
    done = subprocess.run(
        ["bash", "-c", line], env=environment(**more), stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def write_rows(name: str) -> None:
    Path(name).write_text("".join(json.dumps(ROWS[name](n)) + "\n" for n in range(60)))


def next_line(name: str) -> str:
    """The line that the check of a file ends with."""
    write_rows(name)
    return pasted(f"{CALLED} check {shlex.quote(name)}").rstrip().rpartition("\nNext: ")[2]


@pytest.mark.parametrize("name", ROWS)
def test_the_line_after_a_check_answers(folder, name):
    """Pasted without a terminal it gives an answer, whatever kind of data was checked."""
    assert "sources and other methods" in pasted(next_line(name))


@pytest.fixture
def typed(folder, terminal):
    """Starts a line in a terminal."""
    return lambda line: terminal("bash", ["-c", line], env=environment())


def test_without_the_task_the_line_asks_for_what_is_open(typed):
    """On a terminal the wizard starts with the data answered: it asks the task, not the file."""
    child = typed(re.sub(r"--task \w+ ", "", next_line("chats.jsonl")))
    child.expect("Known: .*chats.jsonl")
    child.expect("1. What should the model do for you")
    child.send("\r")
    child.expect(r"2\. (?!Where are your examples)")


@pytest.mark.parametrize("more", ["--plan new.yaml", "--why", "--choose lora"])
def test_flags_that_the_wizard_does_not_take_need_the_task(typed, more):
    """The wizard alone asks for it; `--why` is a matter of its menu."""
    write_rows("chats.jsonl")
    child = typed(f"{CALLED} --data chats.jsonl --gpu none {more}; echo ended with $?")
    if more == "--why":
        child.expect("1. What should the model do for you")
        child.send("\r")
        child.expect(r"2\. ")
    else:
        child.expect("alone asks for it")
        child.expect("ended with 2")
        assert not Path("new.yaml").exists()


def test_without_a_terminal_the_missing_task_is_named(folder):
    """Nobody is asked where nobody can answer: exit code 2 says what is missing, and its values."""
    write_rows("chats.jsonl")
    code, _, err = ended(f"{CALLED} --data chats.jsonl")
    assert (code, "task is not stated" in err, "customer_service" in err) == (2, True, True)


def test_the_first_line_of_the_readme_leaves_the_program_on_the_path(folder):
    """Later lines begin with `advise`: pip and demo are played, shell and environment are real."""
    (folder / CALLED).unlink()
    for name, body in {
        "bin/python3": f'exec {shlex.quote(sys.executable)} "$@" --without-pip',
        ".venv/bin/pip": r"printf '#!/bin/sh\necho played $1' > .venv/bin/advise;"
        " chmod +x .venv/bin/advise",
    }.items():
        script(folder / name, body)
    said = pasted(f"{SETUP[0]}\nadvise check", PATH=f"{folder}/bin:/usr/bin:/bin")
    assert said == "played demo\nplayed check\n"


def test_lines_name_the_program_as_it_was_called(folder):
    """Lines begin as the line typed did if `advise` is not on the path, else with `advise`."""
    assert next_line("chats.jsonl").startswith(f"{CALLED} --task ")
    assert f"`{CALLED}` asks the questions" in ended(f"{CALLED} run")[2]
    path = f"{Path(CALLED).parent.resolve()}:/usr/bin:/bin"
    assert "\nNext: advise --task " in pasted(f"{CALLED} check chats.jsonl", PATH=path)


@pytest.mark.parametrize(
    "text",
    [
        "this version of advise has no trainer for it",
        "a rule that they advise against",
        "/opt/advise run x",
        "finetune-advise run x",
    ],
)
def test_the_word_in_a_sentence_stays(monkeypatch, text):
    """Only lines to paste are rewritten, whichever command they begin with."""
    monkeypatch.setattr(sys, "argv", [CALLED])
    monkeypatch.setenv("PATH", "")
    assert program.as_called(text) == text
    assert tuple(COMMANDS) == program.COMMANDS


@pytest.fixture
def played(folder):
    """The words that a shell gives to `advise` in a line."""
    script(folder / "bin" / "advise", 'printf "%s|" "$@"')
    return lambda line: pasted(line, PATH=f"{folder}/bin:/usr/bin:/bin").split("|")


def trained(folder: Path) -> FinishedRun:
    (folder / "runs/my shop").mkdir(parents=True)
    return FinishedRun(folder=folder / "runs/my shop", record=RunRecord.from_dict(record()))


def test_the_lines_after_a_training_are_commands(folder, played):
    """Each `advise` line of the screen and block of report.html is one command a shell takes."""
    run = trained(folder)
    lines = "\n".join(summary_lines(run))
    page = report_page(run.record, folder=run.folder, plan_text="", metrics=())
    blocks = [unescape(block) for block in re.findall(r"<pre>(advise .*?)</pre>", page)]
    commands = re.findall(r"advise .*", lines)
    words = {
        "run", "chat", "export", "runs/my shop", "--to", "ollama", "merged", "",
        "runs/my shop/plan.yaml", "--output", "runs/my shop-whole",
    }  # fmt: skip
    assert [line for line in commands if not set(played(line)) <= words] == []
    assert [block for block in blocks if "runs/my shop" not in played(block)] == []
    for found, text in ((commands, lines), (blocks, page)):
        assert any(" export " in line for line in found)
        assert "--to vllm, --to gguf, --to merged" in text
