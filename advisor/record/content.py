"""What files hold, by SHA-256: whether a model, a data file or a result is the one it was.

A file whose size and times are those of its record is not read again. Without torch: launcher and
trainers use the same digests.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.errors import InputError
from advisor.ground.files import open_regular, refused_by_system

THREADS = 4
FRESH_NS = 2 * 10**9  # a clock may not tell two changes apart that are closer than this

# What decides what a model or an adapter is. Notes, pictures and what trainers record do not.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
    "*.py",
)
PICKLED_FILES = ("*.bin", "*.bin.index.json")  # read only if there are no safetensors


class FileContent(JsonObject, frozen=True, kw_only=True):
    """What a file held when it was read, and how to see that it was not written since."""

    bytes: Annotated[int, "its size"]
    sha256: Annotated[str, "of its content"]
    mtime_ns: Annotated[int | None, "when it was written; null: it is read again", OMIT_NULL] = None
    ctime_ns: Annotated[int | None, "when it or its name was changed", OMIT_NULL] = None


Contents = Mapping[str, FileContent]  # name of a file -> what it holds


def file_content(path: Path, known: FileContent | None = None) -> FileContent:
    """What a file holds now.

    Raises InputError or MachineNotReady if it cannot be read.

    Args:
        path: The file; a link counts as the file it leads to.
        known: What it held earlier; returned as it is if size and times are still the same.
    """
    try:
        with open_regular(path) as file:
            before = _stamp(file.fileno())
            if known is not None and (known.bytes, known.mtime_ns, known.ctime_ns) == before:
                return known
            began_ns = time.time_ns()
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size, *times = _stamp(file.fileno())
    except OSError as error:
        raise refused_by_system(error) or InputError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            hint="check the disk, or copy it again",
        ) from error
    # A file that was written just now could change again within the same tick of the clock.
    is_settled = (size, *times) == before and max(times) < began_ns - FRESH_NS
    mtime_ns, ctime_ns = times if is_settled else (None, None)
    return FileContent(bytes=size, sha256=sha256, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises InputError or MachineNotReady if it cannot be read."""
    return file_content(path).sha256


def read_contents(
    paths: Mapping[str, Path], known: Contents | None = None
) -> dict[str, FileContent]:
    """What some files hold, by the names given; they are read in several threads.

    Raises InputError or MachineNotReady if one cannot be read.

    Args:
        paths: Name -> file.
        known: What they held earlier, by the same names.
    """
    # Imported here: reading run.json, which takes the values above, must not wait for it.
    from concurrent.futures import ThreadPoolExecutor

    from advisor.ground.progress import BYTES, waiting

    held = known or {}
    found = {}
    with (
        waiting("reading files", total=total_bytes(paths.values()), unit=BYTES) as done,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        read = pool.map(lambda name: file_content(paths[name], held.get(name)), paths)
        for name, content in zip(paths, read, strict=True):
            found[name] = content
            done(content.bytes)
    return found


def digest_of(contents: Contents) -> str:
    """SHA-256 of one file, or of names and contents of several, wherever they lie."""
    if len(contents) == 1:
        return next(iter(contents.values())).sha256
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{content.sha256}\n".encode())
    return digest.hexdigest()


_read_here: dict[Path, Contents] = {}  # by this process: a folder may be several things of a run


def folder_digest(folder: Path | str, known: Contents | None = None) -> str:
    """A digest of the files of a model or an adapter: configuration, weights, tokenizer, code.

    Links are followed, so a snapshot of the hub's cache counts as the files it leads to.

    Args:
        folder: A folder in Hugging Face layout.
        known: What its files held earlier.
    """
    place = Path(folder).resolve()
    found = _read_here[place] = read_contents(model_files(place), known or _read_here.get(place))
    return digest_of(found)


def model_files(folder: Path) -> dict[str, Path]:
    """The files that decide what a model or an adapter is, by their names in the folder."""
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    if not any(path.suffix == ".safetensors" for path in found):
        found |= {path for pattern in PICKLED_FILES for path in folder.glob(pattern)}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if path.is_file()}


def total_bytes(paths: Iterable[Path]) -> int:
    """The size of some files together."""
    return sum(path.stat().st_size for path in paths)


def _stamp(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
