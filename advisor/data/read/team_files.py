"""A folder whose files belong to one team each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from advisor.data.read.files import BESIDE_DATA, CONTAINERS, EVALUATION_NAMES
from advisor.ground.files import folder_name


def team_files(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Team -> its file or folder, named after it; empty where the folder is no such folder.

    Splits of one data set (train, test), its parts (part-1, part-2) and documents are no teams.
    """
    where = Path(folder)
    try:
        entries = sorted(entry for entry in where.iterdir() if not entry.name.startswith("."))
    except OSError:
        return {}
    if {"dataset_dict.json", "state.json"} & {entry.name for entry in entries}:
        return {}
    named = {_stem(entry): entry for entry in entries if _holds_examples(entry)}
    named = {stem: entry for stem, entry in named.items() if not stem.startswith(BESIDE_DATA)}
    if len(named) < 2 or _are_parts(named):
        return {}
    teams = {folder_name(stem): os.path.join(folder, entry.name) for stem, entry in named.items()}
    return teams if "" not in teams and len(teams) == len(named) else {}


def _stem(entry: Path) -> str:
    name = entry.name.lower()
    return name if entry.is_dir() else name.removesuffix(".gz").rsplit(".", 1)[0]


def _holds_examples(entry: Path) -> bool:
    """Whether it is a table with something in it, or a folder with a data file."""
    try:
        if entry.is_dir():
            return any(_container(file) for file in entry.iterdir() if file.is_file())
        is_table = _container(entry) not in (None, "text")
        return is_table and entry.is_file() and entry.stat().st_size > 0
    except OSError:
        return False


def _container(file: Path) -> str | None:
    return CONTAINERS.get(Path(file.name.lower().removesuffix(".gz")).suffix)


def _are_parts(stems: Iterable[str]) -> bool:
    """Whether the names are those of one data set's splits, or differ by numbers alone."""
    split_names = ("train", "training", *EVALUATION_NAMES)
    plain = {re.sub(r"[\d_.-]+", " ", stem).strip() for stem in stems}
    return len(plain) == 1 or all(set(name.split()) & set(split_names) for name in plain)
