"""Python code as a syntax tree, of a script or of the cells of a notebook, whose lines are counted
through; lines for IPython or a shell are left out.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from advisor.ground.errors import InputError

MAGIC = re.compile(r"^(\s*)([%!?]|[A-Za-z_][\w.]*\s*=\s*[!%])")
OTHER_LANGUAGE = re.compile(
    r"%%(bash|sh|shell|script|html|javascript|js|svg|latex|markdown|writefile|file|perl|ruby)\b"
)
WRITTEN_PYTHON = re.compile(r"%%(writefile|file)\s+(-a\s+)?\S+\.py\b")


class Edit(NamedTuple):
    """Other text between two places, each a line from 1 and a column in bytes."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def replaced(node: ast.expr, text: str) -> Edit:
    """The edit that writes an expression in another way."""
    start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return Edit(start, end, text)


def inserted(call: ast.Call, several: Sequence[str]) -> Edit:
    """The edit that gives a call more arguments."""
    given = [*call.args, *(one.value for one in call.keywords)]
    if not given:
        line, column = call.end_lineno or 0, (call.end_col_offset or 1) - 1
        return Edit((line, column), (line, column), ", ".join(several))
    last = max(given, key=lambda one: (one.end_lineno or 0, one.end_col_offset or 0))
    places = [(one.lineno, one.col_offset) for one in call.args]
    line, column = min([*places, *((one.lineno, one.col_offset) for one in call.keywords)])
    between = f",\n{' ' * column}" if line > call.func.lineno else ", "
    at = (last.end_lineno or 0, last.end_col_offset or 0)
    return Edit(at, at, "".join(f"{between}{one}" for one in several))


def _with_edits(text: str, first: int, edits: Sequence[Edit]) -> str:
    lines = text.split("\n")
    for start, end, new in sorted(set(edits), reverse=True):
        before = lines[start[0] - first].encode()[: start[1]].decode()
        after = lines[end[0] - first].encode()[end[1] :].decode()
        lines[start[0] - first : end[0] - first + 1] = [f"{before}{new}{after}"]
    return "\n".join(lines)


class Cell(NamedTuple):
    """A code cell of a notebook."""

    number: int  # of all cells, from 1, as Jupyter shows them
    first: int  # its first line, of all lines
    text: str


class Source(NamedTuple):
    """Code, and where its lines stand."""

    tree: ast.Module
    text: str
    cells: Sequence[Cell] = ()  # of a notebook
    commands: str = ""  # its lines for a shell
    notes: Sequence[str] = ()
    outputs: str = ""  # of its cells, if they speak of memory

    def place(self, line: int) -> dict[str, int | None]:
        """{"line", "cell"} of a line, for the document."""
        if not line:
            return {"line": None, "cell": None}
        for cell in reversed(self.cells):
            if line >= cell.first:
                return {"line": line - cell.first + 1, "cell": cell.number}
        return {"line": line, "cell": None}

    def edited(self, text: str, edits: Sequence[Edit]) -> str:
        """The file with other text at places of its code; of a notebook all else stays."""
        if not self.cells:
            return _with_edits(text, 1, edits)
        data = json.loads(text)
        listed = _cells_of(data) or []
        for cell in self.cells:
            last = cell.first + cell.text.count("\n")
            here = [one for one in edits if cell.first <= one.start[0] <= last]
            if here:
                changed, one = _with_edits(cell.text, cell.first, here), listed[cell.number - 1]
                key = "source" if "source" in one else "input"
                is_list = isinstance(one[key], list)
                one[key] = changed.splitlines(keepends=True) if is_list else changed
        second = text.partition("\n")[2]
        spaces = len(second) - len(second.lstrip(" ")) or None
        end = "\n" if text.endswith("\n") else ""
        return json.dumps(data, indent=spaces, ensure_ascii=text.isascii()) + end

    def words(self, line: int) -> str:
        """'line 4', 'cell 3, line 2'."""
        found = self.place(line)
        cell = "" if found["cell"] is None else f"cell {found['cell']}, "
        return f"{cell}line {found['line']}"


def json_fault(error: Exception, name: str) -> tuple[str, str]:
    """(what is wrong with a JSON text, where: FILE:LINE:COLUMN if it says so)."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg, f"{name}:{error.lineno}:{error.colno}"
    return str(error) if isinstance(error, ValueError) else type(error).__name__, name


def source_of(text: str, name: str, *, is_notebook: bool) -> Source:
    """The code of a file. Raises InputError, with the line, for what is no Python."""
    return _notebook(text, name) if is_notebook else _script(text, name)


def _script(text: str, name: str) -> Source:
    try:
        tree, commands = _parsed(text)
    except SyntaxError as error:
        where = ":".join(map(str, filter(None, (name, error.lineno, error.offset))))
        old = re.search(r"(?m)^\s*print +[^(\s=]", text) is not None
        hint = "it looks like Python 2, which no trainer of today runs" if old else ""
        raise InputError(f"no Python code: {error.msg}", where=where, hint=hint) from None
    except (ValueError, RecursionError, MemoryError) as error:
        said = "it is nested too deep" if not isinstance(error, ValueError) else str(error)
        raise InputError(f"no Python code that can be read: {said}", where=name) from None
    return Source(tree, text, (), commands)


def _parsed(text: str) -> tuple[ast.Module, str]:
    """The tree, and the lines for a shell: of a notebook, also of one that was saved as code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in texts
        try:
            return ast.parse(text), ""
        except SyntaxError:
            if not any(map(MAGIC.match, text.splitlines())):
                raise
            code, commands = _without_magic(text)
            return ast.parse(code), commands


def _without_magic(text: str) -> tuple[str, str]:
    """The text with `pass` for each line that is for IPython or a shell; and those of a shell."""
    kept, commands, inside = list[str](), list[str](), False
    for line in text.splitlines():
        found = None if inside else MAGIC.match(line)
        if inside or found is not None:
            bare = line.strip()
            if inside or bare.startswith("!") or bare.startswith(("%sx", "%system")):
                commands.append(bare.lstrip("!"))
            inside = bare.endswith("\\")
            kept.append(f"{found[1]}pass" if found is not None else "")
        else:
            kept.append(line)
    return "\n".join(kept), "\n".join(commands)


def _notebook(text: str, name: str) -> Source:
    raw_text = text
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        what, where = json_fault(error, name)
        raise InputError(f"no notebook: {what[:120]}", where=where) from None
    listed = _cells_of(data)
    if listed is None:
        raise InputError("no notebook: it has no list of cells", where=name)
    cells, body, commands, notes = list[Cell](), list[ast.stmt](), list[str](), list[str]()
    line = 1
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict) or one.get("cell_type") != "code":
            continue
        raw = one.get("source", one.get("input", ""))
        source = "".join(map(str, raw)) if isinstance(raw, list) else str(raw)
        source = source.replace("\r\n", "\n")
        cells.append(Cell(number, line, source))
        code = source
        if OTHER_LANGUAGE.match(source.lstrip()) and not WRITTEN_PYTHON.match(source.lstrip()):
            commands.append(source.partition("\n")[2])
            code = ""
        try:
            tree, more = _parsed(code)
            commands += [more] if more else []
            ast.increment_lineno(tree, line - 1)
            body += tree.body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            said = getattr(error, "msg", None) or str(error)
            notes.append(f"cell {number}{at} is no Python and was left out: {said[:80]}")
        line += source.count("\n") + 2
    text = "\n\n".join(cell.text for cell in cells)
    said = "\n".join(map(_outputs, listed)) if "out of memory" in raw_text else ""
    return Source(ast.Module(body, []), text, tuple(cells), "\n".join(commands), tuple(notes), said)


def _outputs(cell: Any) -> str:
    """What a cell wrote as text: streams and tracebacks."""
    found = list[str]()
    several = cell.get("outputs") if isinstance(cell, dict) else None
    for one in several if isinstance(several, list) else ():
        for key in ("text", "traceback", "evalue") if isinstance(one, dict) else ():
            lines = one.get(key, "")
            found += map(str, lines) if isinstance(lines, list) else [f"{lines}\n"]
    return "\n".join(one.rstrip("\n") for one in found)


def _cells_of(data: Any) -> list[Any] | None:
    if not isinstance(data, dict):
        return None
    if isinstance(found := data.get("cells"), list):
        return found
    sheets = data.get("worksheets")  # of format 3
    if isinstance(sheets, list) and sheets and isinstance(sheets[0], dict):
        found = sheets[0].get("cells")
        return found if isinstance(found, list) else None
    return None
