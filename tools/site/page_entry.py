"""What the worker of the page calls; it stands in the archive as `page_entry`.

The builder calls it too, with CPython, so that what is kept of the rules has the names by which it
is found here.
"""

from __future__ import annotations

import gc

from advisor.cli import main
from advisor.commands.page_answers import answer as answer_of_command
from advisor.ground import yaml_files
from advisor.ground.progress import board

yaml_files._code = lambda: b"the page"  # type: ignore[assignment]  # these files cannot change

board.is_shown = False  # it needs a thread, which a page has not


def answer(name: str, body: str) -> tuple[str, int]:
    """The document of a request, as text, and its exit code."""
    found = answer_of_command(main, name, body)
    gc.unfreeze()  # the command ends by keeping all there is: its process would end, too
    return found
