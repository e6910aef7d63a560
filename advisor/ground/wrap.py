"""A message on the lines of a terminal."""

from __future__ import annotations

import re
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

# The rest of a line from here on is pasted as it stands.
COMMAND = re.compile(
    r"(?<!\S)(?:\S*/)?advise |(?:^ *|(?<=:) +)(?:bash|cd|curl|hf|iconv|ollama|pandoc"
    r"|pdftotext|pip|python3?|rm|scp|sbatch|sh|sky|uvx?|vllm) "
)
EXCERPT = re.compile(r" *\d* \| ")  # a line of a file, with a caret below it


def on_lines(text: str) -> str:
    """The text broken between words, each line with its indent; what is pasted stays whole."""
    width = get_terminal_size().columns
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    found = COMMAND.search(line)
    head, command = (line, "") if found is None else (line[: found.start()], line[found.start() :])
    if len(line) <= width or EXCERPT.match(line) or (command and len(head) <= width):
        return line
    lead = line[: -len(line.lstrip())]
    said = "\n".join(wrapped(head, max(width, 20), subsequent_indent=lead))
    return f"{said}\n{lead}{command}" if command else said


def wrapped(text: str, width: int, **indents: Any) -> list[str]:
    """The text in lines that end between words; what stands in `backticks` stays whole."""
    kept = re.sub("`[^`]+`", lambda quoted: quoted[0].replace(" ", "\0"), text)
    lines = wrap(kept, width, break_long_words=False, break_on_hyphens=False, **indents)
    return [line.replace("\0", " ") for line in lines]
