"""The model hub's cache on this machine: where it is, as huggingface_hub finds it, which takes too
long to import for a question this small.
"""

from __future__ import annotations

import os
from pathlib import Path


def is_offline() -> bool:
    """Whether the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def hub_home() -> Path:
    """The folder of the hub's client: its cache, and the token of a login."""
    return Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))


def hub_cache() -> Path:
    """The folder that models of the hub are downloaded to."""
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub")


def hub_model_folder(hub_id: str) -> Path:
    """The folder of one model in the cache, whether it is there or not; its `snapshots` hold the
    files.
    """
    return hub_cache() / f"models--{hub_id.replace('/', '--')}"
