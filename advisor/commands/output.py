"""How commands print: data goes to standard output, everything else to standard error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1))


def say(text: str) -> None:
    """Print a message for the person on standard error."""
    click.echo(text, err=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console that respects NO_COLOR and the terminal's width, and prints plain text if the
    output is no terminal.
    """
    from rich.console import Console  # 0.1 s, and `advise --json` prints without it

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process with exit code 1

    return Printer(stderr=stderr, highlight=False, soft_wrap=False)
