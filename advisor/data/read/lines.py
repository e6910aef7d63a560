"""One file of data as text: unpacked, decoded whatever it was saved in, and what is wrong with it
so far.

A byte order mark says UTF-16. Else Windows-1252, which office programs write, is taken if its
letters are those of one language, and another encoding if charset-normalizer finds no second
one: wrong letters in training data are worse than an error.
"""

from __future__ import annotations

import codecs
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

from msgspec import Struct, field

from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.files import open_regular

# Ending of a file -> what it is taken for.
CONTAINERS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".tab": "csv", ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text",
    ".parquet": "parquet", ".arrow": "arrow", ".xlsx": "excel",
}  # fmt: skip
# A row is held in memory as a whole: a small packed file could ask for all there is.
MOST_ROW_BYTES = 256 << 20
PIECE_BYTES = 1 << 20
KEPT_FAULTS = 1000  # a file with more is not worth reading to its end
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


class DataFile(Struct, frozen=True, kw_only=True):
    """One file of a data path."""

    path: Path
    shown: str  # as messages name it
    container: str  # json | jsonl | csv | text | parquet | arrow | excel
    gzipped: bool = False
    encoding: str = "utf-8"  # utf-16 or utf-32 if its first bytes tell
    size_bytes: int
    changed_ns: int  # when its content changed


class Faults(Struct):
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

    def add(self, at: str, row: int, what: str, hint: str = "") -> None:
        """Add what is wrong with a row at a place: 'a.jsonl:2:18'."""
        if not self.full:
            self.items.append(Fault(where=at, what=what, hint=hint))
            self.rows.append(row)

    def add_too_long(self, row: int, file: DataFile) -> None:
        """Add a row that is not read to its end."""
        what = f"a row of more than {MOST_ROW_BYTES >> 20} MiB"
        hint = "one row is one example; a packed file may unpack to far more than its size"
        self.add(f"{file.shown}:{row}", row, what, hint)

    def note(self, file: DataFile, what: str, name: str) -> None:
        """Remember how a file is read: its separator or its encoding."""
        self.read_as.setdefault(file.shown, {})[what] = name

    @property
    def full(self) -> bool:
        return len(self.items) >= KEPT_FAULTS

    def raise_if_any(self) -> None:
        refuse(self.items)


# What reading raises on a broken disk and on gzip data that are cut off or damaged.
BREAKS_OFF = (OSError, EOFError, zlib.error)
LARGE_BYTES = 16 << 20  # smaller files are read before anybody waits


def open_bytes(file: DataFile) -> IO[bytes]:
    """The bytes of a file, unpacked. Raises InputError."""
    try:
        stream: Any = open_regular(file.path)
    except OSError as error:
        raise cannot_open(file.shown, error) from None
    if file.gzipped:
        import gzip

        opened, stream = stream, gzip.GzipFile(fileobj=stream)
        stream.myfileobj = opened  # closed with it
    return stream  # type: ignore[no-any-return]


@contextmanager
def open_shown(file: DataFile) -> Iterator[Callable[[], bytes]]:
    """Reads on in a file, piece by piece; how far it is read is shown if it is large."""
    with open_bytes(file) as stream:
        read: Callable[[int], bytes] = stream.read1  # type: ignore[attr-defined]
        if file.size_bytes < LARGE_BYTES and not file.gzipped:
            yield partial(read, PIECE_BYTES)
            return
        from advisor.ground.progress import board

        is_large, lines = file.size_bytes >= LARGE_BYTES, 0
        total, unit = (file.size_bytes, "bytes") if is_large else (0, "lines")
        wait = board.open(f"reading {file.path.name}", total=total, unit=unit)
        packed = getattr(stream, "fileobj", stream)

        def read_on() -> bytes:
            nonlocal lines
            piece = read(PIECE_BYTES)
            lines += 0 if is_large else piece.count(b"\n")
            wait.at(min(packed.tell(), file.size_bytes) if is_large else lines)
            return piece

        try:
            yield read_on
        finally:
            board.close(wait, alone=True)


def cannot_open(shown: str, error: OSError) -> InputError:
    """The error for a file that the system does not open."""
    if isinstance(error, PermissionError):
        hint = f"chmod u+r {shown}, or ask its owner"
        return InputError("no permission to read it", where=shown, hint=hint)
    return InputError(f"cannot be read ({error.strerror})", where=shown)


def read_text(file: DataFile, faults: Faults) -> Iterator[str]:
    """The text of a file in pieces of about a megabyte; a fault ends it where it is unreadable."""
    if file.encoding != "utf-8":
        faults.note(file, "encoding", encoding_name(file.encoding))
    plain = may_be_other = file.encoding == "utf-8"
    decode = decoder_of("utf-8-sig" if plain else file.encoding)
    line, raw = 1, b"-"
    with open_shown(file) as read_on:
        while raw:
            try:
                data = raw = read_on()
            except BREAKS_OFF as error:
                faults.add(file.shown, line, *_broken_off(file, line - 1, error))
                return
            text = None
            while text is None:
                try:
                    text = decode(data, not raw)
                except UnicodeDecodeError as error:
                    data, found = error.object, legacy_encoding(file) if may_be_other else None
                    if found is None:
                        whole = data[: data.rfind(b"\n", 0, error.start) + 1]
                        if plain:
                            yield whole.decode(errors="replace")
                        line += data.count(b"\n", 0, error.start)
                        faults.add(f"{file.shown}:{line}", line, *_not_text(file))
                        return
                    faults.note(file, "encoding", encoding_name(found))
                    decode, may_be_other, plain = decoder_of(found), False, False
            if (nul := text.find("\0")) >= 0:
                start = text.rfind("\n", 0, nul) + 1
                yield text[:start]
                line += text.count("\n", 0, start)
                what = "a NUL character; the file is binary or damaged: it is read up to here"
                at = f"{file.shown}:{line}:{nul - start + 1}"
                faults.add(at, line, what, "export the data again as UTF-8 text")
                return
            yield text
            line += text.count("\n")


def decoder_of(encoding: str) -> Callable[[bytes, bool], str]:
    """Decodes bytes that come one after the other."""
    return codecs.getincrementaldecoder(encoding)().decode


def _broken_off(file: DataFile, line: int, error: BaseException) -> tuple[str, str]:
    """What to say of a file that breaks off after a line, and what to do."""
    if file.gzipped:
        what = f"the gzip data is cut off or damaged after line {line}"
        return what, "download or copy it again; `gzip -t` checks it"
    why = getattr(error, "strerror", None) or error
    what = f"reading failed after line {line} ({why})"
    return what, "check the disk, or copy the file again"


def _not_text(file: DataFile) -> tuple[str, str]:
    """What to say of bytes that are no text, and what to do."""
    if file.encoding != "utf-8":
        what = f"the file is not sound {encoding_name(file.encoding)}"
        return what, "download or copy it again, or save it as UTF-8"
    name = shlex.quote(file.path.name)
    return (
        "not UTF-8, and the encoding of the file is not sure: it is read up to here",
        "save it as UTF-8 in the program that wrote it; if Windows wrote it in Western Europe:\n"
        f"    iconv -f CP1252 -t UTF-8 {name} > utf8-{name}",
    )


def read_lines(file: DataFile, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a file; what is no text goes to `faults`."""
    number, begun, size = 1, [""], 0
    for text in read_text(file, faults):
        first, *lines = text.split("\n")
        begun.append(first)
        size += len(first)
        if size > MOST_ROW_BYTES:
            faults.add_too_long(number, file)
            return
        if not lines:
            continue
        lines.insert(0, "".join(begun))
        begun = [lines.pop()]
        size = len(begun[0])
        for line in lines:
            yield number, f"{line}\n"
            number += 1
    if last := "".join(begun):
        yield number, last


# --------------------------------------------------------------------------- encodings


def encoding_name(encoding: str) -> str:
    """What people call an encoding: Windows-1252, UTF-16, KOI8-R."""
    if encoding.startswith("cp125"):
        return f"Windows-{encoding[2:]}"
    return encoding.upper().replace("_", "-")


def encoding_of_start(head: bytes) -> str:
    """The encoding that a byte order mark tells; UTF-8 without one."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"


@lru_cache(maxsize=64)
def legacy_encoding(file: DataFile) -> str | None:
    """The one encoding in which all lines of a file make sense that are not ASCII; None if one of
    them is UTF-8, or none or two encodings do.
    """
    sample = bytearray()
    with open_bytes(file) as stream, suppress(*BREAKS_OFF):
        for line in stream:
            if line.isascii() or line.startswith(codecs.BOM_UTF8):
                continue
            if _decoded(line, "utf-8") is not None:
                return None  # a mixture
            if len(sample) < LOOKED_AT_BYTES:
                sample += line
    if _is_western(bytes(sample)):
        return "cp1252"
    from charset_normalizer import from_bytes

    found = from_bytes(bytes(sample))
    best = found.best()
    if best is None or best.encoding.startswith("utf_"):  # a byte order mark inside a file is none
        return None
    if any("\x80" <= char <= "\x9f" for char in str(best)):
        return None
    for other in found:
        near = other.chaos < best.chaos + CLEAR_CHAOS
        if near and other.coherence > best.coherence - CLEAR_COHERENCE and str(other) != str(best):
            return None
    return str(best.encoding)


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_western(sample: bytes) -> bool:
    """Whether text in Windows-1252 has letters of one language, beside quotes and dashes."""
    text = _decoded(sample, "cp1252")
    if text is None:
        return False
    letters = [char for char in text.lower() if char > "\x7f" and (char.isalnum() or char == "º")]
    most = max(sum(map(language.__contains__, letters)) for language in WESTERN)
    return most >= OF_ONE_LANGUAGE * len(letters)
