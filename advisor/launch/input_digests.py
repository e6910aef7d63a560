"""What a run reads, told apart by content: so that a run goes on only with the very model and data
it began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from advisor.ground.errors import Fault, InputError
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.paths import with_paths
from advisor.plan.read import resolve_path


def absolute(plan: Plan, plan_path: Path) -> Plan:
    """The plan with every path that exists made absolute, so that its copy holds from anywhere."""

    def there(text: str) -> str:
        path = resolve_path(plan_path, text)
        return str(path.resolve()) if path.exists() else text

    return with_paths(plan, there)


def fingerprints(plan: Plan, plan_path: Path, entries: Iterable[Entry]) -> dict[str, str]:
    """Path as written -> digest, of each data file (all of it) and of the model folder
    (configuration, names and sizes).
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
    """Raise InputError where the run in the folder began with other content.

    Compares content: paths may be written anew.

    Args:
        growing: The run may have gained tasks, whose data are new rather than changed.
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
