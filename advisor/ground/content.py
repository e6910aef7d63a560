"""What files hold, by digest: whether a model, a data file or a result is the one it was.

A digest is SHA-256 of the whole content, up to `FULL_BYTES` in all. Larger files are sampled: their
size, their beginning, their end and blocks spread evenly between, which finds other weights but not
every single changed byte; the record says so. A file whose size and times are those of its record
is not read again. Without torch: launcher and trainers use the same digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import refused_by_system
from advisor.ground.json_values import OMIT_NULL, JsonObject

# One core hashes 1.5 GB a second with the SHA instructions of current CPUs, 0.4 without: 20 GiB
# (8 billion parameters in 16 bit) take 5 to 50 s, once.
FULL_BYTES = 20 * 2**30
READ_BYTES_PER_S = 10**9  # what to tell people how long reading takes
SAMPLED_BLOCKS, SAMPLED_BLOCK_BYTES = 256, 2**20  # of one sampled file
SAMPLED_EDGE_BYTES = 4 * 2**20  # its beginning, with the header of the tensors, and its end
READ_BYTES = 4 * 2**20
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
ADAPTER_CONFIG = "adapter_config.json"
BASE_PATH = re.compile(rb'("base_model_name_or_path":\s*)"(?:[^"\\]|\\.)*"')
PICKLED_FILES = ("*.bin", "*.bin.index.json")  # read only if there are no safetensors


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent(JsonObject):
    """What a file held when it was read, and how to see that it was not written since."""

    bytes: Annotated[int, "its size"]
    sha256: Annotated[str, "of its content; of its size and the sampled blocks if `sampled`"]
    sampled: Annotated[bool | None, "true: not every byte was read", OMIT_NULL] = None
    mtime_ns: Annotated[int | None, "when it was written; null: it is read again", OMIT_NULL] = None
    ctime_ns: Annotated[int | None, "when it or its name was changed", OMIT_NULL] = None

    def holds_the_same(self, other: FileContent) -> bool:
        """Whether the contents are equal, whenever they were written."""
        return (self.sha256, self.sampled) == (other.sha256, other.sampled)


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderContent:
    """What the files of a folder hold, by their names relative to it."""

    files: Mapping[str, FileContent] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """64 hex digits of names and contents: equal for equal content, wherever it lies."""
        return digest_of(self.files)

    @property
    def is_sampled(self) -> bool:
        """Whether some file was not read whole."""
        return any(content.sampled for content in self.files.values())


class KnownFiles:
    """Files that were read earlier, found again by name, size and times wherever they lie now."""

    def __init__(self, contents: Iterable[tuple[str, FileContent]] = ()) -> None:
        self.by_name: dict[str, list[FileContent]] = {}
        for name, content in contents:
            self.by_name.setdefault(PurePosixPath(name).name, []).append(content)

    def find(self, path: Path) -> FileContent | None:
        """What the file held when it was read, if it was not written since."""
        candidates = self.by_name.get(path.name, ())
        if not candidates:
            return None
        stamp = _stamp(path.stat())
        return next(
            (
                known
                for known in candidates
                if (known.bytes, known.mtime_ns, known.ctime_ns) == stamp
            ),
            None,
        )


def digest_of(files: Mapping[str, FileContent]) -> str:
    """64 hex digits of names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{content.sha256}\n".encode())
    return digest.hexdigest()


def file_digest(
    path: Path | str,
    *,
    known: FileContent | None = None,
    sample: bool | None = None,
    exact: bool = True,
    done: Callable[[int], object] = lambda _: None,
) -> FileContent:
    """What a file holds now.

    Raises InputError or MachineNotReady if it cannot be read.

    Args:
        path: The file; a link counts as the file it leads to.
        known: What it held earlier; returned as it is if size and times are still the same.
        sample: Read blocks of it only; default: if it is larger than `FULL_BYTES`.
        exact: False: the place of the base in adapter_config.json does not count.
        done: Told of bytes that were read.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if sample is None:
                sample = before.st_size > FULL_BYTES
            sample = sample and before.st_size > _sampled_bytes()
            if known is not None and _is_unchanged(known, before, sample):
                return known
            began_ns = time.time_ns()
            if path.name == ADAPTER_CONFIG and not exact:
                sha256 = hashlib.sha256(with_base_path(file.read(), "")).hexdigest()
            elif sample:
                sha256 = _sampled(file.fileno(), before.st_size)
            else:
                sha256 = _whole(file.fileno(), done)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from error
    # A file that was written just now could change again within the same tick of the clock.
    newest_ns = max(after.st_mtime_ns, after.st_ctime_ns)
    is_settled = _stamp(before) == _stamp(after) and newest_ns < began_ns - FRESH_NS
    return FileContent(
        bytes=before.st_size,
        sha256=sha256,
        sampled=True if sample else None,
        mtime_ns=after.st_mtime_ns if is_settled else None,
        ctime_ns=after.st_ctime_ns if is_settled else None,
    )


def base_path_in(config: bytes) -> str | None:
    """The place of the base in the content of an adapter_config.json; None if it names none."""
    found = BASE_PATH.search(config)
    if found is None:
        return None
    try:
        return str(json.loads(found.group(0)[len(found.group(1)) :]))
    except ValueError:
        return None


def with_base_path(config: bytes, path: str) -> bytes:
    """adapter_config.json with another place of the base, and every other byte as it is."""
    new = json.dumps(path).encode()
    return BASE_PATH.sub(lambda found: found.group(1) + new, config, count=1)


def folder_digest(folder: Path | str, *, known: KnownFiles | None = None) -> FolderContent:
    """What the files of a model or an adapter hold: configuration, weights, tokenizer, code.

    Links are followed, so a snapshot of the hub's cache counts as the files it leads to. The place
    of the base in an adapter's configuration does not count. If the files are larger than
    `FULL_BYTES` together, the large ones are sampled.

    Args:
        folder: A folder in Hugging Face layout.
        known: What files held earlier.
    """
    folder = Path(folder)
    return files_digest(
        {path.relative_to(folder).as_posix(): path for path in model_files(folder)}, known=known
    )


def model_files(folder: Path) -> list[Path]:
    """The files that decide what a model or an adapter is, sorted."""
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    if not any(path.suffix == ".safetensors" for path in found):
        found |= {path for pattern in PICKLED_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def files_digest(paths: Mapping[str, Path], *, known: KnownFiles | None = None) -> FolderContent:
    """What some files hold, by the names given; they are read in several threads.

    Raises InputError or MachineNotReady if one cannot be read.
    """
    # Imported here: reading run.json, which takes the values above, must not wait for it.
    from concurrent.futures import ThreadPoolExecutor

    from advisor.ground.progress import BYTES, waiting

    known = known or KnownFiles()
    size = total_bytes(paths.values())
    sample = size > FULL_BYTES
    with (
        waiting("reading files", total=0 if sample else size, unit=BYTES) as done,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        found = pool.map(
            lambda path: file_digest(
                path, known=known.find(path), sample=sample, exact=False, done=done
            ),
            paths.values(),
        )
        return FolderContent(files=dict(zip(paths, found, strict=True)))


def total_bytes(paths: Iterable[Path]) -> int:
    """The size of some files together."""
    return sum(path.stat().st_size for path in paths)


def _sampled_bytes() -> int:
    return 2 * SAMPLED_EDGE_BYTES + SAMPLED_BLOCKS * SAMPLED_BLOCK_BYTES


def _is_unchanged(known: FileContent, now: os.stat_result, sample: bool) -> bool:
    return (
        known.mtime_ns is not None
        and (known.bytes, known.mtime_ns, known.ctime_ns) == _stamp(now)
        and bool(known.sampled) == sample
    )


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _whole(fd: int, done: Callable[[int], object]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    while count := os.readv(fd, [buffer]):
        digest.update(buffer[:count])
        done(count)
    return digest.hexdigest()


def _sampled(fd: int, size: int) -> str:
    """Of the size, the beginning, the end and blocks spread evenly between them."""
    digest = hashlib.sha256(f"sampled {size}\n".encode())
    last = size - SAMPLED_EDGE_BYTES
    room = last - SAMPLED_EDGE_BYTES - SAMPLED_BLOCK_BYTES
    places = [(0, SAMPLED_EDGE_BYTES), (last, SAMPLED_EDGE_BYTES)]
    places += [
        (SAMPLED_EDGE_BYTES + room * index // (SAMPLED_BLOCKS - 1), SAMPLED_BLOCK_BYTES)
        for index in range(SAMPLED_BLOCKS)
    ]
    for place, length in places:
        while length > 0 and (part := os.pread(fd, length, place)):
            digest.update(part)
            place, length = place + len(part), length - len(part)
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> AdviseError:
    return refused_by_system(error) or InputError(
        f"cannot be read: {error.strerror or error}",
        where=str(path),
        hint="check the disk, or copy it again",
    )
