"""What the model hub says of a model before anything is downloaded: its files, its licence, and
whether its owner asks for an agreement first.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from advisor.ground.annotated import parse_json
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import text_of
from advisor.model_files.hub_cache import hub_home, is_offline
from advisor.record.content import MODEL_FILES, PICKLED_FILES

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0
MOST_ANSWER_BYTES = 16 << 20
REFUSED = (401, 403, 404)
LOCAL = ("http://127.0.0.1", "http://localhost")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """What the hub says of a model."""

    files: Mapping[str, int]  # name -> bytes, of those that are downloaded to train it
    license: str | None
    is_gated: bool  # its owner asks everybody to accept the licence first
    may_read: bool  # nothing is asked, or this machine's login has access


def ask_hub(model: str, revision: str | None, what: str) -> HubModel:
    """What the hub says of a model.

    Raises InputError if it has no such model for this user, MachineNotReady if it cannot be asked.

    Args:
        revision: Branch, tag or commit; None: main.
        what: How messages call it: 'model Qwen/Qwen3-8B'.
    """
    if is_offline():
        raise MachineNotReady(
            f"{what} is not in the hub cache, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE, or name a model folder",
        )
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise MachineNotReady(f"HF_ENDPOINT is '{endpoint}', not a web address")
    inner = f"/revision/{quote(revision, safe='')}" if revision else ""
    address = f"{endpoint}/api/models/{quote(model)}{inner}?blobs=true"
    try:
        with _open(address, "GET") as answer:
            found = parse_json(answer.read(MOST_ANSWER_BYTES).decode("utf-8", errors="replace"))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in REFUSED:
            at = f" at revision {revision}" if revision else ""
            raise InputError(
                f"the hub has no such model{at} that you may read",
                where=what,
                hint="check the name; for a private or gated model: hf auth login",
            ) from None
        raise MachineNotReady(
            f"the hub answers with code {error.code}",
            where=what,
            hint="try again later, or name a model folder",
        ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineNotReady(
            f"{what} is not in the hub cache, and the hub cannot be reached ({reason})",
            hint="check the connection, or name a model folder",
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        found = {}  # a mirror that answers in another way: the trainer will tell
    is_gated = found.get("gated") not in (None, False)
    return HubModel(
        files=_files(found),
        license=_license(found),
        is_gated=is_gated,
        may_read=not is_gated or _may_read(endpoint, model, revision),
    )


def login() -> str | None:
    """The token of the hub on this machine; None without one."""
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if named:
        return named.strip() or None
    try:
        text = text_of(Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token"))
    except (OSError, ValueError):
        return None
    return text.strip() or None


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it may lead to another host, which the token is not for."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _open(address: str, method: str, *, redirects: bool = True) -> Any:
    request = urllib.request.Request(address, method=method)  # noqa: S310 (http: see ask_hub)
    token = login()
    if token and (address.startswith("https://") or address.startswith(LOCAL)):
        # Unredirected: urllib sends it to the named host alone.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    handlers = () if redirects else (_Stay(),)
    return urllib.request.build_opener(*handlers).open(request, timeout=HUB_TIMEOUT_S)


def _may_read(endpoint: str, model: str, revision: str | None) -> bool:
    """Whether this machine's login may download a gated model, tried with a small file."""
    if login() is None:
        return False
    file = f"{endpoint}/{quote(model)}/resolve/{quote(revision or 'main', safe='')}/config.json"
    try:
        with _open(file, "HEAD", redirects=False):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code not in (401, 403)
    except (OSError, HTTPException):
        return True  # not known: the trainer will tell


def _files(found: Mapping[str, Any]) -> dict[str, int]:
    """The files of the model's own folder that transformers reads, with their sizes."""
    named: dict[str, int] = {}
    siblings = found.get("siblings")
    for one in siblings if isinstance(siblings, list) else ():
        one = one if isinstance(one, dict) else {}
        name, size = one.get("rfilename"), one.get("size")
        if isinstance(name, str) and isinstance(size, int) and "/" not in name:
            named[name] = size
    wanted = {name for name in named if any(fnmatch(name, like) for like in MODEL_FILES)}
    if not any(name.endswith(".safetensors") for name in wanted):
        wanted |= {name for name in named if any(fnmatch(name, like) for like in PICKLED_FILES)}
    return {name: named[name] for name in sorted(wanted)}


def _license(found: Mapping[str, Any]) -> str | None:
    card = found.get("cardData")
    card = card if isinstance(card, dict) else {}
    stated = card.get("license")
    named = card.get("license_name") if stated in (None, "other") else stated
    if isinstance(named, str) and named:
        return named
    tags = found.get("tags")
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("license:"):
            return tag.removeprefix("license:")
    return stated if isinstance(stated, str) else None
