"""Files moved to their place together; a file that is there and differs is never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from advisor.ground.errors import Fault, InputError


def place(work: Path, folder: Path) -> int:
    """Move every file to its place. Returns how many were there already.

    Raises InputError with every file that is there and differs.
    """
    files = sorted(path for path in work.rglob("*") if path.is_file())
    there = [path for path in files if (folder / path.relative_to(work)).exists()]
    differ = [
        path.relative_to(work).as_posix()
        for path in there
        if not _same(path, folder / path.relative_to(work))
    ]
    if differ:
        raise InputError(
            faults=[
                Fault(
                    where=str(folder / name),
                    what="is there already with another content, and nothing is overwritten",
                    hint="remove it, or choose another folder with --out",
                )
                for name in differ
            ]
        )
    for path in files:
        target = folder / path.relative_to(work)
        if path not in there:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return len(there)


def _same(one: Path, other: Path) -> bool:
    return (
        other.is_file()
        and one.stat().st_size == other.stat().st_size
        and one.read_bytes() == other.read_bytes()
    )
