"""Models that were made on this machine from another source than the hub, by their hub ids."""

from __future__ import annotations

import json
from pathlib import Path

from advisor.ground.files import text_of
from advisor.ground.resources import cache_folder
from advisor.model_files.hub_cache import has_weights

MADE = "complete.json"  # what such a folder is, written last


def made_here(hub_id: str) -> Path | None:
    """The folder of a model that was made on this machine from another source than the hub, as
    `advise demo` does without one; None if there is none, or the hub's own is in its cache.
    """
    folder = made_models().get(hub_id)
    return None if folder is None or has_weights(hub_id) else folder


def made_models() -> dict[str, Path]:
    """Hub id -> folder."""
    found = {}
    for record in (cache_folder() / "models").glob(f"*/{MADE}"):
        try:
            found[str(json.loads(text_of(record))["model"])] = record.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def is_here(hub_id: str) -> bool:
    """Whether a model of the hub is on this machine, with its weights."""
    return has_weights(hub_id) or made_here(hub_id) is not None
