"""Lines to paste on a terminal, and the name of the program in them (tests/pasted runs them all)."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.cli import COMMANDS
from advisor.ground import resources as program
from tests.conftest import PAIRS, ROOT
from tests.test_docs import SETUP

CALLED = ".venv/bin/advise"  # as people call it who have not activated the environment


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
    (tmp_path / "chats.jsonl").write_text(PAIRS)
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


@pytest.fixture
def typed(folder, terminal):
    """Starts a line in a terminal."""
    return lambda line: terminal("bash", ["-c", line], env=environment())


def test_without_the_task_the_line_asks_for_what_is_open(typed):
    """On a terminal the wizard starts with the data answered: it asks the task, not the file."""
    child = typed(f"{CALLED} --data chats.jsonl")
    child.expect("Known: .*chats.jsonl")
    child.expect("1. What should the model do for you")
    child.send("\r")
    child.expect(r"2\. (?!Where are your examples)")


@pytest.mark.parametrize("more", ["--plan new.yaml", "--why", "--choose lora"])
def test_flags_that_the_wizard_does_not_take_need_the_task(typed, more):
    """The wizard alone asks for it; `--why` is a matter of its menu."""
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
    assert f"\nNext: {CALLED} --task " in pasted(f"{CALLED} check chats.jsonl")
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
    monkeypatch.setattr(sys, "argv", ["/my tools/advise"])
    assert program.as_called("advise run x") == "'/my tools/advise' run x"
    assert tuple(COMMANDS) == program.COMMANDS
