"""How commands print: data goes to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Any

import click

from advisor.ground.terminal import console, json_shown, shown

__all__ = ["console", "print_json", "put", "say"]


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    except ValueError:  # a row of a data file that is shown holds a number that is not finite
        text = json.dumps(_with_finite_numbers(document), ensure_ascii=False, indent=1)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # half a character in a file's name, or an output that is not UTF-8
        text = json.dumps(json.loads(text), allow_nan=False, indent=1)
    click.echo(json_shown(text))


def _with_finite_numbers(value: Any) -> Any:
    """The document with numbers that JSON cannot hold as texts: "inf"."""
    if isinstance(value, Mapping):
        return {key: _with_finite_numbers(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite_numbers(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def put(text: str) -> None:
    """Print text on standard output."""
    click.echo(shown(text))


def say(text: str) -> None:
    """Print a message for the person on standard error."""
    click.echo(shown(text), err=True)
