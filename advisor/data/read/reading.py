"""Large files, opened so that reading them is a wait. The machinery of waits is loaded for these
alone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.ground.progress import Wait

LARGE_BYTES = 16 << 20  # smaller files are read before anybody waits
BUFFER_BYTES = 1 << 20


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
