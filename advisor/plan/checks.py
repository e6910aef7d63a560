"""Faults of a plan that span several keys: names, what starts from what, keys without effect.

They work on the raw data, so that a file with a wrong type elsewhere still gets all its faults at
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from advisor.ground.errors import nearest
from advisor.ground.extras import extras
from advisor.methods.kernels import ATTENTIONS, needs_gpu
from advisor.methods.rewards import LIST as REWARDS
from advisor.methods.rewards import reward_faults
from advisor.methods.stage import stage_keys
from advisor.plan.keys import KeySpecs
from advisor.plan.launch_checks import sharing_faults
from advisor.plan.vllm import url_fault

Place = tuple[str | int, ...]
SENT_TO_VLLM = ("lora", "full")  # updates whose weights a running vLLM server can take


class Raise(Protocol):
    """Reports one fault at a place."""

    def __call__(
        self, place: Place, text: str, /, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None: ...


def _idle(report: Raise, place: Place, why: str, hint: str = "remove it") -> None:
    """Report a key that has no effect."""
    report(place, f"`{place[-1]}` has no effect: {why}", "", hint, key=True)


def plan_faults(data: Mapping[str, Any], report: Raise, base: Path | None) -> None:
    """Report what is wrong with the plan as a whole."""
    stages = data["stages"] if isinstance(data.get("stages"), list) else []
    tasks = data["tasks"] if isinstance(data.get("tasks"), list) else []
    _check_names(stages, "stages", report)
    _check_names(tasks, "tasks", report)
    _check_folders(stages, tasks, report)
    _check_data(data, stages, tasks, report)
    _check_starts(stages, report, base)
    for extra in extras().values():
        extra.check_plan(data, report)
    launch = data.get("launch")
    _check_server(launch.get("vllm") if isinstance(launch, dict) else None, stages, report)
    if isinstance(launch, dict):
        for fault in sharing_faults(launch, stages):
            place = ("launch", fault.key)
            report(place, fault.text, fault.allowed, fault.hint, key=fault.at_key)
        for index, stage in enumerate(stages):
            named = stage.get("attention") if isinstance(stage, dict) else None
            device = launch.get("device", "cpu")
            if named in ATTENTIONS and needs_gpu(named) and device in ("cpu", "mps"):
                what = f"{named} needs a CUDA or ROCm GPU, and `launch.device` is {device}"
                report(("stages", index, "attention"), what, "here: sdpa, eager, auto")


def _check_server(server: Any, stages: list[Any], report: Raise) -> None:
    """Report settings of a vLLM server that contradict each other or that nothing uses."""
    asked = [
        index
        for index, stage in enumerate(stages)
        if isinstance(stage, dict) and stage.get("rollouts") == "vllm"
    ]
    for index in asked:
        update = stages[index].get("update")
        if update not in SENT_TO_VLLM:
            report(
                ("stages", index, "rollouts"),
                f"a vLLM server takes no module of update {update}",
                f"update: {' or '.join(SENT_TO_VLLM)}; or rollouts: transformers",
            )
        if stages[index].get("objective") == "distill" and stages[index].get("on_policy") == 0:
            why = "with on_policy 0 the student writes no answers"
            _idle(report, ("stages", index, "rollouts"), why, "remove it, or set on_policy")
    if not isinstance(server, dict):
        return
    place: Place = ("launch", "vllm")
    if not asked:
        hint = "remove it, or write `rollouts: vllm` into a stage"
        _idle(report, place, "no stage generates with it", hint)
    url, python = server.get("url"), server.get("python")
    if url is not None and python is not None:
        both = "`url` names a server that runs, and `python` one that is to be started"
        report((*place, "python"), both, "one of them", key=True)
    for key in ("gpus", "memory"):
        if python is None and key in server:
            why = "it is for a server that is started"
            _idle(report, (*place, key), why, "remove it, or set python")
    if isinstance(url, str) and (fault := url_fault(url)) is not None:
        report((*place, "url"), f"'{url}' {fault}", "such as http://127.0.0.1:8000")


def _check_names(entries: list[Any], table: str, report: Raise) -> None:
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        if name in seen:
            taken = f"the name '{name}' is taken by {table}[{seen[name]}]"
            report((table, index, "name"), taken, "each name once: it becomes a folder's name")
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
        allowed = "one of them: each task brings its own data"
        report(("data",), "both `data` and `tasks` are given", allowed, "remove `data`", key=True)
    if data.get("tasks") == []:
        report(("tasks",), "`tasks` is empty", "one entry a task, or no `tasks` at all", key=True)
    elif not tasks and data.get("data") is None and not all(own):
        allowed = "`data: {path: FILE}`, or `tasks:` with one data file each"
        report((), "the plan has no data", allowed)
    if stages and all(own) and data.get("data") is not None:
        _idle(report, ("data",), "every stage names its own", "remove it here or in a stage")
    for index, has_own in enumerate(own):
        if has_own and tasks:
            what = "`data` of a stage has no effect: each task brings its own"
            report(("stages", index, "data"), what, "", "remove it", key=True)


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
            report(place, f"`start_from` is '{start}', a stage that is trained later", known)
        elif base is not None and not (base / Path(start).expanduser()).is_dir():
            what = f"`start_from` is '{start}', which is neither an earlier stage nor a folder"
            report(place, what, known, nearest(start, earlier))


def stage_faults(stage: Mapping[str, Any], place: Place, specs: KeySpecs, report: Raise) -> None:
    """Report keys of one stage that contradict each other or that have no effect."""

    def idle(key: str, why: str, hint: str = "remove it") -> None:
        _idle(report, (*place, key), why, hint)

    objective, update = str(stage.get("objective")), str(stage.get("update"))
    if update in specs.updates and not specs.updates[update].is_module:
        _check_whole_model(stage, place, specs, report)
    elif stage.get("double_quantization") is not None and stage.get("quantization") != "nf4":
        why = f"quantization is {stage.get('quantization') or 'null'}"
        idle("double_quantization", why, "it belongs to quantization: nf4")
    if stage.get("scheduler") == "constant" and stage.get("warmup"):
        idle("warmup", "scheduler is constant", "use scheduler: constant_with_warmup")
    if stage.get("holdout") == 0:
        for key, asked in (("keep", "best"), ("early_stopping", stage.get("early_stopping"))):
            if asked is not None and stage.get(key) == asked:
                what = f"`{key}: {asked}` needs a loss on held-out rows, and `holdout` is 0"
                above, hint = "a holdout above 0, such as 0.05", f"raise holdout, or remove {key}"
                report((*place, key), what, above, hint)
    packs = [name for name, method in specs.objectives.items() if method.packs]
    if stage.get("packing") is True and objective in specs.objectives and objective not in packs:
        why = f"objective {objective} does not pack rows"
        idle("packing", why, f"it belongs to {_either(packs)}")
    writes = [name for name, method in specs.objectives.items() if method.generates]
    if stage.get("group_by_length") is True and objective in writes:
        idle(
            "group_by_length", f"objective {objective} trains on the answers that it writes itself"
        )
    for key in stage:
        if unused := specs.unused(key, objective=objective, update=update):
            idle(key, unused)
    for owner, refusal in specs.refused(stage):
        value = stage[refusal.key]
        said = str(value).lower() if isinstance(value, bool) else value
        what = f"`{refusal.key}` is {said}, which does not go with {owner}: {refusal.because}"
        report((*place, refusal.key), what, "", refusal.hint)
    allowed = specs.allowed(objective, update)
    if REWARDS in allowed:
        limit = allowed["response_tokens"].default if "response_tokens" in allowed else None
        for fault in reward_faults(stage, response_tokens=stage.get("response_tokens", limit)):
            report((*place, *fault.place), fault.what, fault.allowed, fault.hint)
    own = {*stage_keys(), *allowed}
    for block in ("trl", "peft"):
        inner = stage.get(block)
        for key in inner if isinstance(inner, dict) else ():
            if key in own:
                what, hint = f"'{key}' is a key of the stage itself", f"move it out of {block}"
            elif key == "output_dir":
                what, hint = (
                    "the run folder decides where files go",
                    "use `advise run --output DIR`",
                )
            else:
                continue
            report((*place, block, key), what, "", hint, key=True)


def _check_whole_model(
    stage: Mapping[str, Any], place: Place, specs: KeySpecs, report: Raise
) -> None:
    """Report keys that need a module beside a frozen base, in a stage that trains every weight."""
    whole = f"update {stage['update']} trains every weight of the model"
    modules = _either([name for name, update in specs.updates.items() if update.is_module])
    if stage.get("quantization") is not None:
        what = f"`quantization` needs a frozen base, and {whole}"
        hint = "remove quantization, or change update"
        report((*place, "quantization"), what, f"with update {modules}", hint, key=True)
    elif stage.get("double_quantization") is not None:
        _idle(report, (*place, "double_quantization"), whole)
    if stage.get("peft"):
        _idle(report, (*place, "peft"), whole, f"remove it; update {modules} reads it")


def _either(names: Sequence[str]) -> str:
    """'lora, adapter or prefix'."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
