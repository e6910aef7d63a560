"""The models to take for one that cannot be had; few answers need it."""

from __future__ import annotations

from advisor.model_files.hub_cache import cached_models
from advisor.model_files.made import is_here, made_models
from advisor.situation.catalogue import known_ids, nearest
from advisor.situation.names import near_models

LISTED = 3


def instead_of(hub_id: str) -> str:
    """In words the models to take for one that cannot be downloaded: known ones with names like
    it, and those that are here.
    """
    near: tuple[str | None, ...] = ()
    if hub_id not in known_ids():
        near = (nearest(hub_id), *(one.id for one in near_models(hub_id, most=LISTED)[0]))
    here = [one for one in (*cached_models(), *made_models()) if one != hub_id and is_here(one)]
    return "; ".join(
        f"{what}: {', '.join(list(dict.fromkeys(filter(None, ids)))[:LISTED])}"
        for what, ids in (("known names like it", near), ("on this machine", here))
        if any(ids)
    )
