"""What every file keeps to: lines that fit on a screen, no address of one machine."""

import ast
import re
import subprocess
from itertools import pairwise

import pytest

from tests.conftest import ROOT

# Words for tools at the end of a line, which ruff does not count either.
FOR_TOOLS = re.compile(r"\s+# (?:noqa|type: ignore|fmt:).*")
ONE_MACHINE = {
    "the root folder of somebody's work": r"(?<![\w./-])/(?:[w]ork|[r]oot|workspace|mnt/data)/",
    "a home folder (write /home/me)": r"(?<![\w./-])/(?:home|Users)/(?!me\b)\w+",
    "a scratch folder": r"(?<![\w./-])/tmp/\w",
    "an address of a package registry": r"files\.p[y]thonhosted|p[y]pi\.org|registry\.n[p]mjs"
    r"|(?:extra-)?index-url|[\w-]+\.(?:internal|corp|local)\b(?=[:/])",
}


def sources(folder: str) -> dict[str, str]:
    """Path -> content of its files of Python."""
    paths = list((ROOT / folder).rglob("*.py"))
    assert paths, folder
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def wide_lines(folder: str, columns: int) -> list[str]:
    """Lines of Python over the width, as path:line."""
    return [
        f"{name}:{number}"
        for name, text in sources(folder).items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(FOR_TOOLS.sub("", line)) > columns
    ]


def test_product_code_is_at_most_100_columns_wide():
    """Two files fit beside each other. A table of cases may be wider than code, now and then."""
    assert wide_lines("advisor", 100) + wide_lines("trainers", 100) == []
    assert len(wide_lines("tests", 120)) <= 50


def test_no_file_names_one_machine_or_a_package_registry():
    """Somebody else's checkout works: no absolute path of ours, no address to install from."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = {*listed.stdout.split("\0")} - {"", "tests/test_style.py"}
    raw = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    files = {name: one.decode("utf-8", "replace") for name, one in raw.items() if b"\0" not in one}
    assert len(files) > 300
    found = [
        f"{name}:{number}: {what}"
        for name, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in ONE_MACHINE.items()
        if re.search(pattern, line)
    ]
    assert found == []


# What is opened, and may be otherwise than by ground/files.py: none of it is a user's to choose.
OTHERWISE = {
    "advisor/commands/demo.py": {"DATA.read_text", "GENERAL.read_text", "one.read_text"},  # brought
    "advisor/extras/jobs/pack.py": {"read_text"},  # pyproject.toml, templates
    "advisor/ground/files.py": {"open", "os.open"},
    "advisor/ground/resources.py": {"read_text"},  # docs, the installed package
    "advisor/ground/yaml_files.py": {"os.open"},  # the cache: follows no link, asks who owns it
    "advisor/launch/folder.py": {"os.open"},  # .lock: follows no link, waits for nobody
    "advisor/probe/system.py": {"path.read_text"},  # /proc and /sys
    "advisor/schema/build.py": {"read_text"},
    "advisor/wizard/saved.py": {"os.open"},  # written: O_EXCL
    "trainers/job/libraries.py": {"read_text"},  # pyproject.toml
    "trainers/rows/stage_rows.py": {"path.read_text"},  # its own code
    "trainers/tools/merge.py": {"GENERAL.read_text"},
}


def openings(text: str) -> set[str]:
    """What opens or reads files in a text of Python, other than for writing and /dev/null."""
    found = set()
    for call in (one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Call)):
        name = ast.unparse(call.func)
        last, given = name.rpartition(".")[2], [*call.args, *(one.value for one in call.keywords)]
        said = [one.value for one in given if isinstance(one, ast.Constant)]
        modes = [one for one in said if isinstance(one, str) and re.fullmatch("[rwxabt+]+", one)]
        is_file = name in ("open", "os.open", "io.open") or (
            last == "open" and (modes or not given)
        )
        if "os.devnull" in map(ast.unparse, given):
            continue
        if (last != name and last in ("read_text", "read_bytes")) or (
            is_file and not re.search("[wxa]", str(modes))
        ):
            found.add(name if re.fullmatch(r"[\w.]+", name) else last)
    return found


def test_files_of_others_are_opened_in_one_place():
    """ground/files.py refuses what never ends or never begins, and what is too large."""
    code = "open(a); b.open(); c.open('rb'); x.d.read_text(); read_text(); e(1).read_bytes(); f.open('wb')"
    code += "; open(os.devnull); board.open('reading'); open(g, 'a')"
    assert openings(code) == {"open", "b.open", "c.open", "x.d.read_text", "read_bytes"}
    texts = sources("advisor") | sources("trainers")
    found = {name: openings(text) for name, text in texts.items()}
    assert {name: names for name, names in found.items() if names} == OTHERWISE


def test_a_switch_is_only_written_to_be_turned():
    """An argument that says its default looks as if it did something."""
    off = r"frozen|kw_only|slots|parents|exist_ok|missing_ok|reverse|flush|ignore_errors|is_flag"
    default = re.compile(rf"\b(?:(?:{off}|multiple)=False|(?:eq|allow_nan)=True)\b.*")
    texts = sources("advisor") | sources("trainers")
    assert [(name, found) for name, text in texts.items() for found in default.findall(text)] == []


# A shell reads the name behind these, which is not ours.
TYPED = r"(?:(?:^|[\s`])(?:advise (?:run|check|chat|export)|mkdir -p|cd|scp|sh|bash|rm|tar xzf|iconv .*)"
TYPED += r"|\s--?(?:plan|fix|output|choose|data|set|model|gpu|tasks|f)) "
OURS = re.compile(
    r"[A-Z]+|free_path\(\)|flags|key_path\(|precision_at|engine\.id|f'first-|file$"
    r"|states\['data_path'\]|args\[0\]"
)


def unquoted(text: str) -> list[str]:
    """Values in lines for a shell that are quoted neither there nor where they are named."""
    every, found = list(ast.walk(ast.parse(text))), []
    scopes = [one for one in every if isinstance(one, ast.FunctionDef)]
    said = {f"self.{one.name}": ast.unparse(one) for one in scopes}
    for scope in scopes:
        for one in ast.walk(scope):
            if isinstance(one, ast.Assign):
                sides = one.targets[0], one.value
                if all(isinstance(side, ast.Tuple) for side in sides):
                    pairs = zip(*(side.elts for side in sides), strict=True)
                else:
                    pairs = [sides]
                said |= {ast.unparse(target): ast.unparse(value) for target, value in pairs}
        for line in (one for one in ast.walk(scope) if isinstance(one, ast.JoinedStr)):
            for before, value in pairwise(line.values):
                if isinstance(before, ast.Constant) and re.search(f"{TYPED}$", before.value):
                    shown = ast.unparse(value.value)
                    shown = said.get(shown, shown)
                    found += [] if "quote" in shown or OURS.match(shown) else [shown]
    return found


def test_names_in_lines_for_a_shell_are_quoted():
    """A blank or a quote in the name of a file does not break the line that is pasted."""
    near = re.compile(rf"{TYPED.replace('^', chr(34))}\{{")
    texts = [one for folder in ("advisor", "trainers") for one in sources(folder).items()]
    found = {name: unquoted(text) for name, text in texts if "shlex" in text or near.search(text)}
    assert (len(found) > 40, {name for name in found if found[name]}) == (True, set())
