"""Faults of a plan that span several keys: names, what starts from what, and keys that nothing
would read.

They work on the raw data, so that a file with a wrong type elsewhere still gets all its faults at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from advisor.ground.errors import nearest
from advisor.ground.files import FOLDER_NAME, is_folder_name, such_as
from advisor.plan.keys import KeySpecs
from advisor.plan.model import Stage

Place = tuple[str | int, ...]
STAGE_KEYS = {item.name for item in fields(Stage)}
# Objectives whose rows are single texts, so that several fit into one sequence.
PACKABLE = ("cpt", "sft")
FULL = "update full trains the weights themselves"


class Raise(Protocol):
    """Reports one fault at a place."""

    def __call__(
        self, place: Place, text: str, /, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None: ...


def plan_faults(data: Mapping[str, Any], report: Raise, base: Path | None) -> None:
    """Report what is wrong with the plan as a whole."""
    _check_name(data.get("name"), ("name",), "a plan's name", report)
    if isinstance(data.get("model"), str) and not data["model"].strip():
        report(("model",), "model is empty", "a hub id such as Qwen/Qwen3-0.6B, or a folder")
    stages = data["stages"] if isinstance(data.get("stages"), list) else []
    tasks = data["tasks"] if isinstance(data.get("tasks"), list) else []
    _check_names(stages, "stages", report)
    _check_names(tasks, "tasks", report)
    _check_folders(stages, tasks, report)
    _check_data(data, stages, tasks, report)
    _check_starts(stages, report, base)
    launch = data.get("launch")
    if isinstance(launch, dict):
        if launch.get("strategy") is not None and launch.get("processes", 1) == 1:
            report(
                ("launch", "strategy"),
                "nothing would read 'strategy': there is one process",
                "",
                "remove it, or set processes",
                key=True,
            )
        for index, stage in enumerate(stages):
            if (
                isinstance(stage, dict)
                and stage.get("attention") == "flash_attention_2"
                and launch.get("device", "cpu") in ("cpu", "mps")
            ):
                report(
                    ("stages", index, "attention"),
                    "flash_attention_2 needs a CUDA or ROCm card, and launch.device is "
                    + str(launch.get("device", "cpu")),
                    "here: sdpa, eager",
                )


def _check_name(name: Any, place: Place, what: str, report: Raise) -> None:
    if isinstance(name, str) and not is_folder_name(name):
        report(place, f"{what} is '{name[:60]}'", FOLDER_NAME, such_as(name))


def _check_names(entries: list[Any], table: str, report: Raise) -> None:
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        _check_name(name, (table, index, "name"), f"a {table[:-1]}'s name", report)
        if name in seen:
            report(
                (table, index, "name"),
                f"the name '{name}' is taken by {table}[{seen[name]}]",
                "each name once: it becomes a folder's name",
            )
        seen.setdefault(name, index)


def _check_folders(stages: list[Any], tasks: list[Any], report: Raise) -> None:
    """Stage 'a-b' of task 'c' and stage 'a' of task 'b-c' would share the folder a-b-c."""
    seen: dict[str, tuple[str, str]] = {}
    for stage in stages:
        for number, task in enumerate(tasks):
            if isinstance(stage, dict) and isinstance(task, dict):
                pair = (str(stage.get("name")), str(task.get("name")))
                folder = "-".join(pair)
                if seen.setdefault(folder, pair) != pair:
                    other = seen[folder]
                    text = (
                        f"stage {pair[0]} of task {pair[1]} and stage {other[0]} of task {other[1]}"
                        f" would share the folder {folder}"
                    )
                    report(("tasks", number, "name"), text, "", "rename one")


def _check_data(
    data: Mapping[str, Any], stages: list[Any], tasks: list[Any], report: Raise
) -> None:
    own = [isinstance(stage, dict) and stage.get("data") is not None for stage in stages]
    if tasks and data.get("data") is not None:
        report(
            ("data",),
            "both `data` and `tasks` are given",
            "one of them: each task brings its own data",
            "remove `data`",
            key=True,
        )
    if data.get("tasks") == []:
        report(("tasks",), "`tasks` is empty", "one entry a task, or no `tasks` at all", key=True)
    elif not tasks and data.get("data") is None and not all(own):
        report(
            (), "the plan has no data", "`data: {path: FILE}`, or `tasks:` with one data file each"
        )
    if stages and all(own) and data.get("data") is not None:
        report(
            ("data",),
            "nothing would read 'data': every stage names its own",
            "",
            "remove it here or in a stage",
            key=True,
        )
    for index, (stage, has_own) in enumerate(zip(stages, own, strict=True)):
        if has_own and tasks:
            report(
                ("stages", index, "data"),
                "nothing would read this 'data': each task brings its own",
                "",
                "remove it",
                key=True,
            )
        if has_own and isinstance(stage["data"], str) and not stage["data"].strip():
            report(("stages", index, "data"), "data is empty", "a file or folder, or a hub id")
    places: list[tuple[Place, Any]] = [(("data",), data.get("data"))]
    places += [
        (("tasks", number, "data"), task.get("data"))
        for number, task in enumerate(tasks)
        if isinstance(task, dict)
    ]
    for place, entry in places:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("path"), str)
            and not entry["path"].strip()
        ):
            report((*place, "path"), "path is empty", "a file or folder, or a hub id")


def _check_starts(stages: list[Any], report: Raise, base: Path | None) -> None:
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    for index, stage in enumerate(stages):
        start = stage.get("start_from") if isinstance(stage, dict) else None
        if not isinstance(start, str) or start in names[:index]:
            continue
        place: Place = ("stages", index, "start_from")
        earlier = [str(name) for name in names[:index]]
        known = (
            f"earlier stages: {', '.join(earlier)}; or a folder"
            if earlier
            else "the first stage starts from the model, or from a folder"
        )
        if start in names[index:]:
            report(
                place, f"start_from names '{start}', which is not trained before this stage", known
            )
        elif not start.strip() or (
            base is not None and not (base / Path(start).expanduser()).is_dir()
        ):
            report(
                place,
                f"start_from '{start}' is neither an earlier stage nor a folder",
                known,
                nearest(start, earlier),
            )


def stage_faults(stage: Mapping[str, Any], place: Place, specs: KeySpecs, report: Raise) -> None:
    """Report keys of one stage that contradict each other or that nothing would read."""

    def dead(key: str, why: str, hint: str) -> None:
        report((*place, key), f"nothing would read '{key}': {why}", "", hint, key=True)

    objective, update = stage.get("objective"), stage.get("update")
    if update == "full" and stage.get("quantization") is not None:
        report(
            (*place, "quantization"),
            f"quantization needs a frozen base, and {FULL}",
            "update: lora",
            "remove quantization, or change update",
            key=True,
        )
    elif stage.get("double_quantization") is not None and stage.get("quantization") != "nf4":
        dead(
            "double_quantization",
            f"quantization is {stage.get('quantization') or 'null'}",
            "it belongs to quantization: nf4",
        )
    if update == "full" and stage.get("peft"):
        dead("peft", FULL, "remove it; update: lora reads it")
    if stage.get("scheduler") == "constant" and stage.get("warmup"):
        dead("warmup", "scheduler is constant", "use scheduler: constant_with_warmup")
    if stage.get("packing") is True and isinstance(objective, str) and objective not in PACKABLE:
        dead(
            "packing",
            f"objective {objective} does not pack rows",
            f"it belongs to {' and '.join(PACKABLE)}",
        )
    for key in STAGE_KEYS & set(stage):
        why = specs.unused(key, objective=str(objective), update=str(update))
        if why:
            dead(key, why, "remove it")
    for owner, refusal in specs.refused(stage):
        value = stage[refusal.key]
        said = str(value).lower() if isinstance(value, bool) else value
        report(
            (*place, refusal.key),
            f"{refusal.key} is {said}, which does not go with {owner}: {refusal.because}",
            "",
            refusal.hint,
        )
    for block in ("trl", "peft"):
        inner = stage.get(block)
        for key in inner if isinstance(inner, dict) else ():
            if key in STAGE_KEYS or key in specs.allowed(str(objective), str(update)):
                report(
                    (*place, block, key),
                    f"'{key}' is a key of the stage itself",
                    "",
                    f"move it out of {block}",
                    key=True,
                )
            elif key == "output_dir":
                report(
                    (*place, block, key),
                    "the run folder decides where files go",
                    "",
                    "use `advise run --output DIR`",
                    key=True,
                )
