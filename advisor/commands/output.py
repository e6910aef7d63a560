"""How commands print: data goes to standard output, everything else to standard error.

With --json standard output holds exactly one JSON document: the answer, or what kept the command
from giving one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from advisor.ground.errors import Fault, MachineNotReady
from advisor.ground.resources import as_called, install_line, trainers_root
from advisor.ground.terminal import json_shown, mask_secrets, print_message, shown

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "expect_json", "print_error_json", "print_json", "put", "say", "with_error"]

SCHEMA_VERSION = 1
_owed = False  # whether standard output still waits for its one document


def expect_json(arguments: list[str]) -> None:
    """Note whether --json is among the arguments, even if the others cannot be read."""
    global _owed
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    _owed = any(flag == "--json" or flag.startswith("--json=") for flag in flags)


def with_error(document: Mapping[str, Any], faults: Iterable[Fault]) -> dict[str, Any]:
    """The document with `error`: a list of `{what, where, allowed, hint}`, each a text, empty where
    there is nothing to say. What looks like a secret is masked.
    """
    parts = ("what", "where", "allowed", "hint")
    told = [replace(fault, where=fault.place) for fault in faults]
    error = [{part: mask_secrets(getattr(fault, part)) for part in parts} for fault in told]
    return {**document, "error": error}


def print_error_json(faults: Iterable[Fault]) -> None:
    """Print what kept a command from answering as the one JSON document, if --json was given and
    no document has been printed yet.
    """
    if _owed:
        print_json(with_error({"schema_version": SCHEMA_VERSION}, faults))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    global _owed
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    except ValueError:  # a row of a data file that is shown holds a number that is not finite
        text = json.dumps(_with_finite_numbers(document), ensure_ascii=False, indent=1)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # half a character in a file's name, or an output that is not UTF-8
        text = json.dumps(json.loads(text), allow_nan=False, indent=1)
    _owed = False
    click.echo(json_shown(text))


def _with_finite_numbers(value: Any) -> Any:
    """The document with numbers that JSON cannot hold as texts: "inf"."""
    if isinstance(value, Mapping):
        return {key: _with_finite_numbers(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite_numbers(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output or standard error."""
    from advisor.ground import console as printing  # slow to import

    return printing.console(stderr=stderr)


def put(text: str) -> None:
    """Print text on standard output."""
    click.echo(shown(as_called(text)))


def say(text: str) -> None:
    """Print a message for the person on standard error."""
    print_message(text)


def refuse_without(packages: Iterable[str], what: str) -> None:
    """Raise MachineNotReady, with the line to install, if `what` needs a missing package."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MachineNotReady(f"{what} needs {', '.join(missing)}", hint=install_line())


def run_tool(
    name: str, *arguments: str, stdout: int | None = None, stderr: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The result of a module of trainers/tools, run as a child process of this terminal.

    Only `chat` may read what is typed there.
    """
    paths = (str(trainers_root()), os.environ.get("PYTHONPATH"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONSAFEPATH": "1",  # a user's own `trainers/` never shadows ours
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", f"trainers.tools.{name}", *arguments],
        env=environment,
        stdin=None if name == "chat" else subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
