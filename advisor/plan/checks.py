"""Faults of a plan that span several keys: names, what starts from what, keys without effect, how
processes share a stage, what an optimizer cannot do.

What checks a file works on the raw data, so that a file with a wrong type elsewhere still gets all
its faults at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from advisor.ground.errors import Fault, nearest
from advisor.ground.extras import extras
from advisor.ground.types import FSDP
from advisor.methods import methods, objective, update
from advisor.methods.installed import why_no_torch_compile
from advisor.methods.kernels import ATTENTIONS, needs_gpu
from advisor.methods.optimizers import OPTIMIZERS, Optimizer, optimizer, read_arguments
from advisor.methods.rewards import LIST as REWARDS
from advisor.methods.rewards import reward_faults
from advisor.methods.stage import stage_keys
from advisor.methods.strategies import refused_by, strategies
from advisor.plan.keys import KeySpecs
from advisor.plan.model import Place, Plan, Stage
from advisor.plan.vllm import url_fault


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
        sent = [name for name, one in methods().updates.items() if one.is_sent_to_vllm]
        if update not in sent:
            report(
                ("stages", index, "rollouts"),
                f"a vLLM server takes no module of update {update}",
                f"update: {' or '.join(sent)}; or rollouts: transformers",
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


def launch_faults(plan: Plan) -> list[Fault]:
    """The faults of `launch` that are certain on every machine."""
    name = plan.launch.strategy
    if name is None or not strategies()[name].instead:
        return []
    found = strategies()[name]
    return [
        Fault(
            where="launch.strategy",
            what=f"launch.strategy is {name}, which is estimated and not started ({found.about})",
            allowed="`advise run` starts one process, or several with ddp or fsdp",
            hint=(
                f"{found.instead} divides as much: --set launch.strategy=fsdp; with --set"
                " launch.offload=true, too, it lies in the computer's memory"
            ),
        )
    ]


class SharingFault(NamedTuple):
    """One fault of `launch`."""

    key: str
    text: str
    allowed: str = ""
    hint: str = ""
    at_key: bool = False  # the key itself is wrong, and not its value


def sharing_faults(launch: Mapping[str, Any], stages: Sequence[Any]) -> Iterator[SharingFault]:
    """What of the raw `launch` has no effect, or does not go with a stage."""
    strategy, device = launch.get("strategy"), launch.get("device", "cpu")
    for key in ("processes", "nodes"):
        if device == "mps" and _count(launch, key) > 1:
            text = f"`{key}` is {launch[key]}, and an Apple GPU trains by itself"
            yield SharingFault(key, text, "1", f"remove {key}")
    if strategy is not None and _count(launch, "processes") * _count(launch, "nodes") == 1:
        text, hint = "`strategy` has no effect: there is one process", "remove it, or set processes"
        yield SharingFault("strategy", text, "", hint, at_key=True)
    # On the CPU it changes nothing, and is let pass: a plan for GPUs is tried there as it is.
    if launch.get("offload") is True and strategy != FSDP:
        text = "`offload` has an effect with `strategy: fsdp` alone"
        yield SharingFault("offload", text, "", "remove it, or set strategy: fsdp", at_key=True)
    if isinstance(strategy, str) and strategy in strategies():
        yield from _refused(strategy, stages)


def goes_with(plan: Plan, stage: Stage) -> bool:
    """Whether the plan's processes can share a stage: one with changed keys, say."""
    keys = ("objective", "update", "quantization", "optimizer")
    return not refused_by(plan.launch.strategy, {key: getattr(stage, key) for key in keys})


def _refused(strategy: str, stages: Sequence[Any]) -> Iterator[SharingFault]:
    """What of each stage does not go with the strategy."""
    for index, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            continue
        for one in refused_by(strategy, stage):
            name = stage.get("name", stage.get("objective", index))
            text = (
                f"`strategy` is {strategy}, which does not go with {one.key}"
                f" {stage.get(one.key)} (stage {name}): {one.because}"
            )
            yield SharingFault("strategy", text, "", one.hint)


def _count(launch: Mapping[str, Any], key: str) -> int:
    """A number of processes or machines; 1 where it is no number, which is told elsewhere."""
    value = launch.get(key, 1)
    return value if isinstance(value, int) and value > 0 else 1


def optimizer_faults(stage: Stage, device: str) -> list[Fault]:
    """What the stage's optimizer cannot do: on this device, with these weights, with its keys.

    Args:
        stage: Names it.
        device: cuda, cpu or mps, as torch calls it; a ROCm GPU is cuda there.
    """
    entry = optimizer(stage.optimizer)
    at = f"stage {stage.name}: optimizer {entry.name}"
    return [
        *_device_faults(entry, stage, device, at),
        *_weight_faults(entry, stage, at),
        *_key_faults(entry, stage, at),
    ]


def _device_faults(entry: Optimizer, stage: Stage, device: str, at: str) -> list[Fault]:
    """Devices, and what compiles for them."""
    if device not in entry.devices:
        what = (
            f"{at} pages memory between GPU and host, this stage runs on {device}"
            if entry.is_paged
            else f"{at} runs on {' and '.join(entry.devices)}, this stage on {device}"
        )
        here = [one.name for one in OPTIMIZERS.values() if _could(one, stage, device)]
        return [Fault(where=at, what=what, allowed=f"optimizer: {' or '.join(_first(here))}")]
    why = why_no_torch_compile(device) if entry.compiles else ""
    if why:
        what, allowed = (
            f"{at} compiles its step, and {why}",
            "optimizer: adamw_8bit compiles nothing",
        )
        hint = "install gcc and g++, or set optimizer: adamw_8bit"
        return [Fault(where=at, what=what, allowed=allowed, hint=hint)]
    return []


def _could(entry: Optimizer, stage: Stage, device: str) -> bool:
    """Whether the optimizer needs nothing that these trainers do not bring, and fits the stage."""
    brought = entry.library is None or entry.library.name == "bitsandbytes"
    return brought and device in entry.devices and not _weight_faults(entry, stage, "")


def _first(names: list[str]) -> list[str]:
    """The names that are offered in the place of one: AdamW first, without its rarer kinds."""
    usual = ["adamw_fused", "adamw", "adamw_8bit", "lion_8bit", "muon", "adafactor", "sgd"]
    return [name for name in usual if name in names]


def _weight_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    """Weights that it cannot train."""
    how = update(stage.update)
    if entry.name in ("adamw_split", "adamw_stochastic"):
        if stage.weights_dtype == "bfloat16" and not how.is_module:
            return []
        these = f"these are {stage.weights_dtype}"
        trained = "this update trains a module in float32" if how.is_module else these
        what = f"{at} keeps what bfloat16 weights would round away, and {trained}"
        allowed = "optimizer: adamw_fused, or update: full with weights_dtype: bfloat16"
        return [Fault(where=at, what=what, allowed=allowed)]
    if entry.trains == "every weight" and how.is_module:
        return [
            Fault(
                where=at,
                what=(
                    f"{at} projects the gradients of the model's own matrices, and update"
                    f" {how.id} trains a small module beside them"
                ),
                allowed="optimizer: adamw_fused, or update: full",
            )
        ]
    if entry.trains == "matrices" and how.is_module and not {"rank", "bottleneck"} & set(how.keys):
        what = f"{at} moves matrices, and update {how.id} trains vectors alone"
        allowed = "optimizer: adamw_fused, or update: full or lora"
        return [Fault(where=at, what=what, allowed=allowed)]
    return []


def _key_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    """Keys of the stage that do not go with it."""
    found, trl = [], f"stage {stage.name}: trl"
    if entry.scheduler is not None and stage.scheduler != entry.scheduler:
        what = f"{at} goes with no schedule, and scheduler is {stage.scheduler}"
        allowed = f"scheduler: {entry.scheduler} (warmup is done all the same)"
        found.append(Fault(where=at, what=what, allowed=allowed))
    if entry.averages and objective(stage.objective).generates:
        what = (
            f"{at} trains at other weights than those it ends with, and objective"
            f" {stage.objective} learns from answers that the weights write"
        )
        found.append(Fault(where=at, what=what, allowed="optimizer: adamw_fused"))
    for key, why in _idle_keys(entry).items():
        if key in stage.trl:
            what = f"'{key}' has no effect: optimizer {entry.name} {why}"
            found.append(Fault(where=trl, what=what, hint="remove it"))
    given = stage.trl.get("optim_args")
    try:
        read_arguments(entry.name, given if isinstance(given, str) else None)
    except ValueError as error:
        hint = "correct it, or remove it"
        found.append(Fault(where=trl, what=f"optim_args: {error}", hint=hint))
    if stage.trl.get("optim_target_modules") is not None and not entry.is_low_rank:
        why = f"optimizer {entry.name} projects no gradients"
        what = f"'optim_target_modules' would have no effect: {why}"
        found.append(Fault(where=trl, what=what, hint="remove it"))
    return found


def _idle_keys(entry: Optimizer) -> dict[str, str]:
    """Arguments of transformers that the optimizer does not read -> why."""
    if entry.betas is None:
        return dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "is no Adam")
    return {"adam_epsilon": "divides by nothing"} if "lion" in entry.name else {}
