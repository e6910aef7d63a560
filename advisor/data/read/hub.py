"""A data set of the model hub as files: `owner/name`, or `owner/name/folder` for one of its
configurations.

It is fetched when it is named, into the hub's own cache, and read from there like any folder;
offline only what the cache holds. Needs huggingface_hub, which comes with the training extra.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import text_of
from advisor.ground.install import install_line
from advisor.model_files.hub_cache import is_offline

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?:/[\w.@ -]+)*")
FILE_ENDINGS = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".tab",
    ".txt",
    ".text",
    ".md",
    ".markdown",
    ".parquet",
    ".arrow",
    ".gz",
    ".yaml",
    ".yml",
)
MOST_BYTES = 5 << 30  # more is not fetched without being asked for by name
_fetched: dict[str, Path] = {}  # by this process: a run asks several times
PATTERNS = (
    "*.json",
    "*.jsonl",
    "*.ndjson",
    "*.csv",
    "*.tsv",
    "*.txt",
    "*.md",
    "*.parquet",
    "*.gz",
    "*.arrow",
    "dataset_dict.json",
    "state.json",
)


def is_hub_id(text: str) -> bool:
    """True for what can name a data set of the hub: 'owner/name', perhaps with a folder behind it,
    that is no path here.
    """
    if text.startswith((".", "/", "~")) or not _ID.fullmatch(text):
        return False
    # A folder that is there, or a name that ends like a file, was meant as a path.
    return not os.path.isdir(text.split("/")[0]) and Path(text).suffix.lower() not in FILE_ENDINGS


def hub_folder(text: str) -> Path:
    """The cached files of a hub data set, fetched where they are not there yet.

    Raises:
        InputError: Not in the cache and offline, or no such data set.
        MachineNotReady: The package is missing, or the hub cannot be reached.
    """
    if text in _fetched:
        return _fetched[text]
    parts = text.split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    if find_spec("huggingface_hub") is None:
        raise MachineNotReady(
            "no such file or folder; a data set of the hub needs huggingface_hub, which is"
            " not installed",
            where=text,
            hint=f"{install_line()}, or save it as a file: {_saving(repo)}",
        )
    import huggingface_hub

    patterns: list[str] = (
        [f"{inner}/{name}" for name in PATTERNS] + [inner] if inner else list(PATTERNS)
    )
    try:
        if not is_offline():
            _refuse_large(text, repo, inner, huggingface_hub.HfApi())
        found = Path(
            huggingface_hub.snapshot_download(
                repo,
                repo_type="dataset",
                allow_patterns=[*patterns, "README.md"],
                local_files_only=is_offline(),
            )
        )
    except InputError:
        raise
    except Exception as error:  # the package has a dozen of its own, and those of its HTTP library
        raise _explained(text, repo, error) from None
    where = found / inner if inner else found
    if not where.exists():
        raise InputError(f"the data set has no '{inner}'", _configurations(found), where=text)
    if not inner:
        _refuse_several(text, found)
    _fetched[text] = where
    return where


def _refuse_large(text: str, repo: str, inner: str, api: Any) -> None:
    from fnmatch import fnmatch

    files = [
        item
        for item in api.repo_info(repo, repo_type="dataset", files_metadata=True).siblings or ()
        if item.rfilename.startswith(inner)
    ]
    size = sum(
        item.size or 0
        for item in files
        if any(fnmatch(item.rfilename, pattern) for pattern in PATTERNS)
    )
    if size > MOST_BYTES:
        raise InputError(
            f"the data set's files have {size / 2**30:.0f} GiB",
            where=text,
            hint=(
                f"fetch it yourself and name the folder: hf download --repo-type dataset {repo}"
                " --local-dir FOLDER"
            ),
        )


def _explained(text: str, repo: str, error: Exception) -> InputError | MachineNotReady:
    kind = type(error).__name__
    if is_offline():
        return InputError(
            "no such file or folder; as a data set of the hub it is not in the cache, and"
            " HF_HUB_OFFLINE is set",
            where=text,
            hint=f"unset it, or: {_saving(repo)}",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError") or status in (
        401,
        403,
        404,
    ):
        why = (
            "asks for access first"
            if kind == "GatedRepoError"
            else "has no such data set that you may read"
        )
        return InputError(
            f"no such file or folder, and the hub {why}",
            where=text,
            hint="check the name; for a private or gated one: hf auth login",
        )
    first = (str(error).splitlines() or [kind])[0][:160]
    return MachineNotReady(
        f"no such file or folder, and the hub cannot be reached ({first})",
        where=text,
        hint=f"check the connection, or save it elsewhere as a file: {_saving(repo)}",
    )


def _saving(repo: str) -> str:
    return f"load_dataset('{repo}', split='train').to_json('train.jsonl')"


def _configurations(folder: Path) -> str:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return f"it has: {', '.join(names)}" if names else ""


def _refuse_several(text: str, folder: Path) -> None:
    """Several configurations are several data sets: which one is meant has to be said."""
    configurations = _declared(folder)
    names = [name for name in configurations if (folder / name).is_dir()]
    if len(names) > 1:
        raise InputError(
            f"the data set has several configurations: {', '.join(names)}",
            where=text,
            hint=f"name one: {text}/{names[0]}",
        )


def _declared(folder: Path) -> list[str]:
    """The configurations that the card's front matter lists."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = text_of(card, errors="replace")
    if not text.startswith("---"):
        return []
    import yaml

    try:
        front: Any = yaml.safe_load(text.split("---", 2)[1])
    except (yaml.YAMLError, IndexError):
        return []
    entries = front.get("configs") if isinstance(front, dict) else None
    return (
        [
            str(entry["config_name"])
            for entry in entries
            if isinstance(entry, dict) and "config_name" in entry
        ]
        if isinstance(entries, list)
        else []
    )
