"""Every line that the product prints to be pasted is pasted: after what precedes it, into a clean shell; its exit code is
what was promised. docs/testing.md says how to add a screen.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG
from tests.pasted.paste import HERE, Shell, holds_placeholder, lines_of, obey, write_programs
from tests.pasted.program import write_client
from tests.trials.trial import people, write_files

ROOT = HERE.parent.parent
ABOUT = yaml.safe_load((HERE / "screens.yaml").read_text(encoding="utf-8"))
ELSEWHERE = yaml.safe_load((HERE / "elsewhere.yaml").read_text(encoding="utf-8"))
MOST_ELSEWHERE = 0.2
# Its screens are of all optional features, so --hide-extra leaves it out: extras.benchmarks extras.gguf
# extras.hub extras.jobs extras.merged extras.other_tools extras.trackers extras.vllm
PAGES = [
    {"file": name, "form": "page", "of": ROOT, **ABOUT["pages"].get(name, {})}
    for pattern in ("*.md", "docs/*.md", "rules/*.md", "examples/*.md")
    for path in sorted(ROOT.glob(pattern))
    for name in [str(path.relative_to(ROOT))]
    if name != "CHANGELOG.md"  # it tells of what is no longer
]
SCREENS: dict[str, dict[str, Any]] = {
    " ".join((f"{kind}:", *(screen[key] for key in ("line", "file") if key in screen))): {
        "kind": kind, **screen
    }
    for kind, screens in (ABOUT["screens"] | {"page": PAGES}).items()
    for screen in screens
}  # fmt: skip


@contextmanager
def programs_in_a_folder(*options: str) -> Iterator[Path]:
    """The folder that stands on the path: the product, and played programs."""
    with tempfile.TemporaryDirectory() as name:  # the address of a socket is short
        folder, address = Path(name), str(Path(name) / "address")
        command = [sys.executable, "-m", "tests.pasted.program", address, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as server:
            try:
                assert server.stdout is not None
                server.stdout.readline()
                write_client(folder / "advise", address)
                write_programs(folder)
                yield folder
            finally:
                server.terminate()


@pytest.fixture(scope="session")
def programs():
    with programs_in_a_folder() as folder:
        yield folder


def furnish(folder: Path, programs: Path) -> None:
    """A person's files, two plans and a finished run, beside the model that is there."""
    write_files(ABOUT, folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    shell = Shell(folder, programs)
    for line in ABOUT["before"]:
        code, said = shell.paste(line)
        assert code == 0, f"{line}\n{said}"


@pytest.fixture(scope="session")
def screen_of(once, programs):
    """Name -> what the screen shows, and a shell in the folder in which it was shown, of its own."""

    def fill(folder):
        write_fake_model(folder / "model", CONFIG)
        furnish(folder, programs)

    def shown(name):
        def show(folder):
            shutil.copytree(once("pasted", fill), folder / "room")
            text, place = show_screen(SCREENS[name], Shell(folder / "room", programs))
            (folder / "text").write_text(text)
            (folder / "place").write_text(str(place))

        folder = once(f"pasted-{list(SCREENS).index(name)}", show)
        return (folder / "text").read_text(), Shell(Path((folder / "place").read_text()), programs)

    return shown


def show_screen(screen: dict[str, Any], shell: Shell) -> tuple[str, Path]:
    """What a screen shows, and the folder where somebody reads it."""
    code, said = shell.paste(screen.get("line", "true"))
    assert code == screen.get("ends", 0), said
    path = screen.get("of", shell.folder) / screen.get("file", "")
    return (path.read_text("utf-8") if path.is_file() else said), shell.folder


def is_elsewhere(line: str, screen: dict[str, Any], *, trained: bool = False) -> bool:
    """Whether it is listed as a line that cannot run here; `trained`: after a real training."""
    return any(
        re.search(one["line"], line)
        and one.get("kind", screen["kind"]) == screen["kind"]
        and not (trained and one.get("trained"))
        for one in ELSEWHERE
    )


def faults(text: str, screen: dict[str, Any], shell: Shell, *, trained: bool = False) -> list[str]:
    """The lines of a text that do not do what they promise."""
    lines, found = lines_of(text, screen.get("form", "screen")), list[str]()
    obey(text, lines, shell.folder)
    for line in lines:
        if holds_placeholder(line):
            found.append(f"{line}\nholds a placeholder")
        if is_elsewhere(line, screen, trained=trained):
            named = re.match(r"(?:\S*/)?advise (?:chat|check|export|run) (?=[^-])", line)
            if named and not (shell.folder / shlex.split(line, comments=True)[2]).exists():
                found.append(f"{line}\nnames what is not there")
            continue
        after = screen.get("after", {}).items()
        promised = next((code for pattern, code in after if re.search(pattern, line)), 0)
        code, said = shell.paste(line)
        if code != promised:
            found.append(f"{line}\nends with {code}: {said[-500:]}")
    # What `--choose a>b+c` without quotes leaves.
    return [*found, *(f"wrote {path.name}" for path in shell.folder.glob("*+*"))]


@pytest.mark.parametrize("name", SCREENS)
def test_the_lines_of_a_screen_run(name, screen_of):
    """As they are printed, in their order, in one copy of the folder."""
    text, shell = screen_of(name)
    assert faults(text, SCREENS[name], shell) == []


@pytest.mark.parametrize("kind", dict.fromkeys(screen["kind"] for screen in SCREENS.values()))
def test_a_broken_line_is_found(kind, screen_of):
    """On every kind of screen: an option that there is not, and a program that there is not."""
    names = (name for name, screen in SCREENS.items() if screen["kind"] == kind)
    form, text, line = next(
        (SCREENS[name].get("form", "screen"), text, line)
        for name in names
        for text in [screen_of(name)[0]]
        for line in lines_of(text, SCREENS[name].get("form", "screen"))
        if line in text and "#" not in line and not is_elsewhere(line, SCREENS[name])
    )
    for program in (line.split()[0], "advize"):
        broken = f"{program} {line.partition(' ')[2]} --no-such-flag"
        planted = text.replace(line, escape(broken) if form == "html" else broken)
        assert broken in lines_of(planted, form)
        assert screen_of("plan: plan.yaml")[1].paste(broken)[0] != 0


def test_few_lines_are_left_to_be_run_elsewhere(screen_of):
    """At most one in five; each entry of the list has a line."""
    lines = [
        (line, screen)
        for name, screen in SCREENS.items()
        for line in lines_of(screen_of(name)[0], screen.get("form", "screen"))
    ]
    left = [line for line, screen in lines if is_elsewhere(line, screen)]
    assert len(lines) > 200
    assert len(left) <= MOST_ELSEWHERE * len(lines), f"{len(left)} of {len(lines)}: {left}"
    listed = [one["line"] for one in ELSEWHERE if one.get("kind") != "wizard"]
    assert [one for one in listed if not any(re.search(one, line) for line in left)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", people())
def test_the_lines_of_the_wizard_run(name, tmp_path, programs, monkeypatch):
    """What a person sees who answers the questions, and leaves."""
    pytest.importorskip("pexpect")
    from tests.trials import trial as trials

    person = trials.person(name) | {"menu": ["Quit"]}
    monkeypatch.setattr(trials, "person", lambda name: person)
    trial = trials.run(name, tmp_path, columns=400, rows=60)
    text = "\n".join(dict.fromkeys([*trial.printed, *trial.screen]))
    assert lines_of(text, "screen")
    assert faults(text, {"kind": "wizard"}, Shell(tmp_path, programs)) == []


@pytest.mark.smoke
def test_the_lines_after_a_real_training_run(tiny_model, tmp_path):
    """Those of its screen, its report, its model card and of the page on serving, weights and all."""
    with programs_in_a_folder("--real") as programs:
        room = tmp_path / "room"
        shutil.copytree(tiny_model, room / "model")
        furnish(room, programs)
        for name, screen in SCREENS.items():
            if screen.get("real"):
                shell = Shell(room, programs)
                text, shell.folder = show_screen(screen, shell)
                assert faults(text, screen, shell, trained=True) == [], name
