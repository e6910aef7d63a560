"""The files of a stage's rewards are there before a run writes anything: code of the user, and
schemas of JSON.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from advisor.ground.errors import Fault, nearest
from advisor.ground.files import bytes_of
from advisor.methods.rewards import RewardPart, reward_parts
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def reward_file_faults(plan: Plan, plan_path: Path, todo: Sequence[Entry]) -> Iterable[Fault]:
    """What the rewards of the stages name that is not there, each once.

    Args:
        plan_path: The plan file; relative paths start from its folder.
        todo: The entries that are still to be trained.
    """
    told: set[str] = set()
    stages = {stage.name for stage in plan.stages}
    for entry in todo:
        for part in reward_parts(entry.stage.options):
            for fault in _part_faults(plan_path, part, stages):
                if fault.headline not in told:
                    told.add(fault.headline)
                    yield Fault(
                        where=f"stage {entry.stage.name}",
                        what=fault.headline,
                        allowed=fault.allowed,
                        hint=fault.hint,
                    )


def _part_faults(plan_path: Path, part: RewardPart, stages: Collection[str]) -> Iterable[Fault]:
    schema = part.options.get("schema")
    if schema is not None and not resolve_path(plan_path, str(schema)).is_file():
        what = f"schema: no such file: {resolve_path(plan_path, str(schema))}"
        yield Fault(what=what, allowed="a file with a JSON schema, relative to the plan")
    if part.source == "reward_model" and part.value not in stages:
        folder = resolve_path(plan_path, part.value)
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            yield Fault(
                where="reward_model",
                what=f"reward_model: {folder} holds no model",
                allowed="a stage with objective rm, or the folder of a reward model",
            )
    if part.source == "reward":
        file, _, name = part.value.rpartition(":")
        path = resolve_path(plan_path, file)
        if not path.is_file():
            allowed = "file.py:function, relative to the plan"
            yield Fault(where="reward", what=f"no such file: {path}", allowed=allowed)
        else:
            yield from _function_faults(path, name)


def _function_faults(path: Path, name: str) -> Iterable[Fault]:
    """A function that the file neither defines nor imports; the file is read, not run."""
    try:
        tree = ast.parse(bytes_of(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Fault(where="reward", what=f"{path} cannot be read as Python: {error}")
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
        what = f"{path} has no function '{name}'"
        yield Fault(
            where="reward",
            what=what,
            allowed=f"it defines: {known}",
            hint=nearest(name, sorted(names)),
        )
