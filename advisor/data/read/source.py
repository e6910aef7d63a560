"""The files that a data path means, and what each of them is: everything that can be wrong with a
file itself is said here.

A path is looked at before it is opened (a FIFO would hang), and its first bytes say what it is (an
ending may lie).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from advisor.data.read.lines import CONTAINERS, DataFile, cannot_open, encoding_of_start
from advisor.ground.errors import InputError
from advisor.ground.files import folder_name, open_regular, read_at_most

READABLE = (
    "readable: .json, .jsonl, .csv, .tsv, .txt, .md (each also as .gz), .xlsx, .parquet, or a"
    " folder of one of them"
)
IMAGES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic"}
# Ending -> the command that makes a text or a CSV file of it: PATH, and TEXT in its place.
PANDOC = "pandoc -t plain PATH -o TEXT"
COMMANDS = {
    ".pdf": "pdftotext PATH TEXT",
    **dict.fromkeys((".docx", ".odt", ".rtf", ".epub", ".html", ".htm"), PANDOC),
    ".doc": "soffice --headless --convert-to txt:Text --outdir FOLDER PATH",
    **dict.fromkeys((".ppt", ".pptx"), "soffice --headless --convert-to pdf --outdir FOLDER PATH"),
    **dict.fromkeys(
        (".xlsx", ".xls", ".ods"), "soffice --headless --convert-to csv --outdir FOLDER PATH"
    ),
}
TABLES = {".xlsx", ".xls", ".ods"}
KINDS = {
    ".pdf": "a PDF document", ".docx": "a Word document", ".doc": "a Word document",
    ".odt": "a text of LibreOffice", ".rtf": "a text in RTF", ".epub": "an e-book",
    ".ppt": "slides", ".pptx": "slides",
}  # fmt: skip  # said instead of what its group of endings is called
IMAGES_HELP = "a model that reads and writes text learns nothing from images"
# What is no data -> its endings, the first bytes of its files, and how to get rows from it.
OTHER_FILES = {
    "a PDF or text document": (
        {*COMMANDS} - TABLES,
        (b"%PDF",),
        "extract the text first, one .txt file a document",
    ),
    "an Office document or an archive": (
        TABLES,
        (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"),
        "open it and save it as CSV (UTF-8)",
    ),
    "an image": (IMAGES, (b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), IMAGES_HELP),
    "a packed file or a database": (
        set[str](),
        (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"SQLite format 3"),
        "unpack or export it first",
    ),
}
EXCEL, OLD_OFFICE = ".xlsx", b"\xd0\xcf\x11\xe0"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HTML_STARTS = ("<!doctype html", "<html", "<head", "<body", "<?xml")
HEAD_BYTES = 4096
# Bytes that no text has in any encoding but a wide one, and how many of a file are none by chance.
CONTROLS = tuple(bytes([code]) for code in (*range(1, 9), *range(14, 26), 28, 29, 30, 31))
MOST_CONTROLS = 0.02
MOST_FILES = 50_000  # below one folder
# Where no file is named yet.
OFFERED, MOST_OFFERED = (".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".parquet"), 8
MOST_SETTINGS = 100_000  # bytes of a file of settings
BESIDE_DATA = (
    "readme", "license", "licence", "notice", "citation", "changelog", "dataset_infos",
    "dataset_info",
)  # fmt: skip
# What `datasets` writes beside the rows of a folder that it saved.
NO_ROWS = re.compile(r"cache-.*\.arrow|(state|dataset_info|dataset_dict)\.json")
PART = re.compile(r"(.*-)\d{5}-of-(\d{5})(\D*)")
EVALUATION_NAMES = ("test", "validation", "valid", "val", "dev", "eval", "heldout", "holdout")
FOR_TRAINING = re.compile("(?<![a-z])train")
FOR_EVALUATION = re.compile(
    f"(?<![a-z])({'|'.join(EVALUATION_NAMES)})(s|set|data|uation)?(?![a-z])"
)


class DataSource(Struct, frozen=True, kw_only=True):
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
        return sum(file.size_bytes for file in self.files)

    @property
    def named_files(self) -> dict[str, Path]:
        """Name below the folder -> file; of a single file the name is ""."""
        if self.root is None:
            return {"": self.files[0].path}
        return {file.path.relative_to(self.root).as_posix(): file.path for file in self.files}


# Before a letter that needs no escape.
WINDOWS = re.compile(r"^[\"']?([A-Za-z]:\\|\\\\)|\\\w")


def typed_path(text: str) -> str:
    """The path in a text as a terminal gives it that a file was dragged into: in quotes, with
    blanks escaped, as file://, or as Windows writes it; also behind NAME=. A file of
    just that name wins.
    """
    whole = os.path.expanduser(text)
    if os.path.lexists(whole):
        return whole
    bare = text.strip()
    if named := re.match(r"[\w-]+=", bare):
        return f"{named[0]}{typed_path(bare[named.end() :])}"
    if bare.startswith("file://"):
        bare = unquote(urlsplit(bare).path)
    elif WINDOWS.search(bare):
        bare = bare.strip("\"'")
        drive, slashes = bare[:2], bare.replace("\\", "/")
        # A drive is a folder below /mnt in the Linux of Windows.
        below = f"/mnt/{drive[0].lower()}{slashes[2:]}" if drive[1:] == ":" else slashes
        bare = below if os.path.exists(below) else bare
    elif "\\" in bare or bare[:1] in ("'", '"'):
        with suppress(ValueError):  # a quote that does not end
            words = shlex.split(bare)
            bare = words[0] if len(words) == 1 else bare
    return os.path.expanduser(bare)


def files_here() -> list[str]:
    """The data files of the working folder, by name; of many those that changed last."""
    with suppress(OSError):
        found = [
            name
            for name in sorted(os.listdir())
            if (
                name.removesuffix(".gz").endswith(OFFERED)
                and not name.lower().startswith((".", *BESIDE_DATA))
                and os.path.isfile(name)
                and not _holds_settings(name)
            )
            or _holds_documents(name)
        ]
        return sorted(sorted(found, key=os.path.getmtime)[-MOST_OFFERED:])
    return []


def _holds_settings(name: str) -> bool:
    """Whether it is one JSON object without rows or columns, as programs keep their settings."""
    if not name.endswith(".json"):
        return False
    with suppress(OSError, ValueError, RecursionError, InputError, AttributeError):
        one = json.loads(read_at_most(Path(name), MOST_SETTINGS))
        lists = [value for value in one.values() if isinstance(value, list)]
        rows = [value for value in lists if value and isinstance(value[0], dict | list)]
        return not rows and (not lists or len(lists) < len(one))
    return False


def _holds_documents(name: str) -> bool:
    """Whether it is a folder whose files are data or text, nothing else and none below."""
    if name.startswith((".", "_")) or not os.path.isdir(name):
        return False
    files = [Path(one.name) for one in os.scandir(name) if not one.name.startswith(".")]
    return bool(files) and all(ending(file) in CONTAINERS for file in files)


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
    status = _status(where, shown)
    if stat.S_ISDIR(status.st_mode):
        return _folder(where, shown)
    return DataSource(shown=shown, files=(_look_at(where, shown, status),))


def content_digest(path: str | os.PathLike[str] | DataSource) -> str:
    """sha256 of what is behind a path: of its file's bytes, or its files' names and bytes."""
    source, digest = find_data(path), hashlib.sha256()
    for name, file in source.named_files.items():
        if source.root is not None:
            digest.update(f"\0{name}\0".encode())
        with open_regular(file) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def ending(path: Path) -> str:
    """The ending of a file's name in small letters, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _status(where: Path, shown: str) -> os.stat_result:
    """What the system says of a path. Raises InputError."""
    if not shown:
        raise InputError("no data file was named", READABLE)
    allowed, hint = "", "name the file itself, not a link"
    try:
        return where.stat()
    except FileNotFoundError:
        what = "no such file or folder"
        if where.is_symlink():
            what = f"a link to a file that does not exist ({os.readlink(where)})"
        else:
            allowed, hint = _nearest_in_folder(where)
            if os.sep == "/" and WINDOWS.search(shown):
                hint = "on Linux folders are parted by /, and in WSL C:\\ is /mnt/c/"
    except NotADirectoryError:
        what, hint = "no such file; a part of the path is a file, not a folder", ""
    except PermissionError:
        what, hint = "no permission to look at it", "ask its owner, or copy it to a folder of yours"
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in the name
        what = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    raise InputError(what, allowed, hint, where=shown)


def _nearest_in_folder(where: Path) -> tuple[str, str]:
    """What is allowed and the next step, by the names beside a missing file."""
    parent = where.parent
    try:
        names = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except OSError:
        if re.match(r"[a-z][a-z\d+.-]+:/+\w", os.fspath(where)):
            return "data is read from this machine", "download it first, and name the file"
        return f"the folder {parent} does not exist either", "check the path"
    # By their names without endings: what ends alike is not alike for that.
    folded = {name.lower().split(".")[0]: name for name in names}
    stem = where.name.lower().split(".")[0]
    close = difflib.get_close_matches(stem, list(folded), n=1, cutoff=0.6)
    same_stem = [name for name in names if name.split(".")[0].lower() == where.stem.lower()]
    for best in (*(folded[name] for name in close), *same_stem):
        return "", f"did you mean '{parent / best}'?"
    data = [name for name in names if ending(Path(name)) in CONTAINERS]
    place = "here" if parent == Path() else f"in {parent}"
    return (f"data files {place}: {', '.join(data[:8])}" if data else "", "check the path")


def _look_at(where: Path, shown: str, status: os.stat_result | None = None) -> DataFile:
    """What one file is, by its kind, ending and first bytes."""
    status = status or _status(where, shown)
    if not stat.S_ISREG(status.st_mode):
        what = "this is a named pipe (FIFO), a device or a socket, not a file"
        allowed = "data is read more than once, so it must be a file or a folder"
        raise InputError(what, allowed, "save it into a file first", where=shown)
    head, gzipped = _head(where, shown)
    if not head:
        hint = "add one example a line, or name another file"
        raise InputError("the file is empty", where=shown, hint=hint)
    suffix = ending(where)
    encoding = encoding_of_start(head)
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    _refuse_other_files(head, text, suffix, shown)
    container = _container(suffix, text)
    if head.startswith((b"PAR1", b"ARROW1")):
        container = "parquet" if head.startswith(b"PAR1") else "arrow"
    if container is None:
        what = f"unknown kind of file{f' ({suffix})' if suffix else ' (no ending)'}"
        raise InputError(what, READABLE, "rename it by what it holds, or export it", where=shown)
    if container not in ("parquet", "arrow", "excel") and 4 * text.count("\0") > len(text):
        what = "this is a binary file, or UTF-16 without a byte order mark"
        raise InputError(what, READABLE, "save text as UTF-8", where=shown)
    controls = sum(map(head.count, CONTROLS)) if encoding == "utf-8" else 0
    if container not in ("parquet", "arrow", "excel") and controls > MOST_CONTROLS * len(head):
        hint = "name the file that holds the examples"
        raise InputError("this is not a text file", READABLE, hint, where=shown)
    return DataFile(
        path=where,
        shown=shown,
        container=container,
        gzipped=gzipped,
        encoding=encoding,
        size_bytes=status.st_size,
        changed_ns=status.st_mtime_ns,
    )


def _refuse_other_files(head: bytes, text: str, suffix: str, shown: str) -> None:
    """Raise InputError for a file that is known and no data."""
    if head.startswith(LFS_POINTER):
        what = "this is a Git LFS pointer, not the data itself"
        hint = "run `git lfs pull` in its repository, or download the file"
        raise InputError(what, where=shown, hint=hint)
    is_picture = suffix == ".svg"  # which begins as a page may
    if text[:200].lower().startswith(HTML_STARTS) and not is_picture:
        hint = "the download link probably led to a web page: use the link of the raw file"
        raise InputError("this is an HTML page, not data", where=shown, hint=hint)
    others = OTHER_FILES.items()
    for what, (suffixes, starts, hint) in sorted(others, key=lambda one: suffix not in one[1][0]):
        if suffix != EXCEL and (suffix in suffixes or head.startswith(starts)):
            named = KINDS.get(suffix, what)
            raise InputError(f"this is {named}", READABLE, _way(hint, [suffix], shown), where=shown)
    if suffix == EXCEL and head.startswith(OLD_OFFICE):
        what = "this Excel file has a password, or is of the old form with a new ending"
        hint = "open it, and save it as .xlsx without a password, or as CSV (UTF-8)"
        raise InputError(what, READABLE, hint, where=shown)


def _way(hint: str, suffixes: Iterable[str], shown: str, *, below: bool = False) -> str:
    """What to do with a file that cannot be read, and the command for just this file, or for all of
    these endings below a folder.
    """
    commands = []
    for suffix in sorted({*suffixes} & {*COMMANDS}):
        folder, text = os.path.dirname(shown) or ".", f"{os.path.splitext(shown)[0]}.txt"
        places = {"PATH": shown, "TEXT": text, "FOLDER": folder}
        if below:
            places = {"PATH": "{}", "TEXT": "{}.txt", "FOLDER": shown}
        words = [places.get(word, word) for word in COMMANDS[suffix].split()]
        if below:
            words = ["find", shown, "-iname", f"*{suffix}", "-exec", *words, ";"]
        commands.append(shlex.join(words))
    return "\n    ".join([f"{hint}:", *commands]) if commands else hint


def _head(where: Path, shown: str) -> tuple[bytes, bool]:
    """The first bytes, unpacked, and whether the file is gzipped (by content: endings lie)."""
    try:
        with open_regular(where) as raw:
            head = raw.read(HEAD_BYTES)
    except OSError as error:
        raise cannot_open(shown, error) from None
    if not head.startswith(b"\x1f\x8b"):
        return head, False
    # What can be unpacked of a file that is cut off says what it is; the reader names the row.
    unpacker = zlib.decompressobj(31)
    unpacked = b""
    with suppress(zlib.error):
        unpacked = unpacker.decompress(head, HEAD_BYTES)
    if not unpacked and not unpacker.eof:
        hint = "download or copy it again; `gzip -t` checks it"
        raise InputError("the gzip data is damaged or cut off", where=shown, hint=hint)
    return unpacked, True


def _container(suffix: str, text: str) -> str | None:
    """json, jsonl, csv or text: the ending, corrected by what the file starts with."""
    container = CONTAINERS.get(suffix)
    first, newline, rest = text.partition("\n")
    if text.startswith("[") and container in ("json", "jsonl"):
        return "jsonl" if container == "jsonl" and _is_json(first) and rest.strip() else "json"
    if text.startswith("{") and container in ("json", "text", None):
        # One line alone may be longer than what was looked at: the reader of JSON takes both.
        is_line = _is_json(first) if newline else container != "json"
        return "jsonl" if is_line and (rest.strip() or container != "json") else container
    tabs = [line.count("\t") for line in text.split("\n")[:-1]]
    # Lines of equally many tabs are what spreadsheets save as text.
    is_table = suffix == ".txt" and len(tabs) >= 3 and tabs[0] > 0 and len({*tabs}) == 1
    return "csv" if is_table else container


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


# --------------------------------------------------------------------------- folders


def _folder(where: Path, shown: str) -> DataSource:
    files: dict[str, DataFile] = {}  # name below the folder -> file
    others: Counter[str] = Counter()  # ending of what is no data -> how many files
    unreadable: list[str] = []
    for path, status in _walk(where, shown, unreadable):
        name, suffix = path.relative_to(where).as_posix(), ending(path)
        if suffix not in CONTAINERS:
            others[suffix or "no ending"] += 1
        elif stat.S_ISREG(status.st_mode) and not status.st_size:
            unreadable.append(f"{name} (empty)")
        elif not NO_ROWS.fullmatch(path.name):
            files[name] = _look_at(path, os.path.join(shown, name), status)
    if not files:
        raise _no_data(others, unreadable, shown)
    if any(file.container != "excel" for file in files.values()):  # tables beside the data
        excel = [name for name, file in files.items() if file.container == "excel"]
        others.update({EXCEL: len(excel)} if excel else {})
        files = {name: file for name, file in files.items() if name not in excel}
    left = [*unreadable]
    _refuse_missing_parts(files, shown)
    if (where / "dataset_dict.json").is_file():
        splits = dict.fromkeys(name.partition("/")[0] for name in files)
        if len(splits) > 1 and "train" not in splits:
            what = f"the data set has the splits {', '.join(splits)} and none is called train"
            hint = f"name one of them: {os.path.join(shown, next(iter(splits)))}"
            raise InputError(what, where=shown, hint=hint)
        left += [name for name in files if len(splits) > 1 and not name.startswith("train/")]
        files = {name: file for name, file in files.items() if name not in left}
    beside = {name for name in files if Path(name).name.lower().startswith(BESIDE_DATA)}
    if any(file.container != "text" for name, file in files.items() if name not in beside):
        left += [*beside]  # pages about a table
        files = {name: file for name, file in files.items() if name not in beside}
    kinds = {file.container.removesuffix("l"): name for name, file in sorted(files.items())}
    if len(kinds) > 1:
        names = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        hint = "name one file, or move what belongs together into a folder of its own"
        raise InputError(f"the folder mixes kinds of files: {names}", where=shown, hint=hint)
    notes = [f"left out: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}"] if left else []
    for suffixes, _, hint in OTHER_FILES.values():
        if counted := [f"{others[name]:,} {name}" for name in sorted(others) if name in suffixes]:
            way = _way(hint, suffixes & {*others}, shown, below=True)
            first, *commands = way.split("\n    ")
            way = " ".join([first, *(f"`{one}`" for one in commands)])
            notes.append(f"not read: {', '.join(counted)}; {way}")
    train = {name: file for name, file in files.items() if FOR_TRAINING.search(name.lower())}
    rest = [name for name in files if name not in train]
    if train and rest and all(FOR_EVALUATION.search(name.lower()) for name in rest):
        notes.append(f"left out, kept for evaluation: {', '.join(rest)}")
        files = train
    return DataSource(shown=shown, files=tuple(files.values()), notes=tuple(notes), root=where)


def _refuse_missing_parts(files: Iterable[str], shown: str) -> None:
    """Raise InputError if files are numbered parts of a whole ("data-00000-of-00004.arrow") and
    some are not there.
    """
    parts = (PART.fullmatch(name) for name in files)
    counts = Counter((one[1], one[2], one[3]) for one in parts if one)
    for (begin, of, end), count in counts.items():
        if count < int(of):
            what = f"{int(of) - count} of the {int(of)} files {begin}*-of-{of}{end} are missing"
            raise InputError(what, where=shown, hint="download or save the data set again")


def _no_data(others: Counter[str], unreadable: Sequence[str], shown: str) -> InputError:
    """The error for a folder without a data file."""
    counted = [f"{count} {suffix}" for suffix, count in others.most_common(5)]
    found = ", ".join([*counted, *unreadable[:5]])
    what = f"no data file in this folder ({f'found {found}' if found else 'it is empty'})"
    hints = (
        _way(hint, suffixes & {*others}, shown, below=True)
        for suffixes, _, hint in OTHER_FILES.values()
        if suffixes & {*others}
    )
    hint = next(hints, "name the file that holds the examples")
    return InputError(what, READABLE, hint, where=shown)


def _walk(where: Path, shown: str, unreadable: list[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file below a folder with its status, sorted; no hidden ones, no linked folders."""

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename} ({error.strerror})")

    count = 0
    for folder, below, names in os.walk(where, onerror=note):
        below[:] = sorted(name for name in below if not name.startswith("."))
        linked = [name for name in below if os.path.islink(os.path.join(folder, name))]
        unreadable += [f"{os.path.join(folder, name)} (a link to a folder)" for name in linked]
        count += len(below) + len(names)
        if count > MOST_FILES:  # of a whole disk, named by mistake
            what = f"the folder holds more than {MOST_FILES:,} files"
            hint = "name the folder of the data alone; put many small files into one"
            raise InputError(what, where=shown, hint=hint)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            try:
                status = path.stat()
            except OSError as error:  # a link to itself or to nothing
                note(error)
            else:
                yield path, status


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
    """Whether it is a table, be it an empty one of which that is said, or a folder with one."""
    try:
        if entry.is_dir():
            return any(ending(file) in CONTAINERS for file in entry.iterdir() if file.is_file())
        return CONTAINERS.get(ending(entry)) not in (None, "text") and entry.is_file()
    except OSError:
        return False
