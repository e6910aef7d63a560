"""Digests of what a run reads: a run is resumed only with the model and the data it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from advisor.ground.errors import Fault, InputError
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path


def fingerprints(plan: Plan, plan_path: Path, entries: Iterable[Entry]) -> dict[str, str]:
    """Digests of each data file (its whole content) and of the model folder (its configuration,
    and the names and sizes of its weights), by 'data PATH' and 'model'.
    """
    from advisor.data.read.files import content_digest

    found = {}
    for text in dict.fromkeys(entry.data.path for entry in entries):
        path = resolve_path(plan_path, text)
        if path.exists():
            found[f"data {text}"] = content_digest(path)[:16]
    folder = resolve_path(plan_path, plan.model)
    if folder.is_dir():
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(f"\0{path.name} {path.stat().st_size}".encode())
        found["model"] = digest.hexdigest()[:16]
    return found


def refuse_changed(
    before: Mapping[str, str], now: Mapping[str, str], folder: Path, *, growing: bool = False
) -> None:
    """Raise InputError if the run in the folder began with other content.

    Only the content is compared: the same file may have another path now.

    Args:
        growing: The run may have gained tasks; their data are new, not changed.
    """
    faults = []
    if growing:
        now = {key: value for key, value in now.items() if key in before or key == "model"}
    for kind, what in (("data", "the data"), ("model", "the model folder")):
        old = sorted(value for key, value in before.items() if key.split(" ")[0] == kind)
        new = sorted(value for key, value in now.items() if key.split(" ")[0] == kind)
        if not set(new) <= set(old):
            faults.append(
                Fault(
                    what=f"{folder}: {what} has changed since this run began",
                    hint="start a new run with --output DIR, or delete this folder",
                )
            )
    if faults:
        raise InputError(faults=faults)
