"""Files that are whole or not there: written under another name beside the target, then moved onto it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from advisor.errors import MachineNotReady

TEMPORARY = ".advise-tmp-"  # prefix of names that a killed run may leave behind; anyone may delete them


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write the file so that a reader sees the old content or the new, never half. Raises MachineNotReady."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> MachineNotReady:
    """The error of a file or folder that could not be written, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineNotReady(f"{path}: no space left to write it", hint="free some space, or choose another place with --output DIR")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineNotReady(f"{path}: no permission to write here", hint="choose another place with --output DIR")
    return MachineNotReady(f"{path}: cannot be written: {error.strerror or error}", hint="choose another place with --output DIR")
