"""The program's name in lines to paste: `advise`, or how it was called where that is not found."""

from __future__ import annotations

import re
import sys

COMMANDS = ("run", "demo", "chat", "export", "check", "estimate", "probe", "rules")
# In a line to paste; the word stands in sentences and in data as well.
_LINE = re.compile(
    rf"(?<![\w./-])advise(?= (?:{'|'.join(COMMANDS)})\b| --[a-z])"
    r"|(?<=`)advise(?=`)|(?<=^  )advise(?=$)",
    re.MULTILINE,
)


def as_called(text: str) -> str:
    """The text with each line to paste as it works in this shell: `.venv/bin/advise run plan.yaml`
    where that is how the program was called and `advise` alone is not found.
    """
    if "advise" not in text or sys.argv[0] == "advise" or not sys.argv[0].endswith("/advise"):
        return text
    from shlex import quote
    from shutil import which

    return text if which("advise") else _LINE.sub(lambda _: quote(sys.argv[0]), text)
