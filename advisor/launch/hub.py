"""What models of the hub need before they are trained: a download, room in the cache, perhaps a
licence that is accepted first; as this machine, the catalogue and the hub say. Folders need nothing
of it.
"""

from __future__ import annotations

import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.annotated import parse_json
from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.ground.files import free_bytes, text_of
from advisor.ground.types import ModelShape
from advisor.ground.units import format_gib
from advisor.model_files.hub_cache import (
    HUB_TIMEOUT_S,
    cached_snapshot,
    has_weights,
    hub_cache,
    hub_home,
    is_hub_id,
    is_offline,
)
from advisor.plan.entries import Entry
from advisor.plan.read import PlanOnDisk
from advisor.record.content import MODEL_FILES, PICKLED_FILES
from advisor.situation.instead import instead_of
from advisor.situation.models import usable_shape

HUB = "https://huggingface.co"
MOST_ANSWER_BYTES = 16 << 20
REFUSED = (401, 403, 404)
LOCAL = ("http://127.0.0.1", "http://localhost")
BYTES_A_PARAMETER = 2  # how models are published unless their name or catalogue says otherwise


def base_license(file: PlanOnDisk, shape: ModelShape | None) -> str | None:
    """The licence of the plan's model, by the catalogue or its model card; None without one."""
    if shape is not None and shape.license is not None:
        return shape.license
    folder = file.model_folder or cached_snapshot(file.plan.model, file.plan.revision)
    try:
        card = text_of(folder / "README.md") if folder is not None else ""
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license: *['\"]?([\w.-]{1,40})['\"]? *$", head[1] if head else "", re.M)
    return named[1] if named else None


# --------------------------------------------------------------------------- what a model needs


class ModelNeed(Struct, frozen=True, kw_only=True):
    """What is to be done for one model of the hub."""

    model: str
    revision: str | None = None
    what: str  # how messages call it: "model Qwen/Qwen3-8B"
    is_cached: bool = False  # with its weights
    download_bytes: int | None = None  # None: not known; 0 if it is cached
    size_from: str = ""
    license: str | None = None
    license_from: str = ""
    is_gated: bool | None = None  # its owner asks everybody for an agreement; None: not known

    @property
    def page(self) -> str:
        """Where its licence is read and accepted."""
        return f"{HUB}/{self.model}"

    def line(self) -> str:
        """What a person wants to know before it starts."""
        if self.is_cached:
            parts = ["in the model cache already, nothing to download"]
        elif self.download_bytes is None:
            parts = ["download of unknown size"]
        else:
            parts = [f"{format_gib(self.download_bytes)} to download ({self.size_from})"]
        if self.license:
            parts.append(f"licence {self.license} ({self.license_from})")
        else:
            parts.append(f"licence not known: see {self.page}")
        if self.is_gated and not self.is_cached:
            parts.append(f"to be accepted at {self.page}")
        return f"{self.what}: {', '.join(parts)}"

    def gate_fault(self) -> Fault:
        """That the model's owner asks for an agreement first, with the two steps."""
        licence = f" ({self.license})" if self.license else ""
        return Fault(
            what=f"its licence{licence} must be accepted before it can be downloaded, and this"
            " machine is not logged in",
            where=self.what,
            hint=f"accept the licence at {self.page}, then `hf auth login`",
        )


def model_needs(
    file: PlanOnDisk, todo: Sequence[Entry], shape: ModelShape | None
) -> list[ModelNeed]:
    """What base and teachers of the hub need, by the cache and the catalogue. Asks no network."""
    plan = file.plan
    named = {plan.model: f"model {plan.model}"}
    for entry in todo:
        if teacher := entry.stage.options.get("teacher"):
            named.setdefault(str(teacher), f"stage {entry.stage.name}: teacher {teacher}")
    needs = []
    for model, what in named.items():
        if not is_hub_id(model) or file.resolve(model).exists():
            continue
        is_base = model == plan.model
        known, revision = shape if is_base else usable_shape(model), plan.revision
        need = ModelNeed(model=model, what=what, revision=revision if is_base else None)
        needs.append(_with_shape(need, known))
    return needs


def _with_shape(need: ModelNeed, shape: ModelShape | None) -> ModelNeed:
    is_cached = has_weights(need.model, need.revision)
    size = None
    if shape is not None and shape.stored is None and shape.origin != "size":
        size = shape.params * BYTES_A_PARAMETER
    return replace(
        need,
        is_cached=is_cached,
        download_bytes=0 if is_cached else size,
        size_from="its parameters in 16 bit",
        license=shape.license if shape is not None else None,
        license_from="catalogue",
        is_gated=shape.gated if shape is not None else None,
    )


def cache_line(needs: Iterable[ModelNeed]) -> str:
    """Where downloads go and what is free there; empty if nothing is downloaded."""
    if all(need.is_cached for need in needs):
        return ""
    return f"model cache: {hub_cache()}, {format_gib(free_bytes(hub_cache()))} free on its disk"


# --------------------------------------------------------------------------- the hub's answer


def ask_hub(need: ModelNeed) -> ModelNeed:
    """The need with what the hub says; a cached model is not asked for.

    Raises InputError if the hub has no such model for this user; MachineNotReady if it cannot be
    asked, or asks for an agreement and this machine is not logged in.
    """
    if need.is_cached:
        return need
    if is_offline():
        raise MachineNotReady(
            f"{need.what} is not in the hub cache, and HF_HUB_OFFLINE is set",
            instead_of(need.model),
            f"unset HF_HUB_OFFLINE, or {_by_hand(need.model)}",
        )
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise MachineNotReady(f"HF_ENDPOINT is '{endpoint}', not a web address")
    found = _answer(endpoint, need)
    license = _license(found)
    if license is not None:
        need = replace(need, license=license, license_from="the hub")
    is_gated = found.get("gated") not in (None, False)
    if is_gated and login() is None:
        raise MachineNotReady(faults=[need.gate_fault()])
    if files := _files(found):
        snapshot = cached_snapshot(need.model, need.revision)
        missing = [
            size
            for name, size in files.items()
            if snapshot is None or not os.path.exists(snapshot / name)
        ]
        need = replace(need, download_bytes=sum(missing), size_from="the hub")
    return replace(need, is_gated=is_gated)


def _by_hand(model: str) -> str:
    fetch = f"`hf download {shlex.quote(model)} --local-dir DIR`"
    return f"fetch it where there is one, {fetch}, and name the folder"


def _answer(endpoint: str, need: ModelNeed) -> dict[str, Any]:
    """The hub's description of a model; empty from a mirror that answers in another way."""
    inner = f"/revision/{quote(need.revision, safe='')}" if need.revision else ""
    address = f"{endpoint}/api/models/{quote(need.model)}{inner}?blobs=true"
    request = urllib.request.Request(address)  # noqa: S310 (http or https: see ask_hub)
    token = login()
    if token and address.startswith(("https://", *LOCAL)):
        # Unredirected: urllib sends it to the named host alone.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener().open(request, timeout=HUB_TIMEOUT_S) as answer:
            found = parse_json(answer.read(MOST_ANSWER_BYTES).decode("utf-8", errors="replace"))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in REFUSED:
            at = f" at revision {need.revision}" if need.revision else ""
            raise InputError(
                f"the hub has no such model{at} that you may read",
                where=need.what,
                allowed=instead_of(need.model),
                hint="check the name; for a private or gated model: hf auth login",
            ) from None
        raise MachineNotReady(
            f"the hub answers with code {error.code}",
            where=need.what,
            hint="try again later, or name a model folder",
        ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineNotReady(
            f"{need.what} is not in the hub cache, and the hub cannot be reached ({reason})",
            instead_of(need.model),
            f"check the connection, or {_by_hand(need.model)}",
        ) from None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _files(found: Mapping[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    siblings = found.get("siblings")
    for one in siblings if isinstance(siblings, list) else ():
        name, size = (one.get("rfilename"), one.get("size")) if isinstance(one, dict) else ("", 0)
        if isinstance(name, str) and isinstance(size, int) and name and "/" not in name:
            sizes[name] = size
    is_safe = any(name.endswith(".safetensors") for name in sizes)
    read = MODEL_FILES if is_safe else (*MODEL_FILES, *PICKLED_FILES)
    return {name: size for name, size in sizes.items() if any(fnmatch(name, one) for one in read)}


def _license(found: Mapping[str, Any]) -> str | None:
    card, tags = found.get("cardData"), found.get("tags")
    card = card if isinstance(card, dict) else {}
    stated = card.get("license")
    named = card.get("license_name") if stated in (None, "other") else stated
    tagged = [
        tag.removeprefix("license:")
        for tag in (tags if isinstance(tags, list) else ())
        if isinstance(tag, str) and tag.startswith("license:")
    ]
    return next((text for text in (named, *tagged, stated) if isinstance(text, str) and text), None)
