"""Files with fine-tuning jobs of OpenAI's: recognised, read, and the files that they name found
beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import read_at_most
from advisor.ground.json_values import parse_json
from advisor.ground.shape import NamedValue
from advisor.ground.yaml_reader import Document, parse_yaml
from advisor.other_tools.openai_job.job import JOB, Job, job_faults, read_job

LOOKED_AT_BYTES = 1 << 16
MOST_BYTES = 16 << 20
MARKED_BYTES = 1 << 20  # a larger file has no lines and columns in its faults
SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")
ENDINGS = ("", ".jsonl", ".json")  # of a training file that is called by its id


@dataclass(frozen=True, slots=True)
class Placed:
    """An object of a file with the places of its parts."""

    document: Document | NamedValue
    path: tuple[str | int, ...]
    where: str

    @property
    def data(self) -> Mapping[str, Any]:
        data = self.document.data
        for step in self.path:
            data = data[step]
        assert isinstance(data, Mapping)
        return data


def looks_like_jobs(path: str | Path) -> bool:
    """Whether a file may hold jobs: a glance at its beginning, before anything is parsed."""
    file = Path(path)
    try:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            return False
        with file.open("rb") as stream:
            begin = stream.read(LOOKED_AT_BYTES)
    except OSError:
        return False
    if begin.lstrip()[:1] not in (b"{", b"["):
        return False
    if f'"{JOB}"'.encode() in begin:
        return True
    # The body of a request, which has no `object`. Rows of data may quote one inside a text.
    return b'"training_file"' in begin and b'"model"' in begin and b'"messages"' not in begin


def read_jobs(path: str | Path) -> tuple[Job, ...] | None:
    """The jobs in a file, in its order; None if it holds none.

    One object, a list, an answer of the API with `data`, or one object a line.

    Raises InputError with every fault: broken JSON, keys that are missing or of the wrong kind.
    """
    if not looks_like_jobs(path):
        return None
    raw = read_at_most(Path(path), MOST_BYTES)
    if len(raw) > MOST_BYTES:  # rows that quote a job, or name files
        return None
    placed = [one for one in _objects(raw, str(path)) if _is_job(one.data)]
    if not placed:
        return None
    faults = [fault for one in placed for fault in job_faults(one.document, one.path)]
    if faults:
        raise InputError(faults=faults)
    return tuple(read_job(one.data, where=one.where) for one in placed)


def _is_job(data: Mapping[str, Any]) -> bool:
    if "object" in data:
        return bool(data["object"] == JOB)
    return "training_file" in data and "model" in data


def _objects(raw: bytes, name: str) -> list[Placed]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", where=f"{name}: byte {error.start + 1}") from None
    try:
        whole = parse_json(text)
    except json.JSONDecodeError as error:
        lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for _, line in lines):
            return _lines(lines, name)
        raise _broken(name, error, error.lineno) from None
    document = _marked(text, whole, name)
    if isinstance(whole, Mapping) and isinstance(whole.get("data"), list):
        return _items(document, ("data",), name)
    if isinstance(whole, list):
        return _items(document, (), name)
    return [Placed(document, (), name)] if isinstance(whole, Mapping) else []


def _items(document: Document | NamedValue, path: tuple[str | int, ...], name: str) -> list[Placed]:
    items: Any = document.data
    for step in path:
        items = items[step]
    return [
        Placed(document, (*path, at), f"{name}: {at + 1}")
        for at, item in enumerate(items)
        if isinstance(item, Mapping)
    ]


def _lines(lines: list[tuple[int, str]], name: str) -> list[Placed]:
    placed: list[Placed] = []
    faults: list[Fault] = []
    is_short = sum(len(line) for _, line in lines) <= MARKED_BYTES
    for number, line in lines:
        try:
            data = parse_json(line)
        except json.JSONDecodeError as error:
            faults += _broken(name, error, number).faults
            continue
        # Of a file with very many jobs each fault has its line all the same.
        marked = _marked(line, data, name) if is_short else NamedValue(f"{name}:{number}", data)
        if isinstance(marked, Document):  # the places of a line, on its line of the file
            marked = Document(
                name,
                data,
                {path: (number, column) for path, (_, column) in marked.key_marks.items()},
                {path: (number, column) for path, (_, column) in marked.value_marks.items()},
            )
        if isinstance(data, Mapping):
            placed.append(Placed(marked, (), f"{name}:{number}"))
    if faults:
        raise InputError(faults=faults)
    return placed


def _broken(name: str, error: json.JSONDecodeError, line: int) -> InputError:
    ends = error.pos >= len(error.doc.rstrip())
    what = "the file ends inside the object" if ends else error.msg.lower()
    return InputError(
        f"invalid JSON: {what}",
        where=f"{name}:{line}:{error.colno}",
        hint="save the answer of the API again, whole" if ends else "",
    )


def _marked(text: str, data: Any, name: str) -> Document | NamedValue:
    """The data with the places of its parts; with paths alone where YAML reads the text otherwise
    (tabs) or it is long.
    """
    if len(text) <= MARKED_BYTES:
        try:
            found = parse_yaml(text, name=name)
        except InputError:
            pass
        else:
            return Document(name, data, found.key_marks, found.value_marks)
    return NamedValue(name, data)


# --------------------------------------------------------------------------- files beside it


def file_beside(path: str | Path, wanted: str) -> Path | None:
    """The file that a job names, in the folder of the job's file: under its id with or without an
    ending, or under its name.
    """
    folder = Path(path).parent
    name = Path(wanted).name  # never a path out of the folder
    if not name or name in (".", ".."):
        return None
    return next(
        (folder / f"{name}{end}" for end in ENDINGS if (folder / f"{name}{end}").is_file()), None
    )
