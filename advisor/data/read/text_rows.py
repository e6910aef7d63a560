"""Documents of a text file: what parts them is seen from its lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advisor.data.read.found import DataFile
from advisor.data.read.lines import Faults, read_lines

DOCUMENT_MARKS = ("<|endoftext|>", "<|end_of_text|>", "\f")
LONG_LINE_CHARS = 1000  # lines this long that follow each other without blank lines are documents
PIECE_CHARS = 16_000  # a text without document marks is handed on in pieces, cut at paragraph ends
# blank-line blocks of one line at least this long are documents, shorter ones are paragraphs
LONG_BLOCK_CHARS = 200


def text_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The documents of a text file as {"text": ...}."""
    return _text_rows(file, faults, document_style(file))


def whole_text_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The same of one text file among several: it is one document, unless marks part it.

    Word and most browsers write a paragraph on one line, so blank lines and long lines in a file
    among others part paragraphs.
    """
    style = document_style(file)
    return _text_rows(file, faults, style if style == "marks" else "whole")


def _text_rows(file: DataFile, faults: Faults, style: str) -> Iterator[tuple[int, Any]]:
    number = 0
    for text in _documents(file, faults, style):
        if text.strip():
            number += 1
            yield number, {"text": text.strip("\r\n")}


def document_style(file: DataFile) -> str:
    """What parts the documents of a text file: "marks", "blank lines", "lines", or "whole" (the
    file is one document).

    Where every line is as long as an article, lines are documents. Blank lines part documents only
    where every block is one long line, as corpora are written; in prose and Markdown they part
    paragraphs.
    """
    blocks: list[list[int]] = [[]]  # line lengths of each block
    quiet = Faults()
    for number, line in read_lines(file, quiet):
        bare = line.strip(" \t\r\n")
        if bare in DOCUMENT_MARKS:
            return "marks"
        if bare:
            blocks[-1].append(len(bare))
        elif blocks[-1]:
            blocks.append([])
        if number >= 2000:
            break
    blocks = [block for block in blocks if block]
    lines = sorted(length for block in blocks for length in block)
    if (
        len(lines) >= 3
        and len(lines) > 2 * len(blocks)
        and lines[len(lines) // 2] >= LONG_LINE_CHARS
    ):
        return "lines"
    single = sorted(block[0] for block in blocks if len(block) == 1)
    if (
        len(blocks) >= 3
        and len(single) >= 0.95 * len(blocks)
        and single[len(single) // 2] >= LONG_BLOCK_CHARS
        and file.path.suffix.lower() not in (".md", ".markdown")
    ):
        return "blank lines"
    return "whole"


def _documents(file: DataFile, faults: Faults, style: str) -> Iterator[str]:
    lines: list[str] = []
    size_chars = 0
    for _, line in read_lines(file, faults):
        bare = line.strip(" \t\r\n")
        if style == "lines":
            yield line
            continue
        ends = bare in DOCUMENT_MARKS if style == "marks" else (style == "blank lines" and not bare)
        if not ends:
            lines.append(line)
            size_chars += len(line)
        if ends or (
            style == "whole"
            and size_chars >= PIECE_CHARS
            and (not bare or size_chars >= 2 * PIECE_CHARS)
        ):
            yield "".join(lines)
            lines, size_chars = [], 0
    yield "".join(lines)
