"""Whether what the rewards of the stages name is there: functions, reward models, schemas."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from advisor.ground.errors import Fault, did_you_mean
from advisor.ground.extras import Checked
from advisor.ground.files import bytes_of
from advisor.launch.call import Call
from advisor.methods.rewards import RewardPart, reward_parts
from advisor.plan.read import PlanOnDisk

PHASE = "plan"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def check(call: Call) -> Checked:
    """What is missing, each once."""
    found: dict[str, Fault] = {}
    for entry in call.left:
        for part in reward_parts(entry.stage.options):
            for fault in _part_faults(call.run, part):
                found.setdefault(fault.what, replace(fault, where=f"stage {entry.stage.name}"))
    return Checked(bad=list(found.values()))


def _part_faults(file: PlanOnDisk, part: RewardPart) -> Iterator[Fault]:
    schema = part.options.get("schema")
    if schema is not None and not (path := file.resolve(str(schema))).is_file():
        allowed = "a file with a JSON schema, relative to the plan"
        yield Fault(what=f"schema: no such file: {path}", allowed=allowed)
    if part.source == "reward_model" and part.value not in [one.name for one in file.plan.stages]:
        folder = file.resolve(part.value)
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            allowed = "a stage with objective rm, or the folder of a reward model"
            yield Fault(what=f"reward_model: {folder} holds no model", allowed=allowed)
    if part.source == "reward":
        named, _, function = part.value.rpartition(":")
        path = file.resolve(named)
        if path.is_file():
            yield from _function_faults(path, function)
        else:
            allowed = "file.py:function, relative to the plan"
            yield Fault(what=f"reward: no such file: {path}", allowed=allowed)


def _function_faults(path: Path, name: str) -> Iterator[Fault]:
    """A function that the file neither defines nor imports; the file is read, not run."""
    try:
        tree = ast.parse(bytes_of(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Fault(what=f"reward: {path} cannot be read as Python: {error}")
        return
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if name not in names and "*" not in names:
        own = (node.name for node in tree.body if isinstance(node, FUNCTIONS))
        known = ", ".join(sorted(own)[:12]) or "no function"
        yield Fault(
            what=f"reward: {path} has no function '{name}'",
            allowed=f"it defines: {known}",
            hint=did_you_mean(name, sorted(names)),
        )
