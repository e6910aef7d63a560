"""A data set of the model hub as files: `owner/name`, or `owner/name/folder` for one of its
configurations.

It is fetched when it is named, into the hub's own cache, and read from there like any folder;
offline only what the cache holds. Needs huggingface_hub, which comes with the training extra.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.data.read.lines import CONTAINERS
from advisor.ground.errors import AdviseError, InputError, MachineNotReady
from advisor.ground.files import text_of
from advisor.ground.resources import install_line
from advisor.model_files.hub_cache import is_offline

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?:/[\w.@ -]+)*")
MOST_BYTES = 5 << 30  # more is not fetched without being asked for by name
PATTERNS = (*(f"*{name}" for name in CONTAINERS), "*.gz", "dataset_dict.json", "state.json")
FILE_ENDINGS = {*CONTAINERS, ".gz", ".yaml", ".yml"}
REFUSED = ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError")
_fetched: dict[str, Path] = {}  # by this process: a run asks several times


def is_hub_id(text: str) -> bool:
    """True for what can name a data set of the hub: 'owner/name', perhaps with a folder behind it,
    that is no path here.
    """
    if text.startswith((".", "/", "~")) or not _ID.fullmatch(text):
        return False
    # A folder that is there, or a name that ends like a file, was meant as a path.
    return not os.path.isdir(text.split("/")[0]) and Path(text).suffix.lower() not in FILE_ENDINGS


def hub_folder(text: str) -> Path:
    """The cached files of a hub data set, fetched if they are not there yet.

    Raises:
        InputError: Not in the cache and offline, or no such data set.
        MachineNotReady: The package is missing, or the hub cannot be reached.
    """
    if text in _fetched:
        return _fetched[text]
    owner, name, *below = text.split("/")
    repo, inner = f"{owner}/{name}", "/".join(below)
    if find_spec("huggingface_hub") is None:
        raise MachineNotReady(
            "no such file or folder; a data set of the hub needs huggingface_hub, which is"
            " not installed",
            where=text,
            hint=f"{install_line()}, or save it as a file: {_saving(repo)}",
        )
    import huggingface_hub

    patterns = [*(f"{inner}/{name}" for name in PATTERNS), inner] if inner else [*PATTERNS]
    try:
        if not is_offline():
            _refuse_large(text, repo, inner, huggingface_hub.HfApi())
        found = huggingface_hub.snapshot_download(
            repo,
            repo_type="dataset",
            allow_patterns=[*patterns, "README.md"],
            local_files_only=is_offline(),
        )
    except InputError:
        raise
    except Exception as error:  # the package has a dozen of its own, and those of its HTTP library
        raise _explained(text, repo, error) from None
    where = Path(found, inner)
    if not where.exists():
        folders = sorted(path.name for path in Path(found).iterdir() if path.is_dir())
        names = ", ".join(name for name in folders if not name.startswith("."))
        allowed = f"it has: {names}" if names else ""
        raise InputError(f"the data set has no '{inner}'", allowed, where=text)
    # Several configurations are several data sets: which one is meant has to be said.
    several = [] if inner else _configurations(where)
    if len(several) > 1:
        what = f"the data set has several configurations: {', '.join(several)}"
        raise InputError(what, where=text, hint=f"name one: {text}/{several[0]}")
    _fetched[text] = where
    return where


def _refuse_large(text: str, repo: str, inner: str, api: Any) -> None:
    files = api.repo_info(repo, repo_type="dataset", files_metadata=True).siblings or ()
    size = sum(
        item.size or 0
        for item in files
        if item.rfilename.startswith(inner)
        and any(fnmatch(item.rfilename, pattern) for pattern in PATTERNS)
    )
    if size > MOST_BYTES:
        raise InputError(
            f"the data set's files have {size / 2**30:.0f} GiB",
            where=text,
            hint="fetch it yourself and name the folder:\n"
            f"    hf download --repo-type dataset {repo} --local-dir {repo.rpartition('/')[2]}",
        )


def _explained(text: str, repo: str, error: Exception) -> AdviseError:
    """The error for a data set that could not be fetched."""
    none = "no such file or folder"
    if is_offline():
        what = f"{none}; as a data set of the hub it is not in the cache, and HF_HUB_OFFLINE is set"
        return InputError(what, where=text, hint=f"unset it, or: {_saving(repo)}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__name__ in REFUSED or status in (401, 403, 404):
        what = f"{none}, and the hub has no such data set that you may read"
        hint = "check the name; a private or gated one needs access and: hf auth login"
        return InputError(what, where=text, hint=hint)
    first = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return MachineNotReady(
        f"{none}, and the hub cannot be reached ({first})",
        where=text,
        hint=f"check the connection, or save it elsewhere as a file: {_saving(repo)}",
    )


def _saving(repo: str) -> str:
    return f"load_dataset('{repo}', split='train').to_json('train.jsonl')"


def _configurations(folder: Path) -> list[str]:
    """The configurations that the card's front matter lists and that are folders."""
    card = folder / "README.md"
    text = text_of(card, errors="replace") if card.is_file() else ""
    front = text.split("---", 2)[1] if text.startswith("---") else ""
    names = re.findall(r"^\s*-?\s*config_name:\s*[\"']?([^\s\"']+)", front, re.MULTILINE)
    return [name for name in dict.fromkeys(names) if (folder / name).is_dir()]
