"""Where `--plan` puts a launch file: beside nothing it would harm, with paths that hold from
there.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE
from advisor.ground.types import Answers
from advisor.plan.model import Comments, Plan
from advisor.plan.paths import with_paths
from advisor.plan.write import HEADER, plan_text, write_plan
from advisor.ruleset.facts import load_facts


def write_plan_file(
    plan: Plan,
    comments: Comments,
    path: Path,
    *,
    inputs: Collection[Path] = (),
    force: bool = False,
) -> None:
    """Write the launch file; data and model paths in it are relative to its own folder.

    Args:
        inputs: Files and folders that the plan was made from; none of them is ever replaced, nor
            what lies inside one, launch files aside.
        force: Replace another file that is there already. One that says the same is left as it is.
    """
    if path.is_dir():
        raise InputError(
            f"--plan {path}: is a folder, a file name is expected",
            hint=f"--plan {shlex.quote(str(path / PLAN_FILE))}",
        )
    if not path.parent.exists():
        raise InputError(
            f"--plan {path}: the folder {path.parent} does not exist",
            hint=f"mkdir -p {shlex.quote(str(path.parent))}",
        )
    plan = relocate(plan, path.parent)
    if path.is_file():
        there = path.read_bytes()
        if there == plan_text(plan, comments, name=path.name).encode():
            return
        if HEADER.encode() not in there and any(
            path.resolve().is_relative_to(given.resolve()) for given in inputs
        ):
            raise InputError(
                f"--plan {path}: is what the plan is made from, which is never changed",
                hint="name another file",
            )
        if not force:
            raise InputError(
                f"--plan {path}: is there already, and says something else",
                hint="name another file, or add --force to replace it",
            )
    elif path.exists():
        raise InputError(
            f"--plan {path}: is a device or a pipe, a file name is expected",
            hint="to see the plan: the key `plan` of advise --json",
        )
    write_plan(plan, comments, path)


def given_paths(answers: Answers, base: Path | None, *files: str | Path | None) -> list[Path]:
    """Every file and folder that the answers name, as given and beside the answers file, and the
    other files named on the command line.
    """
    facts = load_facts()
    named = [
        answer.value
        for fact_id, answer in answers.known.items()
        if fact_id == "model" or (fact_id in facts and facts[fact_id].type == "path")
    ]
    named += (answers.value("tasks") or {}).values()
    folders = (Path(), *([base] if base else []))
    return [
        *(folder / Path(name).expanduser() for name in named for folder in folders),
        *(Path(file) for file in files if file),
    ]


def relocate(plan: Plan, folder: Path) -> Plan:
    """The plan with paths that were relative to the working folder made to hold from `folder`."""
    if folder.resolve() == Path.cwd().resolve():
        return plan

    def moved(path: str) -> str:
        return str(Path(path).resolve()) if Path(path).exists() else path

    return with_paths(plan, moved)
