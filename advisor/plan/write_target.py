"""Writes the launch file that `--plan` names: it overwrites nothing of value, and its paths are
relative to its own folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE, bytes_of
from advisor.plan.model import Comments, Plan
from advisor.plan.paths import with_paths
from advisor.plan.write import HEADER, plan_text, write_plan


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
        plan: The plan, with paths relative to the working folder.
        comments: The comment beside each value.
        path: Where to write it.
        inputs: Files and folders that the plan was made from. None of them is ever overwritten, nor
            any file inside one, except launch files.
        force: Overwrite an existing file. A file with the same content is left as it is.

    Raises InputError if the file may not be written there.
    """
    if path.is_dir():
        raise InputError(
            f"--plan {path} is a directory; give a file name",
            where=f"--plan {path}",
            hint=f"--plan {shlex.quote(str(path / PLAN_FILE))}",
        )
    if not path.parent.exists():
        raise InputError(
            f"the directory {path.parent} does not exist",
            where=f"--plan {path}",
            hint=f"mkdir -p {shlex.quote(str(path.parent))}",
        )
    plan = relocate(plan, path.parent)
    if path.is_file():
        there = bytes_of(path)
        if there == plan_text(plan, comments, name=path.name).encode():
            return
        if HEADER.encode() not in there and any(
            path.resolve().is_relative_to(given.resolve()) for given in inputs
        ):
            raise InputError(
                f"--plan {path} is an input of this plan, and inputs are never overwritten",
                where=f"--plan {path}",
                hint="name another file",
            )
        if not force:
            raise InputError(
                f"--plan {path} exists already, with other content",
                where=f"--plan {path}",
                hint="name another file, or add --force to overwrite it",
            )
    elif path.exists():
        raise InputError(
            f"--plan {path} is a device or a pipe; give a file name",
            where=f"--plan {path}",
            hint="`advise --json` prints the plan under the key `plan`",
        )
    write_plan(plan, comments, path)


def relocate(plan: Plan, folder: Path) -> Plan:
    """The plan with relative paths that start from the working folder made to start from `folder`.

    What does not exist (a hub id) and absolute paths stay as they are.
    """
    if folder.resolve() == Path.cwd().resolve():
        return plan

    def moved(path: str) -> str:
        if Path(path).is_absolute() or not Path(path).exists():
            return path
        try:
            return os.path.relpath(Path(path).resolve(), folder.resolve())
        except ValueError:  # on another drive (Windows)
            return str(Path(path).resolve())

    return with_paths(plan, moved)
