"""The tasks of the installed lm-evaluation-harness by name, found without importing it.

The harness parses each of its 14,000 files to know their names, which takes 10 to 25 s. Reading
their lines takes one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from advisor.ground.files import text_of

PACKAGE = "lm_eval"
# The name that a file defines: of a task, or of a group of tasks.
NAME = re.compile(
    r"^['\"]?(?:task|group)['\"]?: *['\"]?([^\s'\"#\[{]+)['\"]? *(?:#.*)?$", re.MULTILINE
)
TAGS = re.compile(
    r"^['\"]?tag['\"]?: *(?:['\"]?([^\s'\"#\[]+)['\"]?|\[([^\]]*)\])? *(?:#.*)?\n"
    r"((?: *- *\S+ *(?:#.*)?\n)*)",
    re.MULTILINE,
)
DATA_SET = re.compile(r"^['\"]?dataset_path['\"]?: *['\"]?([^\s'\"#]+)", re.MULTILINE)
INCLUDE = re.compile(r"^['\"]?include['\"]?: *['\"]?([^\s'\"#]+)", re.MULTILINE)
# Builders of the package datasets that read local files.
LOCAL_BUILDERS = ("json", "csv", "parquet", "arrow", "text", "pandas")
SHOWN = 5  # names that are shown beside an unknown one


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One file of the harness that defines a name."""

    path: Path
    is_tag: bool = False  # one of the tasks that share the name


def harness_folder() -> Path | None:
    """The folder of the installed harness, or None."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def harness_version() -> str | None:
    """The installed version, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


@cache
def known_tasks() -> dict[str, tuple[TaskFile, ...]]:
    """Name of a task, group or tag -> the files that define it."""
    folder = harness_folder()
    found: dict[str, list[TaskFile]] = {}
    for path in sorted(folder.glob("tasks/**/*")) if folder is not None else ():
        # Files without an ending are included by others, and may name their tags.
        if path.suffix not in ("", ".yaml") or not path.is_file():
            continue
        text = text_of(path, errors="replace") + "\n"
        for name in NAME.findall(text) if path.suffix else ():
            found.setdefault(name, []).append(TaskFile(path))
        for one, several, lines in TAGS.findall(text):
            names = [one, *several.split(","), *re.findall(r"- *(\S+)", lines)]
            for name in filter(None, (name.strip(" '\"") for name in names)):
                found.setdefault(name, []).append(TaskFile(path, is_tag=True))
    return {name: tuple(files) for name, files in found.items()}


def task_folders(name: str) -> list[Path]:
    """The folders of the harness, one for each family of tasks, that define a name."""
    folder = harness_folder()
    if folder is None:
        return []
    tasks = folder / "tasks"
    families = [
        tasks / file.path.relative_to(tasks).parts[0] for file in known_tasks().get(name, ())
    ]
    return list(dict.fromkeys(families))


def similar_tasks(name: str) -> list[str]:
    """Known names that are close to an unknown one, or that hold it."""
    import difflib

    known = known_tasks()
    words = name.lower().replace("-", "_")
    close = difflib.get_close_matches(words, known, n=SHOWN, cutoff=0.75)
    holding = sorted((one for one in known if words in one.lower()), key=len)
    return list(dict.fromkeys([*close, *holding]))[:SHOWN]


def data_set_of(path: Path) -> str | None:
    """The data set that a file of the harness names, itself or by what it includes; None without
    one.
    """
    text = text_of(path, errors="replace") if path.is_file() else ""
    named = DATA_SET.search(text)
    if named is not None:
        return named[1]
    included = INCLUDE.search(text)
    return data_set_of(path.parent / included[1]) if included is not None else None
