"""The bytes of a data file as lines, unpacked and decoded, and what is wrong with a file so far."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from advisor.data.read.decoding import encoding_name, legacy_encoding, refusal, transcoded
from advisor.data.read.found import DataFile
from advisor.data.read.reading import open_large
from advisor.ground.errors import Fault, InputError

# A row is held in memory as a whole: a small packed file could ask for all there is.
MOST_ROW_BYTES = 256 << 20
KEPT_FAULTS = 1000  # a file with more is not worth reading to its end
PLACED = re.compile(r"(.+?:\d+(?::\d+)?): ")


@dataclass(slots=True)
class Faults:
    """Everything wrong with a file so far: raised together, or looked at by `profile`."""

    items: list[Fault] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # line or record of each
    key_twice: bool = False  # in the row that is being read
    rows_with_key_twice: list[int] = field(
        default_factory=list
    )  # no fault: the last one counts, as JSON readers have it
    # file -> how it was read, where that is not comma and UTF-8: {"separator": "semicolon"}
    read_as: dict[str, dict[str, str]] = field(default_factory=dict)

    def object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object, noted where a key stands twice in it."""
        made = dict(pairs)
        self.key_twice = self.key_twice or len(made) < len(pairs)
        return made

    def add(self, row: int, what: str, hint: str = "") -> None:
        """Add what is wrong with a row; it begins with its place: 'a.jsonl:2:18: invalid JSON'."""
        if not self.full:
            at = PLACED.match(what)
            where, text = (at[1], what[at.end() :]) if at else ("", what)
            self.items.append(Fault(where=where, what=text, hint=hint))
            self.rows.append(row)

    def note(self, file: DataFile, what: str, name: str) -> None:
        """Remember how a file is read: its separator or its encoding."""
        self.read_as.setdefault(file.shown, {})[what] = name

    @property
    def full(self) -> bool:
        return len(self.items) >= KEPT_FAULTS

    def raise_if_any(self) -> None:
        if self.items:
            raise InputError(faults=self.items)


def open_bytes(file: DataFile) -> IO[bytes]:
    """The unpacked bytes of a file."""
    try:
        if file.gzipped:
            import gzip

            opened = open_large(file.path)
            packed: Any = gzip.GzipFile(fileobj=opened)
            packed.myfileobj = opened  # closed with it
            return transcoded(packed, file) if file.is_wide else packed
        raw = open_large(file.path)
        return transcoded(raw, file) if file.is_wide else raw
    except PermissionError:
        raise InputError(
            "no permission to read it",
            where=file.shown,
            hint=f"chmod u+r {file.shown}, or ask its owner",
        ) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=file.shown) from None


def read_lines(file: DataFile, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a file; lines that are not text go to `faults`.

    A file that is not UTF-8 is read in the encoding that is sure (decoding.py); where none is, one
    fault says so.
    """
    line_number = 0
    encoding, unsure = "utf-8" if file.is_wide else file.encoding, False
    if file.encoding != "utf-8":
        faults.note(file, "encoding", encoding_name(file.encoding))
    with open_bytes(file) as stream:
        try:
            for line_number, raw in enumerate(_bounded_lines(stream), 1):
                if len(raw) > MOST_ROW_BYTES:
                    faults.add(line_number, *too_long(file, line_number))
                    return
                try:
                    line = raw.decode(encoding)
                except UnicodeDecodeError:
                    if unsure:
                        continue
                    found = legacy_encoding(file, open_bytes) if encoding == "utf-8" else None
                    decoded = None if found is None else _decoded(raw, found)
                    if found is None or decoded is None:
                        unsure = True
                        faults.add(line_number, *refusal(file, line_number))
                        continue
                    faults.note(file, "encoding", encoding_name(found))
                    encoding, line = found, decoded
                if "\0" in line:
                    faults.add(
                        line_number,
                        f"{file.shown}:{line_number}:{line.index(chr(0)) + 1}: a NUL character; the"
                        " file is binary or damaged",
                        "export the data again as UTF-8 text",
                    )
                    if faults.full:
                        return
                    continue
                if line_number == 1 and line.startswith("\ufeff"):
                    line = line[1:]
                yield line_number, line
        except OSError as error:
            faults.add(line_number + 1, *broken_stream(file, line_number, error))
        except Exception as error:
            if not is_broken_gzip(error):
                raise
            faults.add(line_number + 1, *broken_stream(file, line_number, error))


def _decoded(raw: bytes, encoding: str) -> str | None:
    """A line in an encoding; None where it makes no sense in it."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream; of one that is too long, its beginning."""
    while raw := stream.readline(MOST_ROW_BYTES + 1):
        yield raw


def too_long(file: DataFile, line_number: int) -> tuple[str, str]:
    """What to say of a row that is not read to its end."""
    return (
        f"{file.shown}:{line_number}: a row of more than {MOST_ROW_BYTES >> 20} MiB",
        "one row is one example; a packed file may unpack to far more than its size",
    )


def is_broken_gzip(error: BaseException) -> bool:
    """True for what gzip raises on cut off or damaged data."""
    import zlib

    return isinstance(error, (EOFError, zlib.error))


def broken_stream(file: DataFile, after_line: int, error: BaseException) -> tuple[str, str]:
    """What to say of a file that breaks off while it is read."""
    if file.gzipped:
        return (
            f"{file.shown}: the gzip data is cut off or damaged after line {after_line}",
            "download or copy it again; `gzip -t` checks it",
        )
    return (
        (
            f"{file.shown}: reading failed after line {after_line}"
            f" ({getattr(error, 'strerror', None) or error})"
        ),
        "check the disk, or copy the file again",
    )
