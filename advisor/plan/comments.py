"""The comments of a launch file, so that a changed copy of it keeps its reasons."""

from __future__ import annotations

import re

from advisor.ground.yaml_reader import parse_yaml
from advisor.plan.model import Comments

_OPENS = re.compile(r"(?:^|[\s,:\[{-])$")


def comments_of(text: str, *, name: str) -> Comments:
    """Path of a value -> the comment at the end of its line.

    Lines that are comments as a whole are left out.
    """
    document = parse_yaml(text, name=name)
    by_line: dict[int, tuple[str | int, ...]] = {}
    for path, (line, _) in sorted(document.key_marks.items(), key=lambda item: item[1]):
        by_line[line] = path  # several keys on a line: the last one
    found = {}
    for number, line_text in enumerate(text.split("\n"), 1):
        comment = _comment(line_text)
        if comment and number in by_line:
            found[by_line[number]] = comment
    return found


def _comment(line: str) -> str:
    """What follows the first # that is outside quotes and after a space; nothing for a line that is
    all comment.
    """
    quote = ""
    skip = False
    for index, character in enumerate(line):
        if skip:
            skip = False
        elif quote:
            skip = quote == '"' and character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'" and _OPENS.search(line[:index]):
            quote = character
        elif character == "#" and index and line[index - 1] in " \t":
            return line[index + 1 :].strip() if line[:index].strip() else ""
    return ""
