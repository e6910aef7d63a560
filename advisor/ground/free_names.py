"""A name for what is written where nothing is overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

KEPT = "{} is there already and stays as it is."  # said where another name is taken


def free_path(path: Path, taken: Callable[[Path], bool] = os.path.lexists) -> Path:
    """The path, or one beside it that nothing has: a.fixed-2.yaml for a.fixed.yaml."""
    beside = (path.with_stem(f"{path.stem}-{number}") for number in range(2, 1000))
    return path if not taken(path) else next(one for one in beside if not taken(one))
