"""Which files a data path means, and what each of them is: everything that can be wrong with a file
itself is said here.

A path is looked at before it is opened (a FIFO would hang), its first bytes say what it is (an
ending may lie), and all faults of one file are collected, so that a person repairs it once.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from advisor.data.read.arrow import dataset_folder
from advisor.data.read.decoding import from_first_bytes
from advisor.data.read.found import DataFile, Found
from advisor.ground.errors import InputError

CONTAINERS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
READABLE = (
    ".json, .jsonl, .csv, .tsv, .txt, .md (each also as .gz), .parquet, or a folder of one of them"
)
OFFICE = (".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".pptx", ".ppt", ".pdf")
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic")
# First bytes -> what the file really is.
MAGIC = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive or an Office document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"BZh", "packed with bzip2"),
    (b"\xfd7zXZ", "packed with xz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"SQLite format 3", "an SQLite database"),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HTML_STARTS = ("<!doctype html", "<html", "<head", "<body", "<?xml")
HEAD_BYTES = 4096
MOST_FILES = 50_000  # below one folder
BESIDE_DATA = (
    "readme",
    "license",
    "licence",
    "notice",
    "citation",
    "changelog",
    "dataset_infos",
    "dataset_info",
)
EVALUATION_NAMES = ("test", "validation", "valid", "val", "dev", "eval", "heldout", "holdout")
DOCUMENTS = {".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".ppt", ".pptx", ".html", ".htm"}
TABLES = {".xlsx", ".xls", ".ods"}
EXTRACT_TEXT = (
    "extract the text first, one .txt file a document: pdftotext FILE.pdf, or pandoc -t plain FILE"
)
SAVE_AS_CSV = "open it and save it as CSV (UTF-8), or export the rows as JSONL"
IMAGES_HELP = "a model that reads and writes text learns nothing from images"
# What a folder may hold beside its text -> how to get text from it.
WAYS_TO_TEXT = (
    ({".pdf"}, "get the text with: pdftotext FILE.pdf (package poppler-utils)"),
    (DOCUMENTS - {".pdf"}, "get the text with: pandoc -t plain FILE -o FILE.txt"),
    (TABLES, "save each sheet as CSV"),
    (set(IMAGES), IMAGES_HELP),
)


def find_data(path: str | os.PathLike[str]) -> Found:
    """The readable files behind a path, looked at but not read.

    Raises InputError for anything that is not data.
    """
    where = Path(path)
    shown = os.fspath(path)
    if not os.path.lexists(where) and "/" in shown:
        from advisor.data.read.hub import hub_folder, is_hub_id

        if is_hub_id(shown):
            where = hub_folder(shown)
    mode = _mode(where, shown)
    if stat.S_ISDIR(mode):
        return _folder(where, shown)
    return _single(where, shown, mode)


def _mode(where: Path, shown: str) -> int:
    if not shown:
        raise InputError("no data file was named", f"readable: {READABLE}")
    try:
        return where.stat().st_mode
    except FileNotFoundError:
        if where.is_symlink():
            raise InputError(
                f"a link to a file that does not exist ({os.readlink(where)})",
                where=shown,
                hint="point the link at the data, or name the file itself",
            ) from None
        raise InputError(
            "no such file or folder", *_nearest_in_folder(where, shown), where=shown
        ) from None
    except NotADirectoryError:
        raise InputError(
            "no such file; a part of the path is a file, not a folder", where=shown
        ) from None
    except PermissionError:
        raise InputError(
            "no permission to look at it",
            where=shown,
            hint="ask its owner, or copy the file into a folder of yours",
        ) from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in the name
        raise InputError(
            f"cannot be opened ({getattr(error, 'strerror', None) or error})",
            where=shown,
            hint="name the file itself, not a link",
        ) from None


def _nearest_in_folder(where: Path, shown: str) -> tuple[str, str]:
    parent = where.parent
    try:
        names = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except OSError:
        return f"the folder {parent} does not exist either", "check the path"
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(where.name.lower(), list(folded), n=1, cutoff=0.5)
    same_stem = [name for name in names if name.split(".")[0].lower() == where.stem.lower()]
    best = folded[close[0]] if close else (same_stem[0] if same_stem else None)
    if best is not None:
        return "", f"did you mean '{parent / best}'?"
    data = [name for name in names if Path(name.removesuffix(".gz")).suffix.lower() in CONTAINERS]
    return (f"data files in {parent}: {', '.join(data[:8])}" if data else "", "check the path")


def _single(where: Path, shown: str, mode: int) -> Found:
    file = _look_at(where, shown, mode)
    return Found(files=(file,), container=file.container)


def _look_at(where: Path, shown: str, mode: int) -> DataFile:
    """What one file is, by its kind, ending and first bytes."""
    if not stat.S_ISREG(mode):
        kinds = (
            (stat.S_ISFIFO, "a named pipe (FIFO)"),
            (stat.S_ISCHR, "a device"),
            (stat.S_ISBLK, "a device"),
            (stat.S_ISSOCK, "a socket"),
        )
        kind = next((text for test, text in kinds if test(mode)), "not a regular file")
        raise InputError(
            f"this is {kind}, not a file",
            "data is read more than once, so it must be a file or a folder",
            "save it into a file first",
            where=shown,
        )
    suffix = Path(where.name.lower().removesuffix(".gz")).suffix
    if suffix in OFFICE:
        raise InputError(
            f"{suffix} files are not read",
            f"readable: {READABLE}",
            EXTRACT_TEXT if suffix in DOCUMENTS else SAVE_AS_CSV,
            where=shown,
        )
    if suffix in IMAGES:
        raise InputError(
            "this is an image",
            f"readable: {READABLE}",
            "training data is text: one example a line",
            where=shown,
        )
    head, gzipped = _head(where, shown)
    if not head:
        raise InputError(
            "the file is empty", where=shown, hint="add one example a line, or name another file"
        )
    if head.startswith(LFS_POINTER):
        raise InputError(
            "this is a Git LFS pointer, not the data itself",
            where=shown,
            hint="run `git lfs pull` in its repository, or download the file",
        )
    if head.startswith((b"PAR1", b"ARROW1")) or suffix in (".parquet", ".arrow"):
        return DataFile(
            path=where,
            shown=shown,
            container="parquet" if head.startswith(b"PAR1") or suffix == ".parquet" else "arrow",
        )
    for magic, kind in MAGIC:
        if head.startswith(magic):
            hint = (
                EXTRACT_TEXT
                if "PDF" in kind
                else SAVE_AS_CSV
                if "document" in kind
                else "unpack or export it first"
            )
            raise InputError(f"this is {kind}", f"readable: {READABLE}", hint, where=shown)
    encoding = from_first_bytes(head) or "utf-8"
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    if suffix in (".html", ".htm") or text[:200].lower().startswith(HTML_STARTS):
        raise InputError(
            "this is an HTML page, not data",
            where=shown,
            hint="the download link probably led to a web page: use the link of the raw file",
        )
    container = _container(where, shown, suffix, text)
    return DataFile(
        path=where, shown=shown, container=container, gzipped=gzipped, encoding=encoding
    )


def _head(where: Path, shown: str) -> tuple[bytes, bool]:
    """The first bytes, unpacked, and whether the file is gzipped (by content: endings lie)."""
    try:
        with where.open("rb") as raw:
            head = raw.read(HEAD_BYTES)
    except PermissionError:
        raise InputError(
            "no permission to read it", where=shown, hint=f"chmod u+r {shown}, or ask its owner"
        ) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=shown) from None
    if not head.startswith(b"\x1f\x8b"):
        return head, False
    import gzip
    import zlib

    try:
        with gzip.open(where) as packed:
            return packed.read(HEAD_BYTES), True
    except (OSError, EOFError, zlib.error):
        # Cut off or damaged; whatever could be unpacked decides what it is, the reader names the
        # row where it breaks.
        unpacker = zlib.decompressobj(31)
        try:
            head = unpacker.decompress(head)
        except zlib.error:
            head = b""
        if not head:
            raise InputError(
                "the gzip data is damaged or cut off",
                where=shown,
                hint="download or copy it again; `gzip -t` checks it",
            ) from None
        return head[:HEAD_BYTES], True


def _container(where: Path, shown: str, suffix: str, text: str) -> str:
    """json, jsonl, csv or text: the ending, corrected by what the file starts with."""
    container = CONTAINERS.get(suffix)
    first, _, rest = text.partition("\n")
    if container in ("json", "jsonl") or (container in ("text", None) and text.startswith("{")):
        if text.startswith("["):
            return "jsonl" if container == "jsonl" and _is_json(first) and rest.strip() else "json"
        if container == "jsonl":
            return "jsonl"
        if text.startswith("{") and "\n" in text and (_is_json(first)):
            return "jsonl" if rest.strip() or container != "json" else "json"
        if text.startswith("{") and "\n" not in text:
            # The first line is longer than what was looked at, or the only one: the JSON reader
            # takes both.
            return "json" if container == "json" else "jsonl"
    if suffix == ".txt" and _is_table(text):
        return "csv"
    if container is None:
        raise InputError(
            f"unknown kind of file{f' ({suffix})' if suffix else ' (no ending)'}",
            f"readable: {READABLE}",
            "rename it by what it holds, or export it",
            where=shown,
        )
    return container


def _is_table(text: str) -> bool:
    """Whether a text begins with lines of equally many tabs: what spreadsheets save as text."""
    tabs = [line.count("\t") for line in text.split("\n")[:-1]]
    return len(tabs) >= 3 and tabs[0] > 0 and len(set(tabs)) == 1


def _is_json(text: str) -> bool:
    import json

    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


# --------------------------------------------------------------------------- folders


def _folder(where: Path, shown: str) -> Found:
    if (where / "dataset_dict.json").is_file() or (where / "state.json").is_file():
        return dataset_folder(where, shown)
    files: list[DataFile] = []
    others: dict[str, int] = {}
    unreadable: list[str] = []
    for path in _walk(where, shown, unreadable):
        suffix = Path(path.name.lower().removesuffix(".gz")).suffix
        if suffix not in CONTAINERS:
            others[suffix or "no ending"] = others.get(suffix or "no ending", 0) + 1
            continue
        inner = os.path.join(shown, path.relative_to(where))
        mode = _mode(path, inner)
        if stat.S_ISREG(mode) and path.stat().st_size == 0:
            unreadable.append(f"{inner} (empty)")
            continue
        files.append(_look_at(path, inner, mode))
    notes = (
        [f"left out: {', '.join(unreadable[:5])}{' ...' if len(unreadable) > 5 else ''}"]
        if unreadable
        else []
    )
    left_out = {suffix: count for suffix, count in others.items() if suffix in DOCUMENTS}
    if files:
        notes.extend(not_read(others))
    if not files:
        counted = ", ".join(
            f"{count} {suffix}"
            for suffix, count in sorted(others.items(), key=lambda item: -item[1])[:5]
        )
        what = (
            "the folder holds images, no text"
            if others and all(suffix in IMAGES for suffix in others)
            else "no data file in this folder"
        )
        hint = (
            EXTRACT_TEXT
            if left_out
            else SAVE_AS_CSV
            if any(suffix in TABLES for suffix in others)
            else "name the file that holds the examples"
        )
        raise InputError(
            f"{what}{f' (found {counted})' if counted else ' (it is empty)'}",
            f"readable: {READABLE}",
            hint,
            where=shown,
        )
    tables = [file for file in files if file.container != "text"]
    if tables:
        texts = [
            file
            for file in files
            if file.container == "text" or file.path.name.lower().startswith(BESIDE_DATA)
        ]
        strange = [file for file in texts if not file.path.name.lower().startswith(BESIDE_DATA)]
        if strange:
            _refuse_mixture(shown, files)
        if texts and len(texts) < len(files):
            notes.append(f"left out: {', '.join(file.path.name for file in texts[:5])}")
            files = [file for file in files if file not in texts]
    if (
        len({file.container for file in files} - {"json", "jsonl"})
        + bool({file.container for file in files} & {"json", "jsonl"})
        > 1
    ):
        _refuse_mixture(shown, files)
    train = [file for file in files if "train" in file.path.name.lower()]
    if (
        train
        and len(train) < len(files)
        and all(
            file in train or any(name in file.path.name.lower() for name in EVALUATION_NAMES)
            for file in files
        )
    ):
        notes.append(
            "left out, kept for evaluation:"
            f" {', '.join(file.path.name for file in files if file not in train)}"
        )
        files = train
    return Found(
        files=tuple(files),
        container=files[0].container,
        folder=True,
        notes=tuple(notes),
        root=where,
    )


def not_read(others: dict[str, int]) -> list[str]:
    """What a folder holds that is not read, and how to get text from it: one sentence a kind.

    Args:
        others: Ending -> how many files.
    """
    found = []
    for suffixes, way in WAYS_TO_TEXT:
        counts = {suffix: others[suffix] for suffix in sorted(others) if suffix in suffixes}
        if counts:
            counted = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())
            found.append(f"not read: {counted}; {way}")
    return found


def _refuse_mixture(shown: str, files: list[DataFile]) -> None:
    names = ", ".join(sorted({f"{file.container} ({file.path.name})" for file in files})[:6])
    raise InputError(
        f"the folder mixes kinds of files: {names}",
        where=shown,
        hint="name one file, or move what belongs together into a folder of its own",
    )


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
                raise InputError(
                    f"the folder cannot be read ({error.strerror})", where=str(where)
                ) from None
            unreadable.append(f"{folder} ({error.strerror})")
            continue
        count += len(entries)
        if count > MOST_FILES:  # of a whole disk, named by mistake
            raise InputError(
                f"the folder holds more than {MOST_FILES:,} files",
                where=shown,
                hint="name the folder of the data alone; put many small files into one",
            )
        below: list[Path] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
                entry.stat()
            except OSError as error:  # a link to itself or to nothing
                unreadable.append(f"{entry.path} ({error.strerror})")
                continue
            if is_folder:
                below.append(Path(entry.path))
            else:
                yield Path(entry.path)
        pending.extend(reversed(below))


def content_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of the content behind a path: the bytes of its file, or names and bytes of its
    files.
    """
    import hashlib

    found = find_data(path)
    digest = hashlib.sha256()
    root = found.root or Path(path)
    for file in found.files:
        if found.folder:
            digest.update(f"\0{file.path.relative_to(root).as_posix()}\0".encode())
        with file.path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
