"""The place of the base in the results of a run, kept true when its project is moved.

A module names the folder of its base (`base_model_name_or_path`). Whoever loads it, a later stage
included, looks there: in a moved project that is nothing, and in a copied one the files of the
original.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from advisor.ground.content import ADAPTER_CONFIG, base_path_in, with_base_path
from advisor.ground.files import bytes_of, write_atomically
from advisor.launch.prepare import PlanRun
from advisor.plan.entries import Entry
from advisor.plan.read import resolve_path
from advisor.plan.record import DONE, RunRecord, SavedFile, StageRecord


def true_configs(run: PlanRun, record: RunRecord) -> dict[str, bytes]:
    """Finished stage -> its adapter_config.json with the present place of its base, where another
    one stands there.
    """
    entries = {entry.name: entry for entry in run.entries}
    found = {}
    for stage in record.stages:
        base = _base(run, entries, stage.name) if stage.status == DONE else None
        if base is None:
            continue
        with suppress(OSError):
            config = bytes_of(_path(run, stage.name))
            named = base_path_in(config)
            if named is not None and os.path.isabs(named) and os.path.realpath(named) != str(base):
                found[stage.name] = with_base_path(config, str(base))
    return found


def correct_record(record: RunRecord, configs: Mapping[str, bytes]) -> RunRecord:
    """The record with the hashes of the corrected files. It is written before they are, and says
    which file is the right one if the run is killed in between.
    """
    for name, config in configs.items():
        stage = record.stage(name)
        if stage is not None and stage.files and ADAPTER_CONFIG in stage.files:
            saved = SavedFile(bytes=len(config), sha256=hashlib.sha256(config).hexdigest())
            stage = replace(stage, files={**stage.files, ADAPTER_CONFIG: saved})
            record = record.with_stage(stage)
    return record


def write_configs(run: PlanRun, configs: Mapping[str, bytes]) -> None:
    """Write the corrected files. Raises MachineNotReady."""
    for name, config in configs.items():
        write_atomically(_path(run, name), config)


def moved_bases(configs: Mapping[str, bytes]) -> list[str]:
    """What a person is told of corrected files."""
    if not configs:
        return []
    return [f"the base of {', '.join(configs)} has another place now: noted in {ADAPTER_CONFIG}"]


def is_half_corrected(stage: StageRecord, configs: Mapping[str, bytes]) -> bool:
    """Whether the record is corrected already, and the file is not."""
    saved = (stage.files or {}).get(ADAPTER_CONFIG)
    config = configs.get(stage.name)
    return (
        saved is not None
        and config is not None
        and saved.sha256 == hashlib.sha256(config).hexdigest()
    )


def _path(run: PlanRun, name: str) -> Path:
    return run.folder / "stages" / name / ADAPTER_CONFIG


def _base(run: PlanRun, entries: Mapping[str, Entry], name: str) -> Path | None:
    """The folder of the base of a stage's module: the plan's model, or the latest whole model that
    it continues from. None for a model of the hub, and for a module from elsewhere.
    """
    entry = entries.get(name)
    while entry is not None and entry.starts_from is not None:
        folder = run.folder / "stages" / entry.starts_from
        if not (folder / ADAPTER_CONFIG).is_file():
            return _resolved(folder)
        entry = entries.get(entry.starts_from)
    if entry is None:
        return None
    start = entry.start_folder
    folder = resolve_path(run.path, start if start is not None else run.plan.model)
    return None if (folder / ADAPTER_CONFIG).is_file() else _resolved(folder)


def _resolved(folder: Path) -> Path | None:
    """As trainers name it, who resolve the folders of model and run."""
    return Path(os.path.realpath(folder)) if (folder / "config.json").is_file() else None
