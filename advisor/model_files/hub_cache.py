"""The model hub's cache on this machine, as huggingface_hub finds it, which takes too long to
import for a question this small; and one file of the hub, if that is wanted.
"""

from __future__ import annotations

import os
from pathlib import Path

HUB_TIMEOUT_S = 5.0


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
    """The folder of one model in the cache; its `snapshots` hold the files. It may not exist."""
    return hub_cache() / f"models--{hub_id.replace('/', '--')}"


def cached_config(hub_id: str) -> Path | None:
    """The newest config.json of a model in the cache, None if there is none."""
    snapshots = hub_model_folder(hub_id) / "snapshots"
    try:
        found = [path for path in snapshots.glob("*/config.json") if path.is_file()]
    except OSError:
        return None
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def cached_models() -> tuple[str, ...]:
    """The hub ids of the models in the cache."""
    try:
        folders = sorted(path.name for path in hub_cache().glob("models--*--*"))
    except OSError:
        return ()
    return tuple("/".join(name.removeprefix("models--").split("--", 1)) for name in folders)


def has_weights(hub_id: str) -> bool:
    """Whether the cache holds weights of the model, and not its configuration alone."""
    snapshots = hub_model_folder(hub_id) / "snapshots"
    try:
        return any(
            path.suffix in (".safetensors", ".bin") and path.is_file()
            for path in snapshots.glob("*/*")
        )
    except OSError:
        return False


def download_config(hub_id: str) -> tuple[Path | None, str]:
    """(the hub's config.json, "") or (None, why it cannot be downloaded)."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        return (
            None,
            f"{hub_id}: not in the catalogue, and huggingface_hub is not installed to ask the hub",
        )
    try:
        # A download retries for half a minute without a network, and then says "not found".
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=HUB_TIMEOUT_S)), ""
    except Exception as error:  # the hub client raises many classes, some of them requests' own
        kind = type(error).__name__
        if "Gated" in kind or "Unauthorized" in kind:
            return None, f"{hub_id}: access must be requested on its hub page before it can be read"
        if "RepositoryNotFound" in kind or "Validation" in kind:
            return None, f"{hub_id}: not found on the hub (or private)"
        if "EntryNotFound" in kind and not kind.startswith("Local"):
            return None, f"{hub_id}: on the hub, but without a config.json: no model to train"
        return None, f"{hub_id}: the hub could not be reached ({kind})"
