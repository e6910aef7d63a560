"""Faults of a plan that span several keys: names, what starts from what, keys without effect, how
processes share a stage, what an optimizer cannot do.

What checks a file works on the raw data, so that a file with a wrong type elsewhere still gets all
its faults at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from advisor.ground.errors import Fault, did_you_mean
from advisor.ground.extras import extras
from advisor.ground.shape import Located, Text
from advisor.ground.types import FSDP
from advisor.methods import methods, update
from advisor.methods.kernels import ATTENTIONS, needs_gpu
from advisor.methods.optimizers import OPTIMIZERS, Optimizer, optimizer, read_arguments
from advisor.methods.rewards import LIST as REWARDS
from advisor.methods.rewards import reward_faults
from advisor.methods.stage import stage_keys
from advisor.methods.strategies import refused_by, strategies
from advisor.plan.keys import key_specs
from advisor.plan.model import Place, Plan, Stage
from advisor.plan.vllm import url_fault

# What is offered in place of an optimizer that the device has not: AdamW first, without its rarer
# kinds, and nothing that these trainers do not bring.
OFFERED = ("adamw_fused", "adamw", "adamw_8bit", "muon", "adafactor", "sgd")
# Keys of TRL that estimates and checks read, too.
READ_HERE = {"optim_args": Text(such_as="momentum=0.9")}
MATRICES = {"rank", "bottleneck"}  # keys of updates whose modules are matrices


class Report(Struct, frozen=True, kw_only=True):
    """Collects the faults of a plan, each with its place."""

    document: Located
    faults: list[Fault] = field(default_factory=list)
    inside: Place = ()  # where the keys stand that are reported
    only: Container[str] | None = None  # the keys that are reported, with their own name alone

    def __call__(
        self, place: Place, text: str, /, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None:
        """Report one fault at a place.

        Args:
            key: The key itself is wrong, and not its value.
        """
        if self.only is not None:
            if place[-1] not in self.only:
                return
            place = (*self.inside, place[-1])
        at = self.document.at(place, key=key)
        self.faults.append(Fault(where=at, what=text, allowed=allowed, hint=hint))

    def idle(self, place: Place, why: str, hint: str = "remove it") -> None:
        """Report a key that has no effect."""
        self(place, f"`{place[-1]}` has no effect: {why}", "", hint, key=True)

    def in_file_order(self) -> list[Fault]:
        """Each fault once, those of other files (of a method) last."""
        file = re.escape(self.document.at().rsplit(":", 2)[0])

        def position(fault: Fault) -> tuple[float, float]:
            found = re.match(rf"{file}:(\d+):(\d+): ", fault.headline)
            return (int(found[1]), int(found[2])) if found else (math.inf, 0)

        return sorted(dict.fromkeys(self.faults), key=position)


# --------------------------------------------------------------------------- the plan as a whole


def maps_in(value: Any) -> list[Mapping[str, Any]]:
    """The entries of a list, an empty map for each that is none: shapes refuse it elsewhere."""
    entries = value if isinstance(value, list) else []
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def plan_faults(data: Mapping[str, Any], report: Report, base: Path | None) -> None:
    """Report what is wrong with the plan as a whole."""
    stages, tasks = maps_in(data.get("stages")), maps_in(data.get("tasks"))
    _check_names(stages, tasks, report)
    _check_data(data, stages, tasks, report)
    _check_starts(stages, report, base)
    for extra in extras().values():
        extra.check_plan(data, report)
    given = data.get("launch")
    launch = given if isinstance(given, dict) else {}
    _check_server(launch.get("vllm"), stages, report)
    _check_sharing(launch, stages, report)
    device = launch.get("device", "cpu") if launch is given else None
    for index, stage in enumerate(stages):
        named = stage.get("attention")
        if named in ATTENTIONS and needs_gpu(named) and device in ("cpu", "mps"):
            what = f"{named} needs a CUDA or ROCm GPU, and `launch.device` is {device}"
            report(("stages", index, "attention"), what, "here: sdpa, eager, auto")


def _check_server(server: Any, stages: list[Mapping[str, Any]], report: Report) -> None:
    asked = {index: one for index, one in enumerate(stages) if one.get("rollouts") == "vllm"}
    sent = [name for name, one in methods().updates.items() if one.is_sent_to_vllm]
    for index, stage in asked.items():
        place: Place = ("stages", index, "rollouts")
        if stage.get("update") not in sent:
            what = f"a vLLM server takes no module of update {stage.get('update')}"
            report(place, what, f"update: {' or '.join(sent)}; or rollouts: transformers")
        if stage.get("objective") == "distill" and stage.get("on_policy") == 0:
            why = "with on_policy 0 the student writes no answers"
            report.idle(place, why, "remove it, or set on_policy")
    if not isinstance(server, dict):
        return
    place = ("launch", "vllm")
    if not asked:
        hint = "remove it, or write `rollouts: vllm` into a stage"
        report.idle(place, "no stage generates with it", hint)
    url, python = server.get("url"), server.get("python")
    if url is not None and python is not None:
        both = "`url` names a server that runs, and `python` one that is to be started"
        report((*place, "python"), both, "one of them", key=True)
    for key in ("gpus", "memory"):
        if python is None and key in server:
            why = "it is for a server that is started"
            report.idle((*place, key), why, "remove it, or set python")
    if isinstance(url, str) and (fault := url_fault(url)) is not None:
        report((*place, "url"), f"'{url}' {fault}", "such as http://127.0.0.1:8000")


def _check_names(
    stages: list[Mapping[str, Any]], tasks: list[Mapping[str, Any]], report: Report
) -> None:
    """Each name once; nor may stage 'a-b' of task 'c' share a folder with 'a' of task 'b-c'."""
    for table, entries in (("stages", stages), ("tasks", tasks)):
        at: dict[str, int] = {}
        for index, name in enumerate(entry.get("name") for entry in entries):
            if isinstance(name, str) and (first := at.setdefault(name, index)) != index:
                what = f"the name '{name}' is taken by {table}[{first}]"
                report((table, index, "name"), what, "each name once: it becomes a folder's name")
    seen: dict[str, tuple[str, str]] = {}
    for stage, (number, task) in product(stages, enumerate(tasks)):
        pair = (str(stage.get("name")), str(task.get("name")))
        other = seen.setdefault(folder := "-".join(pair), pair)
        if other != pair:
            text = (
                f"stage {pair[0]} of task {pair[1]} and stage {other[0]} of task {other[1]}"
                f" would share the folder {folder}"
            )
            report(("tasks", number, "name"), text, "", "rename one")


def _check_data(
    data: Mapping[str, Any],
    stages: list[Mapping[str, Any]],
    tasks: list[Mapping[str, Any]],
    report: Report,
) -> None:
    own = [stage.get("data") is not None for stage in stages]
    is_shared = data.get("data") is not None
    if tasks and is_shared:
        allowed = "one of them: each task brings its own data"
        report(("data",), "both `data` and `tasks` are given", allowed, "remove `data`", key=True)
    if data.get("tasks") == []:
        report(("tasks",), "`tasks` is empty", "one entry a task, or no `tasks` at all", key=True)
    elif not (tasks or is_shared or all(own)):
        allowed = "`data: {path: FILE}`, or `tasks:` with one data file each"
        report((), "the plan has no data", allowed)
    if stages and all(own) and is_shared:
        report.idle(("data",), "every stage names its own", "remove it here or in a stage")
    for index, has_own in enumerate(own):
        if has_own and tasks:
            report.idle(("stages", index, "data"), "each task brings its own")


def _check_starts(stages: list[Mapping[str, Any]], report: Report, base: Path | None) -> None:
    names = [stage.get("name") for stage in stages]
    for index, stage in enumerate(stages):
        start, earlier = stage.get("start_from"), [str(name) for name in names[:index]]
        if not isinstance(start, str) or start in earlier:
            continue
        place: Place = ("stages", index, "start_from")
        known = "the first stage starts from the model, or from a folder"
        if earlier:
            known = f"earlier stages: {', '.join(earlier)}; or a folder"
        if start in names[index:]:
            report(place, f"`start_from` is '{start}', a stage that is trained later", known)
        elif base is not None and not (base / Path(start).expanduser()).is_dir():
            what = f"`start_from` is '{start}', which is neither an earlier stage nor a folder"
            report(place, what, known, did_you_mean(start, earlier))


# --------------------------------------------------------------------------- one stage


def stage_faults(stage: Mapping[str, Any], place: Place, report: Report) -> None:
    """Report keys of one stage that contradict each other or that have no effect."""
    specs, objective, update = key_specs(), str(stage.get("objective")), str(stage.get("update"))
    if update in specs.updates and not specs.updates[update].is_module:
        _check_whole_model(stage, place, report)
    elif stage.get("double_quantization") is not None and stage.get("quantization") != "nf4":
        why = f"quantization is {stage.get('quantization') or 'null'}"
        report.idle((*place, "double_quantization"), why, "it belongs to quantization: nf4")
    if stage.get("scheduler") == "constant" and stage.get("warmup"):
        hint = "use scheduler: constant_with_warmup"
        report.idle((*place, "warmup"), "scheduler is constant", hint)
    if stage.get("holdout") == 0:
        for key, asked in (("keep", "best"), ("early_stopping", stage.get("early_stopping"))):
            if asked is not None and stage.get(key) == asked:
                what = f"`{key}: {asked}` needs a loss on held-out rows, and `holdout` is 0"
                above, hint = "a holdout above 0, such as 0.05", f"raise holdout, or remove {key}"
                report((*place, key), what, above, hint)
    method = specs.objectives.get(objective)
    if stage.get("packing") is True and method is not None and not method.packs:
        packs = _either([name for name, one in specs.objectives.items() if one.packs])
        why = f"objective {objective} does not pack rows"
        report.idle((*place, "packing"), why, f"it belongs to {packs}")
    if stage.get("group_by_length") is True and method is not None and method.generates:
        why = f"objective {objective} trains on the answers that it writes itself"
        report.idle((*place, "group_by_length"), why)
    head = stage.get("head", "language")
    if stage.get("replay") is not None and head != "language":
        why = f"head: {head} trains no model that answers general questions"
        report.idle((*place, "replay"), why)
    elif "replay_share" in stage and stage.get("replay") is None:
        report.idle((*place, "replay_share"), "there is no `replay`", "remove it, or set replay")
    for key in stage:
        if unused := specs.unused(key, objective=objective, update=update):
            report.idle((*place, key), unused)
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
        given = stage.get(block)
        inner: Mapping[str, Any] = given if isinstance(given, dict) else {}
        for key, value in inner.items():
            where = (*place, block, key)
            if key in own:
                what = f"'{key}' is a key of the stage itself"
                report(where, what, "", f"move it out of {block}", key=True)
            elif key == "output_dir":
                what = "the run folder decides where files go"
                report(where, what, "", "use `advise run --output DIR`", key=True)
            elif key in READ_HERE and block == "trl" and value is not None:
                shape = READ_HERE[key]
                for _ in shape.faults(value, report.document, ()):
                    report((*place, block), f"`{block}: {key}` is {value!r}", shape.words())


def _check_whole_model(stage: Mapping[str, Any], place: Place, report: Report) -> None:
    whole = f"update {stage['update']} trains every weight of the model"
    modules = _either([name for name, one in key_specs().updates.items() if one.is_module])
    if stage.get("quantization") is not None:
        what = f"`quantization` needs a frozen base, and {whole}"
        hint = "remove quantization, or change update"
        report((*place, "quantization"), what, f"with update {modules}", hint, key=True)
    elif stage.get("double_quantization") is not None:
        report.idle((*place, "double_quantization"), whole)
    if stage.get("peft"):
        report.idle((*place, "peft"), whole, f"remove it; update {modules} reads it")


def _either(names: Sequence[str]) -> str:
    """'lora, adapter or prefix'."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


# --------------------------------------------------------------------------- launch


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
            hint=f"{found.instead} divides as much: --set launch.strategy=fsdp; with --set"
            " launch.offload=true, too, it lies in the computer's memory",
        )
    ]


def _check_sharing(
    launch: Mapping[str, Any], stages: list[Mapping[str, Any]], report: Report
) -> None:
    strategy, counts = launch.get("strategy"), {}
    for key in ("processes", "nodes"):
        value = launch.get(key)  # a value that is no number is told elsewhere
        counts[key] = value if isinstance(value, int) and value > 0 else 1
        if launch.get("device") == "mps" and counts[key] > 1:
            text = f"`{key}` is {value}, and an Apple GPU trains by itself"
            report(("launch", key), text, "1", f"remove {key}")
    if strategy is not None and math.prod(counts.values()) == 1:
        place: Place = ("launch", "strategy")
        report.idle(place, "there is one process", "remove it, or set processes")
    # On the CPU it changes nothing, and is let pass: a plan for GPUs is tried there as it is.
    if launch.get("offload") is True and strategy != FSDP:
        text, hint = "`offload` has an effect with `strategy: fsdp` alone", "set strategy: fsdp"
        report(("launch", "offload"), text, "", f"remove it, or {hint}", key=True)
    if not isinstance(strategy, str) or strategy not in strategies():
        return
    for index, stage in enumerate(stages):
        if strategy == FSDP and isinstance(stage.get("replay"), dict):
            what = "a base whose weights are divided answers nothing before training"
            report(("stages", index, "replay"), what, "with fsdp: a file of general text")
        for one in refused_by(strategy, stage):
            name = stage.get("name", stage.get("objective", index))
            text = (
                f"`strategy` is {strategy}, which does not go with {one.key}"
                f" {stage.get(one.key)} (stage {name}): {one.because}"
            )
            report(("launch", "strategy"), text, "", one.hint)


def can_share(plan: Plan, stage: Stage) -> bool:
    """Whether the plan's processes can share a stage: one with changed keys, say."""
    keys = ("objective", "update", "quantization", "optimizer")
    return not refused_by(plan.launch.strategy, {key: getattr(stage, key) for key in keys})


# --------------------------------------------------------------------------- optimizers


def optimizer_faults(stage: Stage, device: str) -> list[Fault]:
    """What the stage's optimizer cannot do: on this device, with these weights, with its keys.

    Args:
        stage: Names it.
        device: cuda, cpu or mps, as torch calls it; a ROCm GPU is cuda there.
    """
    entry = optimizer(stage.optimizer)
    at = f"stage {stage.name}: optimizer {entry.name}"
    found = [*_weight_faults(entry, stage, at), *_key_faults(entry, stage)]
    if device not in entry.devices:
        does = "pages memory between GPU and host" if entry.is_paged else "runs"
        what = f"{at} {does} on {' and '.join(entry.devices)}, this stage on {device}"
        others = [
            name
            for name in OFFERED
            if device in OPTIMIZERS[name].devices
            and not _weight_faults(OPTIMIZERS[name], stage, "")
        ]
        return [Fault(where=at, what=what, allowed=f"optimizer: {' or '.join(others)}"), *found]
    return found


def _weight_faults(entry: Optimizer, stage: Stage, at: str) -> list[Fault]:
    how, what = update(stage.update), ""
    allowed = "optimizer: adamw_fused, or update: full"
    if entry.name in ("adamw_split", "adamw_stochastic"):
        these = f"these are {stage.weights_dtype}"
        trained = "this update trains a module in float32" if how.is_module else these
        if how.is_module or stage.weights_dtype != "bfloat16":
            what = f"{at} keeps what bfloat16 weights would round away, and {trained}"
            allowed += " with weights_dtype: bfloat16"
    elif entry.trains == "matrices" and how.is_module and not MATRICES & set(how.keys):
        what = f"{at} moves matrices, and update {how.id} trains vectors alone"
        allowed += " or lora"
    return [Fault(where=at, what=what, allowed=allowed)] if what else []


def _key_faults(entry: Optimizer, stage: Stage) -> list[Fault]:
    found: list[Fault] = []
    trl = f"stage {stage.name}: trl"
    if entry.betas is None:
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            if key in stage.trl:
                what = f"'{key}' has no effect: optimizer {entry.name} is no Adam"
                found.append(Fault(where=trl, what=what, hint="remove it"))
    norm = stage.trl.get("max_grad_norm")
    if isinstance(norm, int | float) and not norm >= 0:
        what = f"'max_grad_norm' is {norm}: gradients would not be clipped"
        found.append(Fault(where=trl, what=what, allowed="a number above 0, or 0 to clip nothing"))
    given = stage.trl.get("optim_args")
    try:
        read_arguments(entry.name, given if isinstance(given, str) else None)
    except ValueError as error:
        hint = "correct it, or remove it"
        found.append(Fault(where=trl, what=f"optim_args: {error}", hint=hint))
    return found
