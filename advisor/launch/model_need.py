"""What a model of the hub needs before it can be trained: a download, room in the cache, and
perhaps a licence that is accepted first. Folders need nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import AdviseError, Fault, MachineNotReady
from advisor.ground.files import free_bytes, text_of
from advisor.ground.types import ModelShape
from advisor.ground.units import format_gib
from advisor.launch.base_check import cached_snapshot, is_hub_id
from advisor.launch.hub_model import HUB, HubModel, ask_hub, login
from advisor.model_files.hub_cache import hub_cache
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path

WEIGHTS = ("*.safetensors", "*.bin")
BYTES_A_PARAMETER = 2  # how models are published unless their name or catalogue says otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelNeed:
    """What is to be done for one model of the hub."""

    model: str
    what: str  # how messages call it: "model Qwen/Qwen3-8B"
    is_cached: bool = False  # with its weights
    download_bytes: int | None = None  # None: not known; 0 if it is cached
    size_from: str = ""
    license: str | None = None
    license_from: str = ""
    is_gated: bool | None = None  # None: not known

    @property
    def page(self) -> str:
        """Where its licence is read and accepted."""
        return f"{HUB}/{self.model}"

    def line(self) -> str:
        """What a person wants to know before it starts."""
        parts = ["in the model cache already, nothing to download"] if self.is_cached else []
        if not self.is_cached:
            parts += [
                "download of unknown size"
                if self.download_bytes is None
                else f"{format_gib(self.download_bytes)} to download ({self.size_from})"
            ]
        parts += [
            f"licence {self.license} ({self.license_from})"
            if self.license
            else f"licence not known: see {self.page}"
        ]
        if self.is_gated and not self.is_cached:
            parts += [f"to be accepted at {self.page}"]
        return f"{self.what}: {', '.join(parts)}"


def model_needs(
    plan: Plan, plan_path: Path, todo: Sequence[Entry], shape: ModelShape | None
) -> list[ModelNeed]:
    """What the plan's hub models need, as far as this machine and the catalogue know: the base and
    the teachers. The network is not asked.
    """
    named: dict[str, tuple[str, str | None]] = {plan.model: (f"model {plan.model}", plan.revision)}
    for entry in todo:
        teacher = entry.stage.options.get("teacher")
        if teacher:
            named.setdefault(str(teacher), (f"stage {entry.stage.name}: teacher {teacher}", None))
    needs = []
    for model, (what, revision) in named.items():
        if is_hub_id(model) and not resolve_path(plan_path, model).exists():
            known = shape if model == plan.model else _catalogued(model)
            needs.append(_known_need(model, what, revision, known))
    return needs


def asked(need: ModelNeed, revision: str | None) -> ModelNeed:
    """The same with what the hub says; a cached model is not asked for.

    Raises MachineNotReady with the next step if its owner asks for an agreement that this machine's
    login does not have, and whatever `ask_hub` raises.
    """
    if need.is_cached:
        return need
    found = ask_hub(need.model, revision, need.what)
    if not found.may_read:
        known = replace(need, license=found.license or need.license)
        raise MachineNotReady(faults=[gate_fault(known)])
    download = _missing_bytes(need.model, revision, found) if found.files else None
    if download is not None:
        need = replace(need, download_bytes=download, size_from="the hub")
    if found.license is not None:
        need = replace(need, license=found.license, license_from="the hub")
    return replace(need, is_gated=found.is_gated)


def cache_line(needs: Iterable[ModelNeed]) -> str:
    """Where downloads go and what is free there; empty if nothing is downloaded."""
    if all(need.is_cached for need in needs):
        return ""
    return f"model cache: {hub_cache()}, {format_gib(free_bytes(hub_cache()))} free on its disk"


def _known_need(model: str, what: str, revision: str | None, shape: ModelShape | None) -> ModelNeed:
    is_cached = has_weights(model, revision)
    size = None
    if shape is not None and shape.stored is None and shape.origin != "size":
        size = shape.params * BYTES_A_PARAMETER
    return ModelNeed(
        model=model,
        what=what,
        is_cached=is_cached,
        download_bytes=0 if is_cached else size,
        size_from="its parameters in 16 bit",
        license=shape.license if shape is not None else None,
        license_from="catalogue",
        is_gated=shape.gated if shape is not None else None,
    )


def _catalogued(model: str) -> ModelShape | None:
    from advisor.situation.models import model_shape

    try:
        return model_shape(model)[0]
    except AdviseError:
        return None


def has_weights(model: str, revision: str | None) -> bool:
    """Whether the cache holds the model's weights, all of those that its index names."""
    import json

    snapshot = cached_snapshot(model, revision)
    if snapshot is None:
        return False
    for index in snapshot.glob("*.index.json"):
        try:
            wanted = set(json.loads(text_of(index))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return all((snapshot / str(name)).is_file() for name in wanted)
    return any(path.is_file() for pattern in WEIGHTS for path in snapshot.glob(pattern))


def _missing_bytes(model: str, revision: str | None, found: HubModel) -> int:
    """What of the model's files the cache does not hold yet."""
    snapshot = cached_snapshot(model, revision)
    return sum(
        size
        for name, size in found.files.items()
        if snapshot is None or not os.path.exists(snapshot / name)
    )


def gate_fault(need: ModelNeed) -> Fault:
    """That the model's owner asks for an agreement first, with the two steps."""
    licence = f" ({need.license})" if need.license else ""
    lacks = (
        "and the login of this machine has not"
        if login() is not None
        else "and this machine is not logged in"
    )
    return Fault(
        what=f"its licence{licence} must be accepted before it can be downloaded, {lacks}",
        where=need.what,
        hint=f"accept the licence at {need.page}, then `hf auth login`",
    )
