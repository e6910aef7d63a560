"""Where rules and trainers are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def resource_root() -> Path:
    """The folder that holds `rules/`, `trainers/` and the page for coding agents.

    The wheel carries them in `advisor/_bundled/`, so that site-packages gets no such names.
    """
    bundled = PACKAGE / "_bundled"
    return bundled if (bundled / "rules").is_dir() else PACKAGE.parent


def rules_dir() -> Path:
    """The folder of the shipped rules, facts and catalogues."""
    return resource_root() / "rules"


def agents_page() -> Path:
    """How coding agents use the product, as Markdown."""
    return resource_root() / "docs" / "agents.md"


def trainers_root() -> Path:
    """The folder for a child's PYTHONPATH, so that `python -P -m trainers` finds our trainers."""
    return resource_root()


@cache
def method_roots() -> tuple[Path, ...]:
    """The folders that bring methods: the project's own, then those that ADVISE_METHODS names."""
    named = os.environ.get("ADVISE_METHODS", "")
    own = (Path(part).expanduser().resolve() for part in named.split(os.pathsep) if part)
    return (resource_root(), *own)


def cache_folder() -> Path:
    """The folder for what can be made again, below the user's cache folder; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-advisor"


def estimate_methods_dir() -> Path:
    """The folder of the files that count what is special about a method."""
    return PACKAGE / "estimate" / "methods"
