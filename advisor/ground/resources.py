"""Where the rule files and the trainers are: inside the installed package, or beside it in a
checkout.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def resource_root() -> Path:
    """The folder that holds `rules/` and `trainers/`.

    The wheel carries both inside `advisor/_bundled/` so that nothing called `rules` or `trainers`
    lands in site-packages.
    """
    bundled = PACKAGE / "_bundled"
    return bundled if (bundled / "rules").is_dir() else PACKAGE.parent


def rules_dir() -> Path:
    """The folder of the shipped rules, facts and catalogues."""
    return resource_root() / "rules"


def trainers_root() -> Path:
    """The folder to put on a child's PYTHONPATH so that `python -P -m trainers` finds ours and
    no other.
    """
    return resource_root()
