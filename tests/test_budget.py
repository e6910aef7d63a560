"""The size of every room, held by tests/budget.yaml: it may fall, and each fall is written down.

`python -m tests.test_budget` lowers the ceilings to today's sizes. Only an edit by hand raises one.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("budget.yaml")
COMMAND = "python -m tests.test_budget"
MEASURES = ("lines", "code", "statements", "files")
SLACK = {"lines": 150, "code": 150, "statements": 150, "files": 5}
ROOMS = {"core": "advisor", "extras": "advisor/extras"} | {
    name: name for name in ("trainers", "tools", "benchmarks", "tests", "rules", "site")
}
SUFFIXES = {"rules": {".yaml"}, "site": {".py", ".html", ".css", ".js", ".mjs"}}
DOCUMENTED = ("advisor", "trainers")
DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = re.compile(r"\s*(#.*)?$")


def files_of(room: str) -> Iterator[Path]:
    """The source files of a room; what is generated, or belongs to another room, is left out."""
    folder = ROOT / ROOMS[room]
    nested = [ROOT / path for path in ROOMS.values() if path.startswith(f"{ROOMS[room]}/")]
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        is_generated = "_bundled" in inside or (room == "rules" and inside[0] == "schema")
        is_elsewhere = any(path.is_relative_to(other) for other in nested)
        if path.suffix in SUFFIXES.get(room, {".py"}) and not (is_generated or is_elsewhere):
            yield path


def size(text: str) -> Counter[str]:
    """The measures of a Python file: lines, lines with code, statements, docstring lines."""
    docstrings: set[int] = set()
    texts: set[int] = set()  # lines inside a long text, blank ones too
    statements = 0
    for node in ast.walk(ast.parse(text)):
        statements += isinstance(node, ast.stmt)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            texts |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif (
            isinstance(node, DOCUMENTED_NODES) and ast.get_docstring(node, clean=False) is not None
        ):
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = text.splitlines()
    code = {
        number for number, line in enumerate(lines, 1) if number in texts or not NO_CODE.match(line)
    }
    return Counter(
        files=1,
        lines=len(lines),
        code=len(code - docstrings),
        statements=statements,
        docstrings=len(docstrings),
    )


def other_size(text: str) -> Counter[str]:
    """The measures of a file in another language: lines, and those neither blank nor comment."""
    lines = text.splitlines()
    return Counter(files=1, lines=len(lines), code=sum(not NO_CODE.match(line) for line in lines))


def joined_statements(text: str) -> list[int]:
    """The lines on which more than one statement begins; the body `...` does not count."""
    starts = Counter(
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    )
    return sorted(line for line, count in starts.items() if count > 1)


def measured() -> dict[str, Counter[str]]:
    """Room -> its measures."""
    return {
        room: sum(
            (
                (size if path.suffix == ".py" else other_size)(path.read_text("utf-8"))
                for path in files_of(room)
            ),
            Counter(),
        )
        for room in ROOMS
    }


def docstring_shares(sizes: dict[str, Counter[str]]) -> dict[str, float]:
    """Docstring lines of all lines; core and extras together are advisor."""
    together = {"advisor": sizes["core"] + sizes["extras"], "trainers": sizes["trainers"]}
    return {name: size["docstrings"] / size["lines"] for name, size in together.items()}


@pytest.fixture(scope="module")
def budget():
    return yaml.safe_load(FILE.read_text("utf-8"))


@pytest.fixture(scope="module")
def sizes():
    return measured()


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_is_larger_than_its_ceiling(room, budget, sizes):
    """What is added has to be paid for in the same room, or its ceiling is raised by hand."""
    over = {
        name: f"{sizes[room][name]:,} of {ceiling:,}"
        for name, ceiling in budget["rooms"][room].items()
        if sizes[room][name] > ceiling
    }
    assert not over, f"{room} is over its ceiling in tests/budget.yaml: {over}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_ceiling_follows_what_was_removed(room, budget, sizes):
    """What has fallen cannot grow back unseen."""
    ceilings = budget["rooms"][room]
    assert set(ceilings) <= set(MEASURES)
    high = {
        name: f"{ceiling:,}, is {sizes[room][name]:,}"
        for name, ceiling in ceilings.items()
        if ceiling - sizes[room][name] > SLACK[name]
    }
    assert not high, f"{room} has fallen below its ceilings ({high}): run {COMMAND}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_code_stays_documented(name, budget, sizes):
    """Docstrings are not what is cut: their share stays above two thirds of the recorded one."""
    assert docstring_shares(sizes)[name] >= budget["docstring_share"][name] * 2 / 3


def test_each_statement_has_a_line_of_its_own():
    """Joined statements would make fewer lines of the same code."""
    places = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ROOMS
        for path in files_of(room)
        if path.suffix == ".py"
        for line in joined_statements(path.read_text("utf-8"))
    ]
    assert places == []


def lower_ceilings() -> int:
    """Write today's sizes where they are below the ceilings; 1 where one is above."""
    text, code = FILE.read_text("utf-8"), 0
    sizes = measured()
    for room, ceilings in yaml.safe_load(text)["rooms"].items():
        for name, ceiling in ceilings.items():
            now = sizes[room][name]
            if now > ceiling:
                print(f"{room}: {name} is {now:,}, over {ceiling:,}; edit {FILE.name} to raise it")
                code = 1
            text = re.sub(rf"(?m)^(  {room}: .*\b{name}: )\d+", rf"\g<1>{min(now, ceiling)}", text)
    FILE.write_text(text, "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(lower_ceilings())
