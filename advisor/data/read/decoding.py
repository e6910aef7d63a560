"""Bytes of a file as UTF-8, whatever it was saved in, and what is said where that cannot be.

A byte order mark says UTF-16. Else Windows-1252, which office programs write, is taken where its
letters are those of one language, and another encoding where charset-normalizer finds no second
one: wrong letters in training data are worse than an error.
"""

from __future__ import annotations

import codecs
import io
import shlex
from collections.abc import Callable
from functools import lru_cache
from typing import IO

from advisor.data.read.found import DataFile
from advisor.ground.errors import InputError

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
Open = Callable[[DataFile], IO[bytes]]


def encoding_name(encoding: str) -> str:
    """What people call an encoding: Windows-1252, UTF-16, KOI8-R."""
    if encoding.startswith(("utf-16", "utf-32")):
        return encoding[:6].upper()
    if encoding.startswith("cp125"):
        return f"Windows-{encoding[2:]}"
    return encoding.upper().replace("_", "-")


def from_first_bytes(head: bytes) -> str | None:
    """The encoding that a byte order mark tells, or zeros beside every ASCII letter; else None."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2], head[1::2]
    # Without a mark: ASCII text has a zero in every second place, and text of other scripts still
    # at its spaces and line ends.
    if odd and odd.count(0) >= max(2, 0.3 * len(odd)) and not even.count(0):
        return "utf-16-le"
    if even and even.count(0) >= max(2, 0.3 * len(even)) and not odd.count(0):
        return "utf-16-be"
    return None


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
                    f"the file is not sound {encoding_name(self._file.encoding)} ({error.reason})",
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


def legacy_encoding(file: DataFile, open_bytes: Open) -> str | None:
    """The encoding of a file in which a line that is not UTF-8 was met, by the whole file; None
    where it is not sure.
    """
    status = file.path.stat()
    return _legacy(file, open_bytes, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _legacy(file: DataFile, open_bytes: Open, _size: int, _changed: int) -> str | None:
    sample = bytearray()
    with open_bytes(file) as stream:
        for line in stream:
            if line.isascii() or line.startswith(codecs.BOM_UTF8):
                continue
            try:
                line.decode()
            except UnicodeDecodeError:
                if len(sample) < LOOKED_AT_BYTES:
                    sample += line
            else:
                return None  # a mixture
    return encoding_of(bytes(sample))


def encoding_of(sample: bytes) -> str | None:
    """The one encoding in which text that is not UTF-8 makes sense; None where none or two do."""
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
    try:
        text = sample.decode("cp1252").lower()
    except UnicodeDecodeError:
        return False
    letters = [char for char in text if char > "\x7f" and (char.isalnum() or char == "º")]
    most = max(sum(map(language.__contains__, letters)) for language in WESTERN)
    return most >= OF_ONE_LANGUAGE * len(letters)


def refusal(file: DataFile, line_number: int) -> tuple[str, str]:
    """What to say of a file whose encoding is not sure, and what to do."""
    name = shlex.quote(file.path.name)
    return (
        f"{file.shown}:{line_number}: not UTF-8, and the encoding of the file is not sure",
        f"save it as UTF-8, or convert it: iconv -f ENCODING -t UTF-8 {name} > utf8-{name}",
    )
