"""The model hub's cache on this machine, as huggingface_hub finds it, which takes too long to
import for a question this small; and one file of the hub, if that is wanted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from advisor.ground.files import text_of

HUB_TIMEOUT_S = 5.0
WEIGHTS = ("*.safetensors", "*.bin")


def is_hub_id(text: str) -> bool:
    """Whether the text can be a name on the model hub: 'owner/name' or 'name', no path."""
    return not text.startswith((".", "/", "~")) and text.count("/") <= 1 and "\\" not in text


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


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder in the hub cache that a trainer will read this model from; None if there is none.

    Without a revision it is that of the branch `main`, else the only one that is there.
    """
    folder = hub_model_folder(hub_id)
    try:
        reference = folder / "refs" / (revision or "main")
        if reference.is_file():
            revision = text_of(reference).strip()
        found = [path.parent for path in folder.glob(f"snapshots/{revision or '*'}/config.json")]
    except (OSError, ValueError):  # ValueError: a reference that is no text
        return None
    return found[0] if len(found) == 1 else None


def has_weights(hub_id: str, revision: str | None = None) -> bool:
    """Whether the cache holds the model's weights, all of those that its index names."""
    snapshot = cached_snapshot(hub_id, revision)
    if snapshot is None:
        return False
    for index in snapshot.glob("*.index.json"):
        try:
            wanted = set(json.loads(text_of(index))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return all((snapshot / str(name)).is_file() for name in wanted)
    return any(path.is_file() for end in WEIGHTS for path in snapshot.glob(end))


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
