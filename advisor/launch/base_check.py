"""Whether the models that a plan names are what they say: told before anything is written.

Folders are checked whole. Of a model in the hub cache what is there is checked; the rest is for the
trainer, which downloads it and compares what was loaded with the model that config.json describes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.files import text_of
from advisor.ground.types import ModelShape
from advisor.methods import objective
from advisor.methods.rewards import reward_parts
from advisor.model_files.folder import folder_faults, model_faults
from advisor.model_files.hub_cache import hub_model_folder, is_offline
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path

LAYOUT = (
    "a folder in Hugging Face layout (config.json, *.safetensors, tokenizer files), or a hub id"
)
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.*", "tokenizer_config.json", "*.tiktoken",
)  # fmt: skip


def base_faults(plan: Plan, plan_path: Path, todo: Sequence[Entry]) -> Iterable[Fault]:
    """What is wrong with the plan's model, and with the folders that stages start from or are
    scored by; none of a folder that no stage still needs.
    """
    if not todo:
        return
    yield from _model_faults(plan, plan_path)
    for named in _other_folders(plan, todo):
        folder = resolve_path(plan_path, named)
        if folder.is_dir():
            yield from folder_faults(folder)
    for entry in todo:
        yield from _teacher_faults(plan, entry, plan_path)


def _teacher_faults(plan: Plan, entry: Entry, plan_path: Path) -> Iterable[Fault]:
    """What is wrong with the model that a stage learns from; what the hub cache lacks is for the
    trainer.
    """
    if "teacher" not in objective(entry.stage.objective).keys:
        return
    at, named = f"stage {entry.stage.name}", entry.stage.options.get("teacher")
    if not named:
        yield Fault(
            where=at,
            what=f"objective {entry.stage.objective} needs a teacher",
            allowed="teacher: a folder or a hub id, such as Qwen/Qwen3-8B",
        )
        return
    folder = resolve_path(plan_path, str(named))
    same = (
        str(named) == plan.model
        or folder.resolve() == resolve_path(plan_path, plan.model).resolve()
    )
    stored_alike = entry.stage.options.get("teacher_quantization") == entry.stage.quantization
    if same and stored_alike and entry.starts_from is entry.start_folder is None:
        yield Fault(
            where=at,
            what=f"the teacher {named} is the model that is trained: it has nothing to teach",
            allowed="a larger model of the same family; or start_from, for a module that is drawn"
            " back towards its base",
        )
        return
    if folder.is_dir():
        yield from folder_faults(folder)
    elif not is_hub_id(str(named)):
        yield Fault(where=f"{at}: teacher", what=f"no such folder: {folder}", allowed=LAYOUT)


def _other_folders(plan: Plan, todo: Sequence[Entry]) -> list[str]:
    """Folders that stages start from or are scored by, as written, each once."""
    stages = {stage.name for stage in plan.stages}
    named = []
    for entry in todo:
        if entry.start_folder is not None:
            named.append(entry.start_folder)
        for part in reward_parts(entry.stage.options):
            if part.source == "reward_model" and part.value not in stages:
                named.append(part.value)
    return list(dict.fromkeys(named))


def _model_faults(plan: Plan, plan_path: Path) -> Iterable[Fault]:
    path = resolve_path(plan_path, plan.model)
    at, folder = f"model {path}", "a folder in Hugging Face layout, or a hub id"
    if path.is_dir():
        yield from _folder_faults(plan, path)
    elif path.is_file():
        yield Fault(where=at, what="is a file", allowed=folder)
    elif path.is_symlink():
        yield Fault(where=at, what="is a link that leads nowhere", allowed=LAYOUT)
    elif not is_hub_id(plan.model):
        allowed = f"{folder} such as Qwen/Qwen3-0.6B"
        yield Fault(where="model", what=f"no such folder: {path}", allowed=allowed)
    else:
        snapshot = cached_snapshot(plan.model, plan.revision)
        if snapshot is not None:
            yield from model_faults(snapshot, downloads=not is_offline())


def _folder_faults(plan: Plan, path: Path) -> Iterable[Fault]:
    config = path / "config.json"
    if not config.exists() and not config.is_symlink():
        yield Fault(where=f"model {path}", what="has no config.json", allowed=LAYOUT)
    elif plan.revision is not None:
        yield Fault(
            what="'revision' has no effect: the model is a folder",
            hint="remove it; only models on the hub have revisions",
        )
    yield from model_faults(path)
    if not any(next(path.glob(pattern), None) for pattern in TOKENIZERS):
        yield Fault(
            where=f"model {path}",
            what="has no tokenizer",
            allowed=f"one of {', '.join(TOKENIZERS)}",
            hint="download the whole model, not its configuration alone",
        )


def base_folder(plan: Plan, plan_path: Path) -> Path | None:
    """The folder of the plan's model; None if it is a model of the hub."""
    folder = resolve_path(plan_path, plan.model)
    return folder if folder.is_dir() else None


def base_license(plan: Plan, plan_path: Path, shape: ModelShape | None) -> str | None:
    """The licence of the plan's model, as the catalogue or the model's own card names it; None if
    neither does.
    """
    if shape is not None and shape.license is not None:
        return shape.license
    folder = base_folder(plan, plan_path) or cached_snapshot(plan.model, plan.revision)
    try:
        card = text_of(folder / "README.md") if folder is not None else ""
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license: *['\"]?([\w.-]{1,40})['\"]? *$", head[1] if head else "", re.M)
    return named[1] if named else None


# --------------------------------------------------------------------------- the hub and its cache


def is_hub_id(text: str) -> bool:
    """Whether the text can be a name on the model hub: 'owner/name' or 'name', no path."""
    return not text.startswith((".", "/", "~")) and text.count("/") <= 1 and "\\" not in text


def cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder in the hub cache that a trainer will read this model from; None if there is none.

    Without a revision it is that of the branch `main`, else the only one that is there.
    """
    folder = hub_model_folder(hub_id)
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        revision = text_of(reference).strip()
    found = [path.parent for path in folder.glob(f"snapshots/{revision or '*'}/config.json")]
    return found[0] if len(found) == 1 else None
