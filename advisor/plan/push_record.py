"""What run.json says of results that were uploaded to the hub, and what their repositories are
called.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from advisor.ground.json_values import JsonObject

CARD = "README.md"
LONGEST_NAME = 96  # characters that the hub allows behind the owner


def repository(push_to: str, task: str | None) -> str:
    """Where a result goes: the plan's repository, of one task `owner/name-task`."""
    return push_to if task is None else f"{push_to}-{task}"


def upload_command(repository: str, folder: str, files: Iterable[str]) -> str:
    """The command that uploads these files of a result's folder and its card; the folder also holds
    checkpoints and sample answers, which stay.
    """
    only = [f"--include={name}" for name in (*files, CARD)]
    return shlex.join(["hf", "upload", repository, folder, ".", "--private", *only])


@dataclass(frozen=True, kw_only=True, slots=True)
class PushRecord(JsonObject):
    """A result that was uploaded."""

    repository: Annotated[str, "owner/name on the hub"]
    commit: Annotated[str, "the commit that holds it"]
    url: Annotated[str, "where it can be seen"]
    files: Annotated[str, "digest of the result's files: another one is uploaded again"]
    pushed_at: Annotated[str, "UTC"]
