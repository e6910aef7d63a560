"""What the worker of the page calls, and the builder, with CPython: what is kept of the rules then
has the names by which the page looks for it.
"""

from __future__ import annotations

from advisor.cli import main
from advisor.commands import page_answers
from advisor.ground import yaml_files

yaml_files._code = lambda: b"the page"  # type: ignore[assignment]  # these files cannot change


def answer(name: str, body: str) -> tuple[str, int]:
    """The document of a request, as text, and its exit code."""
    return page_answers.answer(main, page_answers.ANSWERS[name], body)
