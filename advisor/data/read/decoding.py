"""Bytes of a file as UTF-8, whatever it was saved in, and what is said where that cannot be."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from advisor.data.read.encodings import NAMES, WIDE, guess_encoding
from advisor.data.read.found import DataFile
from advisor.ground.errors import InputError

SHOWN_LINES = 5
PREVIEW_CHARS = 40
Open = Callable[[DataFile], IO[bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Legacy:
    """A file that is not UTF-8: the encoding that explains it, or why none is taken."""

    encoding: str | None
    count: int  # lines that are not UTF-8
    lines: tuple[int, ...]  # the first of them
    utf8_line: int | None  # the first line that is UTF-8 beyond ASCII
    mixed: bool  # it holds more such lines than chance makes
    considered: tuple[tuple[str, str], ...]  # name of an encoding, how the first line reads in it

    @property
    def name(self) -> str:
        return NAMES.get(self.encoding or "", "")

    @property
    def is_clear(self) -> bool:
        """Whether all of the file can be read in one encoding."""
        return self.encoding is not None and not self.mixed


def transcoded(stream: IO[bytes], file: DataFile) -> IO[bytes]:
    """A stream in UTF-16 or UTF-32, read as UTF-8.

    Reading raises InputError where the file is damaged.
    """
    return io.BufferedReader(_Transcoded(stream, file))  # type: ignore[type-var]


class _Transcoded(io.RawIOBase):
    """A stream of a file in UTF-16 or UTF-32, read as UTF-8, so that all readers see the same."""

    def __init__(self, stream: IO[bytes], file: DataFile) -> None:
        self._stream, self._file = stream, file
        self._decoder = codecs.getincrementaldecoder(file.encoding)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._ready:
            raw = self._stream.read(1 << 16)
            try:
                self._ready = self._decoder.decode(raw, final=not raw).encode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"the file is not sound {NAMES[self._file.encoding]} ({error.reason})",
                    where=self._file.shown,
                    hint="download or copy it again, or save it as UTF-8",
                ) from None
            if not raw:
                break
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._stream.close()
        super().close()


def legacy_of(file: DataFile, open_bytes: Open) -> Legacy:
    """The encoding of a file in which a line that is not UTF-8 was met; looks at the whole file."""
    status = file.path.stat()
    return _legacy(file, open_bytes, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _legacy(file: DataFile, open_bytes: Open, _size: int, _changed: int) -> Legacy:
    shown: list[int] = []
    count = 0
    utf8_line: int | None = None
    utf8_count = 0

    def foreign() -> Iterator[bytes]:
        nonlocal count, utf8_line, utf8_count
        with open_bytes(file) as stream:
            for number, line in enumerate(stream, 1):
                if line.isascii():
                    continue
                try:
                    line.removeprefix(codecs.BOM_UTF8).decode()
                except UnicodeDecodeError:
                    count += 1
                    if len(shown) < SHOWN_LINES:
                        shown.append(number)
                    yield line
                else:
                    utf8_line = utf8_line or number
                    utf8_count += 1

    lines = foreign()
    sample = [line for line, _ in zip(lines, range(2000), strict=False)]
    for _ in lines:  # counts the rest
        pass
    sense, considered = guess_encoding(sample)
    # Two bytes of a Chinese or Korean character may happen to be UTF-8; of a Latin text never.
    by_chance = sense is not None and sense.encoding in WIDE and utf8_count < 0.05 * count
    return Legacy(
        encoding=None if sense is None else sense.encoding,
        mixed=utf8_count > 0 and not by_chance,
        count=count,
        lines=tuple(shown),
        utf8_line=utf8_line,
        considered=tuple(
            (one.name, sample[0].decode(one.encoding, "replace").strip()[:PREVIEW_CHARS])
            for one in considered[:3]
            if one.share > 0
        ),
    )


def clear_from(file: DataFile, line_number: int, open_bytes: Open) -> str | None:
    """The encoding to go on in after a line that is not UTF-8; None where none is clear, or where
    lines before it were read as UTF-8 already.
    """
    found = legacy_of(file, open_bytes)
    early = found.utf8_line is not None and found.utf8_line < line_number
    return found.encoding if found.is_clear and not early else None


def refusal(file: DataFile, found: Legacy) -> tuple[str, str]:
    """What to say of a file whose encoding is not clear, and what to do."""
    lines = ", ".join(map(str, found.lines)) + (", ..." if found.count > len(found.lines) else "")
    where, is_not = (
        (f"lines {lines}", "are not") if found.count > 1 else (f"line {lines}", "is not")
    )
    if found.mixed:
        return (
            f"{file.shown}: {where} {is_not} UTF-8, while line {found.utf8_line} is: the file mixes"
            " two encodings",
            "save the whole file as UTF-8, or write these lines again",
        )
    read = "; ".join(f"in {name}: {text}" for name, text in found.considered)
    return (
        f"{file.shown}: {where} {is_not} UTF-8, and it is not clear in which encoding the file is"
        + (f" (line {found.lines[0]} {read})" if read else ""),
        "convert it from the one that reads right: iconv -f ENCODING -t UTF-8"
        f" {file.path.name} > utf8-{file.path.name}",
    )


def undefined(
    file: DataFile, number: int, raw: bytes, error: UnicodeDecodeError, encoding: str
) -> tuple[str, str]:
    """What to say of a byte that means nothing in the encoding of its file."""
    return (
        f"{file.shown}:{number}: byte {error.start + 1} is 0x{raw[error.start]:02x}, which means"
        f" nothing in {NAMES[encoding]}, the encoding of the other lines",
        "write this line again, or save the whole file as UTF-8",
    )
