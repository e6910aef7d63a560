"""The files that a data path means, and what each of them is: everything that can be wrong with a
file itself is said here.

A path is looked at before it is opened (a FIFO would hang), and its first bytes say what it is (an
ending may lie).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.data.read.lines import CONTAINERS, DataFile, encoding_of_start
from advisor.ground.errors import InputError
from advisor.ground.files import folder_name, text_of

READABLE = (
    "readable: .json, .jsonl, .csv, .tsv, .txt, .md (each also as .gz), .parquet, or a folder of"
    " one of them"
)
OFFICE = (".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".pptx", ".ppt", ".pdf")
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic")
DOCUMENTS = {".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".ppt", ".pptx", ".html", ".htm"}
TABLES = {".xlsx", ".xls", ".ods"}
EXTRACT_TEXT = (
    "extract the text first, one .txt file a document: pdftotext FILE.pdf, or pandoc -t plain FILE"
)
SAVE_AS_CSV = "open it and save it as CSV (UTF-8), or export the rows as JSONL"
SAVE_AGAIN = "save the data set again with save_to_disk"
UNPACK = "unpack or export it first"
IMAGES_HELP = "a model that reads and writes text learns nothing from images"
# First bytes -> what the file really is, and what to do with it.
MAGIC = (
    (b"%PDF", "a PDF document", EXTRACT_TEXT),
    (b"PK\x03\x04", "a zip archive or an Office document", SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Office document", SAVE_AS_CSV),
    (b"\x89PNG", "an image", UNPACK),
    (b"\xff\xd8\xff", "an image", UNPACK),
    (b"GIF8", "an image", UNPACK),
    (b"BZh", "packed with bzip2", UNPACK),
    (b"\xfd7zXZ", "packed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK),
    (b"SQLite format 3", "an SQLite database", UNPACK),
)
# What a folder may hold beside its text -> how to get text from it.
WAYS_TO_TEXT = (
    ({".pdf"}, "get the text with: pdftotext FILE.pdf (package poppler-utils)"),
    (DOCUMENTS - {".pdf"}, "get the text with: pandoc -t plain FILE -o FILE.txt"),
    (TABLES, "save each sheet as CSV"),
    (set(IMAGES), IMAGES_HELP),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HTML_STARTS = ("<!doctype html", "<html", "<head", "<body", "<?xml")
HEAD_BYTES = 4096
MOST_FILES = 50_000  # below one folder
BESIDE_DATA = (
    "readme", "license", "licence", "notice", "citation", "changelog", "dataset_infos",
    "dataset_info",
)  # fmt: skip
EVALUATION_NAMES = ("test", "validation", "valid", "val", "dev", "eval", "heldout", "holdout")
KINDS_OF_FILES = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """The files a data path stands for, all of one container, in reading order."""

    shown: str  # as messages name it
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()  # files that were left out, and why
    root: Path | None = None  # of a folder: where its files' own names begin

    @property
    def container(self) -> str:
        return self.files[0].container

    @property
    def is_gzipped(self) -> bool:
        return any(file.gzipped for file in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    @property
    def named_files(self) -> dict[str, Path]:
        """Name below the folder -> file; of a single file the name is ""."""
        if self.root is None:
            return {"": self.files[0].path}
        return {file.path.relative_to(self.root).as_posix(): file.path for file in self.files}


def find_data(path: str | os.PathLike[str] | DataSource) -> DataSource:
    """The readable files behind a path, looked at but not read.

    Raises InputError for anything that is not data.
    """
    if isinstance(path, DataSource):
        return path
    where, shown = Path(path), os.fspath(path)
    if not os.path.lexists(where) and "/" in shown:
        from advisor.data.read.hub import hub_folder, is_hub_id

        if is_hub_id(shown):
            where = hub_folder(shown)
    if stat.S_ISDIR(_mode(where, shown)):
        return _folder(where, shown)
    return DataSource(shown=shown, files=(_look_at(where, shown),))


def content_digest(path: str | os.PathLike[str] | DataSource) -> str:
    """sha256 of the content behind a path: the bytes of its file, or names and bytes of its
    files.
    """
    import hashlib

    source, digest = find_data(path), hashlib.sha256()
    for name, file in source.named_files.items():
        if source.root is not None:
            digest.update(f"\0{name}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def ending(path: Path) -> str:
    """The ending of a file's name in small letters, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _mode(where: Path, shown: str) -> int:
    if not shown:
        raise InputError("no data file was named", READABLE)
    try:
        return where.stat().st_mode
    except FileNotFoundError:
        if where.is_symlink():
            what = f"a link to a file that does not exist ({os.readlink(where)})"
            hint = "point the link at the data, or name the file itself"
            raise InputError(what, where=shown, hint=hint) from None
        near = _nearest_in_folder(where)
        raise InputError("no such file or folder", *near, where=shown) from None
    except NotADirectoryError:
        what = "no such file; a part of the path is a file, not a folder"
        raise InputError(what, where=shown) from None
    except PermissionError:
        hint = "ask its owner, or copy the file into a folder of yours"
        raise InputError("no permission to look at it", where=shown, hint=hint) from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in the name
        what = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
        raise InputError(what, where=shown, hint="name the file itself, not a link") from None


def _nearest_in_folder(where: Path) -> tuple[str, str]:
    """What is allowed and the next step, by the names beside a missing file."""
    parent = where.parent
    try:
        names = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except OSError:
        return f"the folder {parent} does not exist either", "check the path"
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(where.name.lower(), list(folded), n=1, cutoff=0.5)
    same_stem = [name for name in names if name.split(".")[0].lower() == where.stem.lower()]
    for best in (*(folded[name] for name in close), *same_stem):
        return "", f"did you mean '{parent / best}'?"
    data = [name for name in names if Path(name.removesuffix(".gz")).suffix.lower() in CONTAINERS]
    return (f"data files in {parent}: {', '.join(data[:8])}" if data else "", "check the path")


def _look_at(where: Path, shown: str) -> DataFile:
    """What one file is, by its kind, ending and first bytes."""
    mode = _mode(where, shown)
    if not stat.S_ISREG(mode):
        kind = next((text for test, text in KINDS_OF_FILES if test(mode)), "not a regular file")
        raise InputError(
            f"this is {kind}, not a file",
            "data is read more than once, so it must be a file or a folder",
            "save it into a file first",
            where=shown,
        )
    suffix = ending(where)
    if suffix in OFFICE:
        hint = EXTRACT_TEXT if suffix in DOCUMENTS else SAVE_AS_CSV
        raise InputError(f"{suffix} files are not read", READABLE, hint, where=shown)
    if suffix in IMAGES:
        hint = "training data is text: one example a line"
        raise InputError("this is an image", READABLE, hint, where=shown)
    head, gzipped = _head(where, shown)
    if not head:
        hint = "add one example a line, or name another file"
        raise InputError("the file is empty", where=shown, hint=hint)
    if head.startswith(LFS_POINTER):
        what = "this is a Git LFS pointer, not the data itself"
        hint = "run `git lfs pull` in its repository, or download the file"
        raise InputError(what, where=shown, hint=hint)
    if head.startswith((b"PAR1", b"ARROW1")) or suffix in (".parquet", ".arrow"):
        is_parquet = head.startswith(b"PAR1") or suffix == ".parquet"
        return DataFile(path=where, shown=shown, container="parquet" if is_parquet else "arrow")
    for magic, kind, hint in MAGIC:
        if head.startswith(magic):
            raise InputError(f"this is {kind}", READABLE, hint, where=shown)
    encoding = encoding_of_start(head) or "utf-8"
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    if suffix in (".html", ".htm") or text[:200].lower().startswith(HTML_STARTS):
        hint = "the download link probably led to a web page: use the link of the raw file"
        raise InputError("this is an HTML page, not data", where=shown, hint=hint)
    container = _container(suffix, text)
    if container is None:
        what = f"unknown kind of file{f' ({suffix})' if suffix else ' (no ending)'}"
        raise InputError(what, READABLE, "rename it by what it holds, or export it", where=shown)
    return DataFile(
        path=where, shown=shown, container=container, gzipped=gzipped, encoding=encoding
    )


def _head(where: Path, shown: str) -> tuple[bytes, bool]:
    """The first bytes, unpacked, and whether the file is gzipped (by content: endings lie)."""
    try:
        with where.open("rb") as raw:
            head = raw.read(HEAD_BYTES)
    except PermissionError:
        hint = f"chmod u+r {shown}, or ask its owner"
        raise InputError("no permission to read it", where=shown, hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=shown) from None
    if not head.startswith(b"\x1f\x8b"):
        return head, False
    import zlib

    # What can be unpacked of a file that is cut off says what it is; the reader names the row.
    unpacker = zlib.decompressobj(31)
    try:
        unpacked = unpacker.decompress(head, HEAD_BYTES)
    except zlib.error:
        unpacked = b""
    if not unpacked and not unpacker.eof:
        hint = "download or copy it again; `gzip -t` checks it"
        raise InputError("the gzip data is damaged or cut off", where=shown, hint=hint)
    return unpacked, True


def _container(suffix: str, text: str) -> str | None:
    """json, jsonl, csv or text: the ending, corrected by what the file starts with."""
    container = CONTAINERS.get(suffix)
    first, newline, rest = text.partition("\n")
    if container in ("json", "jsonl") and text.startswith("["):
        return "jsonl" if container == "jsonl" and _is_json(first) and rest.strip() else "json"
    if container == "jsonl":
        return "jsonl"
    if container in ("json", "text", None) and text.startswith("{"):
        # One line alone may be longer than what was looked at: the reader of JSON takes both.
        if newline and _is_json(first):
            return "jsonl" if rest.strip() or container != "json" else "json"
        if not newline:
            return container if container == "json" else "jsonl"
    return "csv" if suffix == ".txt" and _is_table(text) else container


def _is_table(text: str) -> bool:
    """Whether a text begins with lines of equally many tabs: what spreadsheets save as text."""
    tabs = [line.count("\t") for line in text.split("\n")[:-1]]
    return len(tabs) >= 3 and tabs[0] > 0 and len(set(tabs)) == 1


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


# --------------------------------------------------------------------------- folders


def _folder(where: Path, shown: str) -> DataSource:
    if (where / "dataset_dict.json").is_file() or (where / "state.json").is_file():
        return _saved_dataset(where, shown)
    files: list[DataFile] = []
    others: Counter[str] = Counter()  # ending of what is no data -> how many files
    unreadable: list[str] = []
    for path in _walk(where, shown, unreadable):
        suffix, inner = ending(path), os.path.join(shown, path.relative_to(where))
        if suffix not in CONTAINERS:
            others[suffix or "no ending"] += 1
        elif path.is_file() and path.stat().st_size == 0:
            unreadable.append(f"{inner} (empty)")
        else:
            files.append(_look_at(path, inner))
    notes = []
    if unreadable:
        more = " ..." if len(unreadable) > 5 else ""
        notes.append(f"left out: {', '.join(unreadable[:5])}{more}")
    if not files:
        raise _no_data(others, shown)
    notes += not_read(others)
    beside = [file for file in files if file.path.name.lower().startswith(BESIDE_DATA)]
    if any(file.container != "text" for file in files):
        if any(file.container == "text" and file not in beside for file in files):
            raise _mixture(files, shown)
        if beside and len(beside) < len(files):
            notes.append(f"left out: {', '.join(file.path.name for file in beside[:5])}")
            files = [file for file in files if file not in beside]
    if len({file.container.removesuffix("l") for file in files}) > 1:
        raise _mixture(files, shown)
    train = [file for file in files if "train" in file.path.name.lower()]
    rest = [file.path.name for file in files if file not in train]
    are_evaluations = [any(one in name.lower() for one in EVALUATION_NAMES) for name in rest]
    if train and rest and all(are_evaluations):
        left = ", ".join(rest)
        notes.append(f"left out, kept for evaluation: {left}")
        files = train
    return DataSource(shown=shown, files=tuple(files), notes=tuple(notes), root=where)


def not_read(others: Counter[str]) -> list[str]:
    """What a folder holds that is not read, and how to get text from it: one sentence a kind.

    Args:
        others: Ending -> how many files.
    """
    found = []
    for suffixes, way in WAYS_TO_TEXT:
        counted = [f"{others[name]:,} {name}" for name in sorted(others) if name in suffixes]
        if counted:
            found.append(f"not read: {', '.join(counted)}; {way}")
    return found


def _no_data(others: Counter[str], shown: str) -> InputError:
    """The error for a folder without a data file."""
    counted = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    what, hint = "no data file in this folder", "name the file that holds the examples"
    if others and all(suffix in IMAGES for suffix in others):
        what = "the folder holds images, no text"
    if any(suffix in DOCUMENTS for suffix in others):
        hint = EXTRACT_TEXT
    elif any(suffix in TABLES for suffix in others):
        hint = SAVE_AS_CSV
    what += f" (found {counted})" if counted else " (it is empty)"
    return InputError(what, READABLE, hint, where=shown)


def _mixture(files: list[DataFile], shown: str) -> InputError:
    names = ", ".join(sorted({f"{file.container} ({file.path.name})" for file in files})[:6])
    hint = "name one file, or move what belongs together into a folder of its own"
    return InputError(f"the folder mixes kinds of files: {names}", where=shown, hint=hint)


def _walk(where: Path, shown: str, unreadable: list[str]) -> Iterator[Path]:
    """Every file below a folder, sorted; hidden ones left out, linked folders entered once (links
    may loop).
    """
    seen: set[tuple[int, int]] = set()
    pending, count = [where], 0
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if folder == where:
                what = f"the folder cannot be read ({error.strerror})"
                raise InputError(what, where=str(where)) from None
            unreadable.append(f"{folder} ({error.strerror})")
            continue
        count += len(entries)
        if count > MOST_FILES:  # of a whole disk, named by mistake
            what = f"the folder holds more than {MOST_FILES:,} files"
            hint = "name the folder of the data alone; put many small files into one"
            raise InputError(what, where=shown, hint=hint)
        below: list[Path] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                entry.stat()
            except OSError as error:  # a link to itself or to nothing
                unreadable.append(f"{entry.path} ({error.strerror})")
                continue
            if entry.is_dir():
                below.append(Path(entry.path))
            else:
                yield Path(entry.path)
        pending.extend(reversed(below))


def _saved_dataset(where: Path, shown: str) -> DataSource:
    """The Arrow files of a folder written by `Dataset.save_to_disk`; of several splits the one
    called train.
    """
    folder, inside = where, Path(shown)
    notes: tuple[str, ...] = ()
    if (where / "dataset_dict.json").is_file():
        splits = _json(where / "dataset_dict.json", inside).get("splits")
        names = [name for name in splits if isinstance(name, str)] if splits else []
        if not names:
            raise InputError("dataset_dict.json names no split", where=shown)
        if "train" not in names and len(names) > 1:
            what = f"the data set has the splits {', '.join(names)} and none is called train"
            raise InputError(what, where=shown, hint=f"name one of them: {inside / names[0]}")
        split = "train" if "train" in names else names[0]
        left = [name for name in names if name != split]
        notes = (f"read: the split {split}; left out: {', '.join(left)}",) if left else ()
        folder, inside = where / split, inside / split
    named = [
        Path(entry["filename"]).name
        for entry in _json(folder / "state.json", inside).get("_data_files", [])
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str)
    ]
    missing = [name for name in named if not (folder / name).is_file()]
    if missing or not named:
        what = f"the data set's files are missing: {', '.join(missing) or 'state.json names none'}"
        raise InputError(what, where=str(inside), hint="save it again with save_to_disk")
    files = tuple(
        DataFile(path=folder / name, shown=str(inside / name), container="arrow") for name in named
    )
    return DataSource(shown=shown, files=files, notes=notes, root=folder)


def _json(path: Path, shown: Path) -> dict[str, Any]:
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError) as error:
        what = f"{path.name} cannot be read ({error})"
        raise InputError(what, where=str(shown), hint=SAVE_AGAIN) from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is not an object", where=str(shown), hint=SAVE_AGAIN)
    return value


def team_files(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Team -> its file or folder, named after it; empty if the folder is no such folder.

    Splits of one data set (train, test), its parts (part-1, part-2) and documents are no teams.
    """
    where = Path(folder)
    try:
        entries = sorted(entry for entry in where.iterdir() if not entry.name.startswith("."))
    except OSError:
        return {}
    if {"dataset_dict.json", "state.json"} & {entry.name for entry in entries}:
        return {}
    named: dict[str, Path] = {}
    for entry in filter(_holds_examples, entries):
        name = entry.name.lower()
        stem = name if entry.is_dir() else name.removesuffix(".gz").rsplit(".", 1)[0]
        if not stem.startswith(BESIDE_DATA):
            named[stem] = entry
    split_names = {"train", "training", *EVALUATION_NAMES}
    plain = {re.sub(r"[\d_.-]+", " ", stem).strip() for stem in named}
    # Parts differ by numbers alone, or are called as splits are.
    if len(named) < 2 or len(plain) == 1 or all(split_names & {*one.split()} for one in plain):
        return {}
    teams = {folder_name(stem): os.path.join(folder, entry.name) for stem, entry in named.items()}
    return teams if "" not in teams and len(teams) == len(named) else {}


def _holds_examples(entry: Path) -> bool:
    """Whether it is a table with something in it, or a folder with a data file."""
    try:
        if entry.is_dir():
            return any(ending(file) in CONTAINERS for file in entry.iterdir() if file.is_file())
        is_table = CONTAINERS.get(ending(entry)) not in (None, "text")
        return is_table and entry.is_file() and entry.stat().st_size > 0
    except OSError:
        return False
