"""One file of data as lines of text: unpacked, decoded whatever it was saved in, and what is wrong
with it so far.

A byte order mark says UTF-16. Else Windows-1252, which office programs write, is taken if its
letters are those of one language, and another encoding if charset-normalizer finds no second
one: wrong letters in training data are worse than an error.
"""

from __future__ import annotations

import codecs
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from advisor.ground.errors import Fault, InputError

if TYPE_CHECKING:
    from advisor.ground.progress import Wait

# Ending of a file -> what it is taken for.
CONTAINERS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".tab": "csv", ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
# A row is held in memory as a whole: a small packed file could ask for all there is.
MOST_ROW_BYTES = 256 << 20
KEPT_FAULTS = 1000  # a file with more is not worth reading to its end
PLACED = re.compile(r"(.+?:\d+(?::\d+)?): ")
LOOKED_AT_BYTES = 256 << 10  # of the lines beyond ASCII, of the whole file
OF_ONE_LANGUAGE = 0.95  # of the letters beyond ASCII
# By which a second reading of the same bytes has to be worse: its disorder, and how well its
# letters fit a language.
CLEAR_CHAOS, CLEAR_COHERENCE = 0.05, 0.1
# The letters beyond ASCII of each language that is written in Windows-1252.
WESTERN = (
    "äöüßé", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "ãáàâçéêíóôõú", "àèéìíîòóùú", "æøåéó", "åäöé",
    "ëïéèóöü", "áðéíóúýþæö", "àçèéíïòóúü",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One file of a data path."""

    path: Path
    shown: str  # as messages name it
    container: str  # json | jsonl | csv | text | parquet | arrow
    gzipped: bool = False
    encoding: str = "utf-8"  # another one only if its first bytes tell

    @property
    def is_wide(self) -> bool:
        """Whether it is UTF-16 or UTF-32, which is turned into UTF-8 before lines are cut."""
        return self.encoding.startswith(("utf-16", "utf-32"))


@dataclass(slots=True)
class Faults:
    """Everything wrong with a file so far: raised together, or looked at by `profile`."""

    items: list[Fault] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # line or record of each
    key_twice: bool = False  # in the row that is being read
    # no fault: the last one counts, as JSON readers have it
    rows_with_key_twice: list[int] = field(default_factory=list)
    # file -> how it was read, if that is not comma and UTF-8: {"separator": "semicolon"}
    read_as: dict[str, dict[str, str]] = field(default_factory=dict)

    def object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object, noted if a key stands twice in it."""
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

    def add_broken(self, row: int, file: DataFile, line: int, error: BaseException) -> None:
        """Add that a file breaks off while it is read, after a line."""
        if file.gzipped:
            what = f"{file.shown}: the gzip data is cut off or damaged after line {line}"
            self.add(row, what, "download or copy it again; `gzip -t` checks it")
        else:
            why = getattr(error, "strerror", None) or error
            what = f"{file.shown}: reading failed after line {line} ({why})"
            self.add(row, what, "check the disk, or copy the file again")

    def add_too_long(self, row: int, file: DataFile) -> None:
        """Add a row that is not read to its end."""
        what = f"{file.shown}:{row}: a row of more than {MOST_ROW_BYTES >> 20} MiB"
        hint = "one row is one example; a packed file may unpack to far more than its size"
        self.add(row, what, hint)

    def note(self, file: DataFile, what: str, name: str) -> None:
        """Remember how a file is read: its separator or its encoding."""
        self.read_as.setdefault(file.shown, {})[what] = name

    @property
    def full(self) -> bool:
        return len(self.items) >= KEPT_FAULTS

    def raise_if_any(self) -> None:
        if self.items:
            raise InputError(faults=self.items)


LARGE_BYTES = 16 << 20  # smaller files are read before anybody waits
BUFFER_BYTES = 1 << 20
# What reading raises on a broken disk and on gzip data that are cut off or damaged.
BROKEN = (OSError, EOFError, zlib.error)


class CountedFile(io.FileIO):
    """A file that shows how far it is read, from its first byte until it is closed."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        from advisor.ground import progress

        self.what, self.size, self.board = f"reading {path.name}", size, progress.board
        self.wait: Wait | None = None

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if self.wait is None:
            self.wait = self.board.open(self.what, total=self.size, unit="bytes")
        self.wait.at(min(self.tell(), self.size))
        return count

    def close(self) -> None:
        if self.wait is not None:
            self.board.close(self.wait, alone=True)
            self.wait = None
        super().close()


def open_large(path: Path) -> IO[bytes]:
    """The bytes of a file, whose reading is shown if it is large. Raises OSError."""
    size = path.stat().st_size
    if size < LARGE_BYTES or not path.is_file():
        return path.open("rb")
    return io.BufferedReader(CountedFile(path, size), BUFFER_BYTES)


def open_bytes(file: DataFile) -> IO[bytes]:
    """The bytes of a file, unpacked, and in UTF-8 if it is UTF-16 or UTF-32."""
    try:
        stream: Any = open_large(file.path)
    except PermissionError:
        hint = f"chmod u+r {file.shown}, or ask its owner"
        raise InputError("no permission to read it", where=file.shown, hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=file.shown) from None
    if file.gzipped:
        import gzip

        opened, stream = stream, gzip.GzipFile(fileobj=stream)
        stream.myfileobj = opened  # closed with it
    return io.BufferedReader(_Transcoded(stream, file)) if file.is_wide else stream  # type: ignore[type-var]


class _Transcoded(io.RawIOBase):
    """A stream of a file in UTF-16 or UTF-32, read as UTF-8, so that all readers see the same.

    Reading raises InputError if the file is damaged.
    """

    def __init__(self, stream: IO[bytes], file: DataFile) -> None:
        self._stream, self._file = stream, file
        self._decoder = codecs.getincrementaldecoder(file.encoding)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        raw = b"-"
        while raw and not self._ready:
            raw = self._stream.read(1 << 16)
            try:
                self._ready = self._decoder.decode(raw, final=not raw).encode()
            except UnicodeDecodeError as error:
                name = encoding_name(self._file.encoding)
                what = f"the file is not sound {name} ({error.reason})"
                hint = "download or copy it again, or save it as UTF-8"
                raise InputError(what, where=self._file.shown, hint=hint) from None
        count = min(len(self._ready), len(buffer))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def read_lines(file: DataFile, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a file; lines that are not text go to `faults`.

    A file that is not UTF-8 is read in the encoding that is sure; if none is, one fault says so.
    """
    line_number = 0
    encoding, unsure = "utf-8" if file.is_wide else file.encoding, False
    if file.encoding != "utf-8":
        faults.note(file, "encoding", encoding_name(file.encoding))
    with open_bytes(file) as stream:
        try:
            while raw := stream.readline(MOST_ROW_BYTES + 1):
                line_number += 1
                if len(raw) > MOST_ROW_BYTES:
                    faults.add_too_long(line_number, file)
                    return
                line = _decoded(raw, encoding)
                if line is None:
                    if unsure:
                        continue
                    found = legacy_encoding(file) if encoding == "utf-8" else None
                    line = None if found is None else _decoded(raw, found)
                    if found is None or line is None:
                        unsure = True
                        faults.add(line_number, *_not_sure(file, line_number))
                        continue
                    faults.note(file, "encoding", encoding_name(found))
                    encoding = found
                if "\0" in line:
                    at = f"{file.shown}:{line_number}:{line.index(chr(0)) + 1}"
                    what = f"{at}: a NUL character; the file is binary or damaged"
                    faults.add(line_number, what, "export the data again as UTF-8 text")
                    if faults.full:
                        return
                    continue
                yield line_number, line.removeprefix("\ufeff") if line_number == 1 else line
        except BROKEN as error:
            faults.add_broken(line_number + 1, file, line_number, error)


def _decoded(raw: bytes, encoding: str) -> str | None:
    """A line in an encoding; None if it makes no sense in it."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _not_sure(file: DataFile, line_number: int) -> tuple[str, str]:
    """What to say of a file whose encoding is not sure, and what to do."""
    name = shlex.quote(file.path.name)
    return (
        f"{file.shown}:{line_number}: not UTF-8, and the encoding of the file is not sure",
        f"save it as UTF-8, or convert it: iconv -f ENCODING -t UTF-8 {name} > utf8-{name}",
    )


# --------------------------------------------------------------------------- encodings


def encoding_name(encoding: str) -> str:
    """What people call an encoding: Windows-1252, UTF-16, KOI8-R."""
    if encoding.startswith(("utf-16", "utf-32")):
        return encoding[:6].upper()
    if encoding.startswith("cp125"):
        return f"Windows-{encoding[2:]}"
    return encoding.upper().replace("_", "-")


def encoding_of_start(head: bytes) -> str | None:
    """The encoding that a byte order mark tells, or zeros beside every ASCII letter; else None."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2], head[1::2]
    # Without a mark: ASCII text has a zero in every second place, and text of other scripts still
    # at its spaces and line ends.
    for zeros, letters, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros and zeros.count(0) >= max(2, 0.3 * len(zeros)) and not letters.count(0):
            return encoding
    return None


def legacy_encoding(file: DataFile) -> str | None:
    """The encoding of a file in which a line that is not UTF-8 was met, by the whole file; None
    if it is not sure.
    """
    return _legacy_encoding(file, file.path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _legacy_encoding(file: DataFile, _changed: int) -> str | None:
    sample = bytearray()
    with open_bytes(file) as stream:
        for line in stream:
            if line.isascii() or line.startswith(codecs.BOM_UTF8):
                continue
            if _decoded(line, "utf-8") is not None:
                return None  # a mixture
            if len(sample) < LOOKED_AT_BYTES:
                sample += line
    return encoding_of(bytes(sample))


def encoding_of(sample: bytes) -> str | None:
    """The one encoding in which text that is not UTF-8 makes sense; None if none or two do."""
    if _is_western(sample):
        return "cp1252"
    from charset_normalizer import from_bytes

    found = from_bytes(sample)
    best = found.best()
    if best is None or any("\x80" <= char <= "\x9f" for char in str(best)):
        return None
    for other in found:
        near = other.chaos < best.chaos + CLEAR_CHAOS
        if near and other.coherence > best.coherence - CLEAR_COHERENCE and str(other) != str(best):
            return None
    return str(best.encoding)


def _is_western(sample: bytes) -> bool:
    """Whether text in Windows-1252 has letters of one language, beside quotes and dashes."""
    text = _decoded(sample, "cp1252")
    if text is None:
        return False
    letters = [char for char in text.lower() if char > "\x7f" and (char.isalnum() or char == "º")]
    most = max(sum(map(language.__contains__, letters)) for language in WESTERN)
    return most >= OF_ONE_LANGUAGE * len(letters)
