"""Checks of typed answers, given by the caller: what a person typed -> what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.types import DataProfile
from advisor.situation.model_choice import Meant

Check = Callable[[str], str | None]  # what a person typed -> what is wrong with it, or None

# A data file, role -> column where that is known, what the task looks for ("reply", "label") -> the
# file measured; raises AdviseError.
Profile = Callable[[str, Mapping[str, str] | None, str | None], DataProfile]


def nothing_wrong(text: str) -> str | None:
    """A check that accepts everything."""
    return None


def path_exists(text: str) -> str | None:
    """What is wrong with a data path: nothing there, with the nearest names beside it."""
    path = Path(text).expanduser()
    if path.exists():
        return None
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder}."
    import difflib

    near = difflib.get_close_matches(
        path.name, sorted(item.name for item in folder.iterdir()), n=3, cutoff=0.5
    )
    return f"There is no file or folder {text}." + (
        f" Did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """Checks of typed answers, given by the caller: each returns what is wrong, or None."""

    data_path: Check = path_exists
    data_examples: Check = path_exists
    models: Callable[[str], Meant] = lambda name: Meant(id=name)  # what a model's name means
    reward_model: Check = nothing_wrong
    found: Callable[[str], str] = lambda path: (
        ""
    )  # what was recognised in a data file, said once it is named
    profile: Profile | None = None
