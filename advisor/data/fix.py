"""A cleaned copy of a data file: what cannot be used and what is repeated is left out, encodings
are repaired.

The file itself is never touched. Every change is written down, one JSON object a line, beside the
copy; what is only a suspicion (private data, similar rows, template marks) is reported by `advise
check` and left as it is.
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from advisor.data.conversation import as_turns, read_turn
from advisor.data.example import Example, Message
from advisor.data.examples import CHANGES, EMPTY, NOT_A_ROW, REASONS, TRAILING, builder, is_empty
from advisor.data.read.files import (
    CONTAINERS,
    Faults,
    find_data,
    is_broken_gzip,
    open_bytes,
)
from advisor.data.read.found import DataFile, Found
from advisor.data.read.rows import READERS, delimiter_of, document_style, json_message, with_columns
from advisor.data.recognition.recognise import Recognition, recognise
from advisor.ground.errors import InputError

SHOWN_ROWS = 20
REPEATS = "repeats an earlier row word for word"


@dataclass(slots=True)
class Changes:
    """What was changed, counted by reason; every single change goes to `stream`."""

    stream: IO[str]
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)  # the first twenty of each reason

    def note(self, row: int, did: str, because: str, *, file: str, detail: str = "") -> None:
        """Writes one change down. `did`: left out | changed | repaired."""
        entry = {
            "file": file,
            "row": row,
            "did": did,
            "because": because,
            **({"detail": detail} if detail else {}),
        }
        self.stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        key = f"{did}: {because}"
        self.counts[key] = self.counts.get(key, 0) + 1
        rows = self.rows.setdefault(key, [])
        if len(rows) < SHOWN_ROWS:
            rows.append(row)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """The copy that was written."""

    path: str
    out: str
    changes_path: str
    rows_before: int
    rows_after: int
    counts: Mapping[str, int]
    rows: Mapping[str, tuple[int, ...]]


def fixed_copy(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Fixed:
    """Writes the cleaned copy and, beside it, `<out>.changes.jsonl`.

    Args:
        mapping: Role -> column, as for `profile`.
        overwrite: Replace files that are there already; never the data itself.

    Raises:
        InputError: The data cannot be read or recognised, `out` is there already, or no row would
        be left.
    """
    found = find_data(path)
    target = Path(out)
    _refuse_bad_target(found, Path(path), target, overwrite=overwrite)
    changes_path = target.with_name(f"{target.name}.changes.jsonl")
    if changes_path.exists() and not overwrite:
        raise InputError(
            f"--fix: {changes_path} is there already",
            hint="name another file, or add --force to replace both",
        )
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made, before, after = work / "made", 0, 0
        with (work / "changes").open("w", encoding="utf-8") as stream:
            changes = Changes(stream)
            repaired = [
                _repaired(file, work / f"{index}", changes)
                for index, file in enumerate(found.files)
            ]
            recognition = _recognised(repaired, mapping)
            cleaner = _Cleaner(recognition, changes)
            for original, file in zip(found.files, repaired, strict=True):
                part = (
                    made / original.path.relative_to(found.root or Path(path))
                    if found.folder
                    else made
                )
                part.parent.mkdir(parents=True, exist_ok=True)
                cleaner.file = original.path.name
                zipped = original.gzipped if found.folder else target.name.lower().endswith(".gz")
                seen, kept = WRITERS[file.container](file, part, cleaner, zipped)
                before, after = before + seen, after + kept
        if after == 0:
            raise InputError(
                f"{path}: no row would be left",
                hint=f"advise check {shlex.quote(str(path))} says what is wrong with them",
            )
        os.replace(made, target)
        os.replace(work / "changes", changes_path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rows = {key: tuple(numbers) for key, numbers in changes.rows.items()}
    return Fixed(
        path=os.fspath(path),
        out=str(target),
        changes_path=str(changes_path),
        rows_before=before,
        rows_after=after,
        counts=changes.counts,
        rows=rows,
    )


def _refuse_bad_target(found: Found, path: Path, target: Path, *, overwrite: bool) -> None:
    if found.container == "arrow":
        raise InputError(
            f"{path}: a folder that `datasets` saved is not written again",
            hint='save it as rows first: load_from_disk(...).to_json("train.jsonl")',
        )
    if not target.parent.is_dir():
        raise InputError(
            f"--fix: the folder {target.parent} does not exist",
            hint=f"mkdir -p {shlex.quote(str(target.parent))}",
        )
    if target.exists():
        if target.resolve() == path.resolve() or any(
            target.resolve() == file.path.resolve() for file in found.files
        ):
            raise InputError(
                f"--fix: {target} is the data itself, which is never changed",
                hint="name another file",
            )
        if target.is_dir():
            raise InputError(
                f"--fix: {target} is a folder that is there already", hint="name one that is not"
            )
        if not overwrite or not stat.S_ISREG(target.stat().st_mode):
            raise InputError(
                f"--fix: {target} is there already",
                hint="name another file, or add --force to replace it",
            )
    if found.folder:
        return
    ending = Path(target.name.lower().removesuffix(".gz")).suffix
    if CONTAINERS.get(ending) != found.container:
        raise InputError(
            f"--fix: the copy has the format of the data, {found.container}, and '{target.name}' is"
            " named otherwise",
            "endings:"
            f" {', '.join(name for name, container in CONTAINERS.items() if container == found.container)}",
        )


# --------------------------------------------------------------------------- bytes


def _repaired(file: DataFile, folder: Path, changes: Changes) -> DataFile:
    """The file as clean UTF-8 with Unix line ends, in a folder of its own; Parquet as it is."""
    if file.container in ("parquet", "arrow"):
        return file
    folder.mkdir()
    target = folder / file.path.name.removesuffix(".gz")
    name = file.path.name
    number, windows = 0, 0
    with open_bytes(file) as source, target.open("w", encoding="utf-8", newline="") as sink:
        try:
            for number, raw in enumerate(source, 1):
                line, repairs = _decoded(raw, first=number == 1, split=file.container == "jsonl")
                windows += raw.endswith(b"\r\n")
                for what in repairs:
                    changes.note(number, "repaired", what, file=name)
                sink.write(line)
        except Exception as error:
            if not isinstance(error, OSError) and not is_broken_gzip(error):
                raise
            changes.note(
                number + 1,
                "left out",
                "the file breaks off or is damaged here",
                file=name,
                detail=str(error),
            )
    if windows:
        changes.note(1, "repaired", "Windows line ends", file=name, detail=f"{windows} lines")
    return replace(file, path=target, gzipped=False)


def _decoded(raw: bytes, *, first: bool, split: bool) -> tuple[str, list[str]]:
    """A line as text, and what had to be done for it."""
    repairs: list[str] = []
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        try:
            line = raw.decode("cp1252")
            repairs.append("was not UTF-8, read as Windows-1252")
        except UnicodeDecodeError:
            line = raw.decode("latin-1")
            repairs.append("was not UTF-8, read as Latin-1")
    if first and line.startswith("\ufeff"):
        line = line[1:]
        repairs.append("a byte order mark")
    if "\0" in line:
        line = line.replace("\0", "")
        repairs.append("NUL characters")
    if line.endswith("\r\n"):
        line = line[:-2] + "\n"
    if (
        split and "\r" in line
    ):  # JSON holds no bare carriage return: these are line ends of an old Mac
        line = line.replace("\r", "\n")
        repairs.append("line ends of an old Mac")
    return line, repairs


def _recognised(repaired: list[DataFile], mapping: Mapping[str, str] | None) -> Recognition:
    """What the data is, judged by the repaired copies."""
    return recognise(repaired[0].path, mapping=mapping)


# --------------------------------------------------------------------------- rows


class _Cleaner:
    """Decides for every row whether it stays, goes, or stays changed."""

    def __init__(self, recognition: Recognition, changes: Changes) -> None:
        self.recognition = recognition
        self.changes = changes
        self.file = ""
        self._build = builder(recognition)
        self._seen: dict[bytes, str] = {}
        self._turns = recognition.mapping.get("messages") if recognition.kind == "paired" else None

    def clean(self, number: int, raw: Any) -> Any:
        """The row to write (the very same object where nothing was changed), or None."""
        row = with_columns(raw)
        example = (
            self._build(number, row)
            if isinstance(row, dict)
            else (EMPTY if row in (None, []) else NOT_A_ROW)
        )
        if isinstance(example, str):
            reason = EMPTY if example != NOT_A_ROW and is_empty(row) else example
            self.changes.note(number, "left out", REASONS[reason], file=self.file)
            return None
        trailing = self.recognition.kind == "paired" and example.messages[-1].role != "assistant"
        if trailing:
            last = max(
                index
                for index, message in enumerate(example.messages)
                if message.role == "assistant"
            )
            example = replace(example, messages=example.messages[: last + 1])
        key = blake2b(
            repr(_content(example)).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        if key in self._seen:
            self.changes.note(number, "left out", REPEATS, file=self.file, detail=self._seen[key])
            return None
        self._seen[key] = f"row {number} of {self.file}"
        if not trailing:
            return raw
        shortened = self._shortened(row)
        if shortened is None:
            return raw
        self.changes.note(number, "changed", CHANGES[TRAILING], file=self.file)
        return shortened if isinstance(raw, dict) else shortened["messages"]

    def _shortened(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row without the turns behind its last answer, None where they do not stand in a
        list.
        """
        cell = row.get(self._turns) if self._turns else None
        turns = as_turns(cell)
        if turns is None or self._turns is None:
            return None
        spoken = [read_turn(turn) for turn in turns]
        last = max(
            (
                index
                for index, turn in enumerate(spoken)
                if isinstance(turn, Message) and turn.role == "assistant"
            ),
            default=-1,
        )
        kept: Any = turns[: last + 1]
        return {
            **row,
            self._turns: json.dumps(kept, ensure_ascii=False) if isinstance(cell, str) else kept,
        }

    def faulty(self, faults: Faults) -> int:
        """Notes what could not be read. Returns how many places that were."""
        for number, fault in zip(faults.rows, faults.items, strict=True):
            self.changes.note(
                number,
                "left out",
                "cannot be read",
                file=self.file,
                detail=fault.what.split(": ", 1)[-1],
            )
        return len(faults.items)


def _content(example: Example) -> tuple[Any, ...]:
    groups = tuple(
        tuple(
            (message.role, message.content, message.weight, repr(message.extra))
            for message in group
        )
        for group in (example.messages, example.chosen, example.rejected)
    )
    return (*groups, example.text, example.good, example.answer, example.label, repr(example.tools))


# --------------------------------------------------------------------------- writers: one a contain


def _open(path: Path, zipped: bool, stack: ExitStack) -> IO[str]:
    if not zipped:
        return stack.enter_context(path.open("w", encoding="utf-8", newline=""))
    import io

    raw = stack.enter_context(path.open("wb"))
    packed = stack.enter_context(
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
    )  # the same rows give the same bytes
    return stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline=""))


def _dumped(row: Any, indent: int | None = None) -> str:
    return json.dumps(row, ensure_ascii=False, indent=indent)


def _write_jsonl(file: DataFile, target: Path, cleaner: _Cleaner, zipped: bool) -> tuple[int, int]:
    """Rows that stay keep their very bytes."""
    seen = kept = 0
    with ExitStack() as stack:
        sink = _open(target, zipped, stack)
        for number, line in enumerate(
            stack.enter_context(file.path.open(encoding="utf-8", newline="\n")), 1
        ):
            if line.isspace():
                continue
            seen += 1
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                cleaner.changes.note(
                    number,
                    "left out",
                    "cannot be read",
                    file=cleaner.file,
                    detail=f"invalid JSON: {json_message(error)}",
                )
                continue
            except (ValueError, RecursionError) as error:
                cleaner.changes.note(
                    number,
                    "left out",
                    "cannot be read",
                    file=cleaner.file,
                    detail=f"invalid JSON: {type(error).__name__}",
                )
                continue
            result = cleaner.clean(number, row)
            if result is None:
                continue
            kept += 1
            sink.write(line.rstrip("\n") + "\n" if result is row else _dumped(result) + "\n")
    return seen, kept


def _write_json(file: DataFile, target: Path, cleaner: _Cleaner, zipped: bool) -> tuple[int, int]:
    seen = kept = 0
    faults = Faults()
    with ExitStack() as stack:
        sink = _open(target, zipped, stack)
        sink.write("[")
        for number, row in READERS["json"](file, faults):
            seen += 1
            result = cleaner.clean(number, row)
            if result is not None:
                sink.write(
                    (",\n" if kept else "\n")
                    + "\n".join("  " + line for line in _dumped(result, 2).split("\n"))
                )
                kept += 1
        sink.write("\n]\n")
    return seen + cleaner.faulty(faults), kept


def _write_csv(file: DataFile, target: Path, cleaner: _Cleaner, zipped: bool) -> tuple[int, int]:
    import csv

    seen = kept = 0
    faults = Faults()
    with ExitStack() as stack:
        sink = _open(target, zipped, stack)
        writer = csv.writer(sink, delimiter=delimiter_of(file), lineterminator="\n")
        for number, row in READERS["csv"](file, faults):
            if not seen:
                writer.writerow(list(row))
            seen += 1
            result = cleaner.clean(number, row)
            if result is not None:
                writer.writerow(list(result.values()))
                kept += 1
    return seen + cleaner.faulty(faults), kept


def _write_text(file: DataFile, target: Path, cleaner: _Cleaner, zipped: bool) -> tuple[int, int]:
    """Documents with the same mark between them; a file that is one document is copied whole."""
    style = document_style(file)
    seen = kept = 0
    with ExitStack() as stack:
        sink = _open(target, zipped, stack)
        if style == "whole":
            shutil.copyfileobj(
                stack.enter_context(file.path.open(encoding="utf-8", newline="")), sink
            )
            return 1, 1
        between = {"marks": f"\n{_mark(file)}\n", "blank lines": "\n\n", "lines": "\n"}[style]
        for number, row in READERS["text"](file, Faults()):
            seen += 1
            result = cleaner.clean(number, row)
            if result is not None:
                sink.write((between if kept else "") + result["text"])
                kept += 1
        sink.write("\n")
    return seen, kept


def _mark(file: DataFile) -> str:
    from advisor.data.read.rows import DOCUMENT_MARKS

    with file.path.open(encoding="utf-8") as lines:
        return next(
            (bare for line in lines if (bare := line.strip(" \t\r\n")) in DOCUMENT_MARKS),
            DOCUMENT_MARKS[0],
        )


def _write_parquet(
    file: DataFile, target: Path, cleaner: _Cleaner, _zipped: bool
) -> tuple[int, int]:
    import pyarrow
    import pyarrow.parquet

    from advisor.data.read.arrow import BATCH_ROWS

    seen = kept = 0
    with (
        pyarrow.parquet.ParquetFile(file.path) as source,
        pyarrow.parquet.ParquetWriter(target, source.schema_arrow) as sink,
    ):
        for batch in source.iter_batches(batch_size=BATCH_ROWS):
            rows = []
            for row in batch.to_pylist():
                seen += 1
                result = cleaner.clean(seen, row)
                if result is not None:
                    rows.append(result)
            if rows:
                sink.write_table(pyarrow.Table.from_pylist(rows, schema=source.schema_arrow))
                kept += len(rows)
    return seen, kept


Write = Callable[[DataFile, Path, _Cleaner, bool], tuple[int, int]]
WRITERS: dict[str, Write] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": _write_csv,
    "text": _write_text,
    "parquet": _write_parquet,
}
