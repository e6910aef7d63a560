"""How commands print: data goes to standard output, everything else to standard error."""

from __future__ import annotations

import json
from typing import Any

import click

from advisor.ground.terminal import console, json_shown, shown

__all__ = ["console", "print_json", "put", "say"]


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json_shown(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)))


def put(text: str) -> None:
    """Print text on standard output."""
    click.echo(shown(text))


def say(text: str) -> None:
    """Print a message for the person on standard error."""
    click.echo(shown(text), err=True)
