"""Whether the models that a plan names are what they say, and what its rewards name is there.

Folders are checked whole. Of a model in the hub cache what is there is checked; the rest is for the
trainer, which downloads it and compares what was loaded with the model that config.json describes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.errors import Fault, did_you_mean
from advisor.ground.extras import Checked
from advisor.ground.files import bytes_of
from advisor.launch.call import Call
from advisor.methods import objective
from advisor.methods.rewards import RewardPart, reward_parts
from advisor.model_files.folder import folder_faults, model_faults
from advisor.model_files.hub_cache import cached_snapshot, is_hub_id, is_offline
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import PlanOnDisk

PHASE = "plan"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LAYOUT = (
    "a folder in Hugging Face layout (config.json, *.safetensors, tokenizer files), or a hub id"
)
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.*", "tokenizer_config.json", "*.tiktoken",
)  # fmt: skip


def check(call: Call) -> Checked:
    """What is wrong with the plan's model, with teachers, and with the folders that stages start
    from or are scored by; nothing of a folder that no stage still needs.
    """
    if not call.left:
        return Checked()
    bad = list(_model_faults(call.run))
    for folder in _other_folders(call):
        if folder.is_dir():
            bad += folder_faults(folder)
    for entry in call.left:
        if "teacher" in objective(entry.stage.objective).keys:
            bad += _teacher_faults(call.run, entry)
    rewards: dict[str, Fault] = {}
    for entry in call.left:
        for part in reward_parts(entry.stage.options):
            for fault in _part_faults(call.run, part):
                rewards.setdefault(fault.what, replace(fault, where=f"stage {entry.stage.name}"))
    return Checked(bad=[*bad, *rewards.values()])


def _other_folders(call: Call) -> dict[Path, None]:
    stages = {stage.name for stage in call.run.plan.stages}
    named = []
    for entry in call.left:
        if entry.start_folder is not None:
            named.append(entry.start_folder)
        for part in reward_parts(entry.stage.options):
            if part.source == "reward_model" and part.value not in stages:
                named.append(part.value)
    return dict.fromkeys(map(call.run.resolve, named))


def _teacher_faults(file: PlanOnDisk, entry: Entry) -> Iterator[Fault]:
    at, named = f"stage {entry.stage.name}", str(entry.stage.options.get("teacher") or "")
    if not named:
        yield Fault(
            where=at,
            what=f"objective {entry.stage.objective} needs a teacher",
            allowed="teacher: a folder or a hub id, such as Qwen/Qwen3-8B",
        )
        return
    folder, base = file.resolve(named), file.resolve(file.plan.model)
    is_base = named == file.plan.model or folder.resolve() == base.resolve()
    stored_alike = entry.stage.options.get("teacher_quantization") == entry.stage.quantization
    if is_base and stored_alike and entry.starts_from is entry.start_folder is None:
        yield Fault(
            where=at,
            what=f"the teacher {named} is the model that is trained: it has nothing to teach",
            allowed="a larger model of the same family; or start_from, for a module that is drawn"
            " back towards its base",
        )
    elif folder.is_dir():
        yield from folder_faults(folder)
    elif not is_hub_id(named):
        yield Fault(where=f"{at}: teacher", what=f"no such folder: {folder}", allowed=LAYOUT)


def _model_faults(file: PlanOnDisk) -> Iterator[Fault]:
    plan, path = file.plan, file.resolve(file.plan.model)
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
    elif (snapshot := cached_snapshot(plan.model, plan.revision)) is not None:
        yield from model_faults(snapshot, downloads=not is_offline())


def _folder_faults(plan: Plan, path: Path) -> Iterator[Fault]:
    config, at = path / "config.json", f"model {path}"
    if not config.exists() and not config.is_symlink():
        yield Fault(where=at, what="has no config.json", allowed=LAYOUT)
    elif plan.revision is not None:
        yield Fault(
            what="'revision' has no effect: the model is a folder",
            hint="remove it; only models on the hub have revisions",
        )
    yield from model_faults(path)
    if not any(next(path.glob(pattern), None) for pattern in TOKENIZERS):
        yield Fault(
            where=at,
            what="has no tokenizer",
            allowed=f"one of {', '.join(TOKENIZERS)}",
            hint="download the whole model, not its configuration alone",
        )


def _part_faults(file: PlanOnDisk, part: RewardPart) -> Iterator[Fault]:
    schema = part.options.get("schema")
    if schema is not None and not (path := file.resolve(str(schema))).is_file():
        allowed = "a file with a JSON schema, relative to the plan"
        yield Fault(what=f"schema: no such file: {path}", allowed=allowed)
    if part.source == "reward_model" and part.value not in [one.name for one in file.plan.stages]:
        folder = file.resolve(part.value)
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            allowed = "a stage with objective rm, or the folder of a reward model"
            yield Fault(what=f"reward_model: {folder} holds no model", allowed=allowed)
    yield from own_reward_faults(file, part)


def own_reward_faults(file: PlanOnDisk, part: RewardPart) -> Iterator[Fault]:
    """What is wrong with a function of one's own that scores answers, as far as a look tells."""
    if part.source == "reward":
        named, _, function = part.value.rpartition(":")
        path = file.resolve(named)
        if path.is_file():
            yield from _function_faults(path, function)
        else:
            allowed = "file.py:function, relative to the plan"
            yield Fault(what=f"reward: no such file: {path}", allowed=allowed)


def _function_faults(path: Path, name: str) -> Iterator[Fault]:
    """A function that the file neither defines nor imports; the file is read, not run."""
    try:
        tree = ast.parse(bytes_of(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Fault(what=f"reward: {path} cannot be read as Python: {error}")
        return
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if name not in names and "*" not in names:
        own = (node.name for node in tree.body if isinstance(node, FUNCTIONS))
        known = ", ".join(sorted(own)[:12]) or "no function"
        yield Fault(
            what=f"reward: {path} has no function '{name}'",
            allowed=f"it defines: {known}",
            hint=did_you_mean(name, sorted(names)),
        )
