"""Rooms import one way (in functions and for types too), never in a circle; advice stays light."""

import ast
import shlex
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name

import pytest

from advisor.cli import COMMANDS
from tests.conftest import ROOT

# From the top down. A room may import the rooms below its own line, and no other on the same line.
ORDER = (
    ("advisor", "__main__"),  # the package itself: names that are loaded when they are used
    ("extras",),  # optional features: they are listed, and nothing imports them by name
    ("cli", "api"),  # two ways in: from a shell, from a program
    ("commands",),
    ("wizard", "render"),  # what a person sees; `render` shows the Run that `launch` returns
    ("launch", "export", "schema"),  # `launch` reads data and probes the machine before a run
    ("advice",),
    ("situation",),  # joins what is stated, probed and read
    ("probe", "data"),
    ("record",),  # what came of a plan
    ("ruleset", "estimate", "plan"),
    ("methods", "model_files"),
    ("ground",),
    ("peft_adapter",),  # with torch, for users and trainers: see below
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# The rooms that decide. They reach nothing that reads a file of the user's or looks at the machine.
PURE = ("advice", "ruleset", "estimate", "methods")
EDGES = ("probe", "data", "launch", "render", "wizard")
JOINING = {"advisor.situation.build", "advisor.situation.suggestions", "advisor.situation.models"}
FOR_TRAINERS = {"plan", "record", "methods", "model_files", "data", "ground", "peft_adapter"}
# Of the trainers, from the bottom up: no two rooms stand on one line.
TRAINERS = (
    *("job", "say", "rows", "updates", "step", "start", "rewards", "rollouts", "evaluation"),
    *("keep", "stage", "teachers", "ppo", "recipes", "tools", "__main__"),
)
# Modules of advisor/ and their lines that a command loads: lower them when they fall.
LOADED = {"--json": (129, 27_100), "--help": (26, 4_740)}
HEAVY = ("torch", "transformers", "numpy", "peft", "trl", "datasets", "pandas", "accelerate")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    return module.split(".")[1] if "." in module else module


def imported(path, known):
    """Every module that a file imports; of `from a import b` it is a.b if that is a module."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in known else origin
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.fixture(scope="module")
def imports():
    """Module -> the modules of advisor/ and trainers/ that it imports anywhere in its file."""
    files = {
        module_name(path): path
        for folder in ("advisor", "trainers")
        for path in (ROOT / folder).rglob("*.py")
        if "_bundled" not in path.parts
    }
    assert len(files) > 150
    return {
        name: {target for target in imported(path, files) if target in files}
        for name, path in files.items()
    }


def inside(imports, package):
    """The (module, target) pairs of one package's modules."""
    return [
        (module, target)
        for module, targets in imports.items()
        if module.split(".")[0] == package
        for target in targets
    ]


def reached(imports, start):
    """Every module that gets imported with `start`, at once or later."""
    found, left = set(), {start}
    while left:
        found |= left
        left = set().union(*(imports[module] for module in left)) - found
    return found - {start}


def test_every_room_has_its_place(imports):
    """Each room of advisor/ stands once in the order."""
    assert len(RANK) == sum(map(len, ORDER))
    assert {room(module) for module in imports if module.split(".")[0] == "advisor"} <= set(RANK)


def trainer_room(module):
    """The folder of trainers/ that a module stands in; the recipes are the files on top."""
    name = room(module)
    return name if name in TRAINERS else "recipes"


@pytest.mark.parametrize(
    ("package", "room_of", "order", "least"),
    [
        ("advisor", room, RANK, 500),
        ("trainers", trainer_room, {name: -place for place, name in enumerate(TRAINERS)}, 300),
    ],
)
def test_imports_run_one_way(imports, package, room_of, order, least):
    """A module imports only modules of its own room or of rooms further down."""
    edges = [
        (module, target)
        for module, target in inside(imports, package)
        if target.split(".")[0] == package and target != "trainers"
    ]
    assert len(edges) > least
    crossing = [pair for pair in edges if room_of(pair[0]) != room_of(pair[1])]
    assert [pair for pair in crossing if order[room_of(pair[0])] >= order[room_of(pair[1])]] == []


WALLS = {  # the package, and what no import in it may be
    "each folder of advisor/extras works without the others": (
        "advisor",
        lambda module, target: (
            room(module) == room(target) == "extras"
            and target not in ("advisor.extras", "advisor.extras.protocol")
            and module.split(".")[:3] != target.split(".")[:3]
        ),
    ),
    "what two commands share stands in a module of its own": (
        "advisor",
        lambda module, target: (
            room(module) == "commands" and target in {f"advisor.commands.{one}" for one in COMMANDS}
        ),
    ),
    "trainers build on plan, methods and data, never on what was advised": (
        "trainers",
        lambda _, target: target.split(".")[0] == "advisor" and room(target) not in FOR_TRAINERS,
    ),
    # It brings torch with it.
    "nothing else of advisor imports peft_adapter, nor is imported by it": (
        "advisor",
        lambda module, target: (room(module) == "peft_adapter") != (room(target) == "peft_adapter"),
    ),
    # The launcher starts them by name, in a child process.
    "advisor never imports the trainers": (
        "advisor",
        lambda _, target: target.split(".")[0] == "trainers",
    ),
}


@pytest.mark.parametrize("wall", WALLS)
def test_no_import_goes_through_a_wall(imports, wall):
    """Beside the order of the rooms."""
    package, crosses = WALLS[wall]
    edges = inside(imports, package)
    assert len(edges) > 350
    assert [pair for pair in edges if crosses(*pair)] == []
    assert {f"advisor.commands.{name}" for name in COMMANDS} <= set(imports)


def test_nothing_imports_in_a_circle(imports):
    """No module imports, over however many others, the module that imports it."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_what_decides_is_pure(imports):
    """Neither advice nor what it builds on reaches the user's files, the machine or the screen."""
    deciding = [module for module in imports if room(module) in PURE]
    assert len(deciding) > 40
    wrong = [
        f"{module} reaches {target}"
        for module in deciding
        for target in reached(imports, module)
        if target in JOINING or room(target) in EDGES
    ]
    assert wrong == []


LOAD = """
import sys
from advisor.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
ASKED = "--task qa --gpu 'RTX 4090' --model Qwen/Qwen3-8B"
HELP = [f"{name} --help" for name in ("run", "demo", "chat", "export", "check", "estimate")]


@pytest.mark.parametrize("line", [f"--json {ASKED}", "--help", "probe --json", *HELP])
def test_a_command_loads_no_more_than_it_needs(line):
    """No command loads torch before it trains, and what an answer loads of advisor/ only falls."""
    command = [sys.executable, "-c", LOAD, *shlex.split(line)]
    for _ in range(1 + line.startswith("--json")):  # what is read of rules/ is kept by then
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    slow = ("pydantic", "rich", "questionary") if line.startswith("--json") else ()
    assert not loaded & {*HEAVY, *slow}
    if (first := line.split()[0]) in LOADED:
        files = {module_name(path): path for path in (ROOT / "advisor").rglob("*.py")}
        lines = [len(files[one].read_text("utf-8").splitlines()) for one in loaded & {*files}]
        modules, most = LOADED[first]
        assert 0.98 * modules <= len(lines) <= modules
        assert 0.98 * most <= sum(lines) <= most
