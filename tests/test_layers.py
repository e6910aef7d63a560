"""The rooms of the project: imports run one way, and advice stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lower may not import higher; modules of one group may import each other only inside their own
# room.
LAYER = {
    "units": 0, "errors": 0, "resources": 0, "yamlio": 1, "yamlcache": 1.5, "types": 1, "files": 1,
    "peft_adapter": 99,  # imported by users and trainers, by nothing in here: see below
    "facts": 2, "composition": 2, "answers": 3,
    "estimate": 4, "ruleset": 4, "plan": 4,
    "advice": 5,
    "shapes": 6, "probe": 6, "data": 6, "launch": 7, "export": 7, "render": 8, "wizard": 8,
    "situation": 9, "estimating": 9, "checking": 9, "linting": 7, "interactive": 10,
    "demonstration": 10, "cli": 10, "__main__": 11,
}  # fmt: skip
HEAVY = ("torch", "transformers", "numpy", "peft", "trl", "datasets", "pandas", "accelerate")


def room(path: Path) -> str:
    inside = path.relative_to(ROOT / "advisor").parts
    return inside[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("advisor.")
            and node.level == 0
        ):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "advisor" and node.level == 0:
            names.update(alias.name for alias in node.names if not alias.name.startswith("_"))
        elif isinstance(node, ast.Import):
            names.update(
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("advisor.")
            )
    return names


def test_imports_run_one_way():
    """An advisor module imports only modules below it, or of its own room."""
    edges = [
        (room(path), target, path)
        for path in (ROOT / "advisor").rglob("*.py")
        if path.name != "__init__.py" or path.parent.name != "advisor"
        for target in imported_rooms(path)
    ]
    assert len(edges) > 100
    wrong = [
        f"{path}: {own} -> {target}"
        for own, target, path in edges
        if own != target and LAYER[own] <= LAYER[target] and LAYER[own] < 10
    ]
    assert not wrong, "\n".join(wrong)


def test_trainers_know_nothing_of_advice_or_rules():
    """Trainers build on the plan and the data, never on what was advised."""
    allowed = {
        "plan",
        "data",
        "types",
        "units",
        "errors",
        "resources",
        "files",
        "yamlio",
        "peft_adapter",
    }
    files = list((ROOT / "trainers").rglob("*.py"))
    assert len(files) > 5
    wrong = [
        f"{path.name}: {target}" for path in files for target in imported_rooms(path) - allowed
    ]
    assert not wrong, wrong


def test_the_adapter_module_stands_alone():
    """`advisor.peft_adapter` brings torch with it: nothing else in advisor imports it, and it
    imports nothing else of advisor.
    """
    for path in (ROOT / "advisor").rglob("*.py"):
        inside = room(path) == "peft_adapter"
        assert (
            imported_rooms(path) <= {"peft_adapter"}
            if inside
            else "peft_adapter" not in imported_rooms(path)
        ), path


def test_advisor_never_imports_the_trainers():
    """The launcher starts trainers by name, in a child process."""
    for path in (ROOT / "advisor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [module or ""]
            )
            assert not any(name.split(".")[0] == "trainers" for name in names), path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--json", "--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B"],
        ["probe", "--json"],
        ["run", "--help"],
    ],
    ids=["help", "json", "probe", "run-help"],
)
def test_advice_imports_nothing_heavy(arguments):
    """`advise --help`, `advise --json` and `advise probe` never import torch or anything like
    it.
    """
    code = (
        f"import sys\nsys.argv = ['advise', *{arguments!r}]\nfrom advisor.cli import main\ntry:\n  "
        f"  main()\nfinally:\n    print([m for m in {HEAVY!r} if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_json_advice_skips_the_slow_libraries_of_the_terminal():
    """`advise --json` pays for neither pydantic nor rich nor questionary."""
    code = (
        "import sys\nsys.argv = ['advise', '--json', '--task', 'qa', '--gpu', 'unknown']\nfrom"
        " advisor.cli import main\ntry:\n    main()\nfinally:\n    print([m for m in ('pydantic',"
        " 'rich', 'questionary') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == "[]"
