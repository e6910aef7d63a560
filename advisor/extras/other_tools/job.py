"""One training of a plan in the words of another tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.mapping import (
    COMMAND,
    Lost,
    flat_stage,
    same_value,
    usual_values,
    write,
)
from advisor.extras.other_tools.rows import KINDS, TEST, Rows, write_rows
from advisor.extras.other_tools.tool import TEXT, Tool
from advisor.methods.stage import Stage
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path

ELSEWHERE = ("holdout", "save_minutes")  # said in other words: held-out rows are a file
ZERO = {"zero2": 2, "zero3": 3}
MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as P; from transformers import'
    " AutoTokenizer as T; P.from_pretrained('{at}').merge_and_unload().save_pretrained('{to}');"
    " T.from_pretrained('{at}').save_pretrained('{to}')\""
)


@dataclass(kw_only=True, slots=True)
class Job:
    """What is written for one training."""

    tool: Tool
    plan: Plan
    entry: Entry
    place: str  # of this training in the names of its files: "", "legal", "2-dpo"
    model: str  # a hub id, a folder, or the result of the training before
    rows: Rows | None = None  # None: a data set of the hub, whose name is passed on
    values: dict[str, Any] = field(default_factory=dict)  # their keys, in the order of the file
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # commands to be given first
    files: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # further ones, as JSON
    command: str = "train"  # of the tool's command line

    @property
    def folder(self) -> str:
        """Where its data lies, in the folder of the export."""
        return f"data/{self.place}".rstrip("/")

    @property
    def file(self) -> str:
        """The name of the configuration: trl.yaml, trl.2-dpo.yaml."""
        stem, dot, ending = self.tool.file.rpartition(".")
        return f"{stem}.{self.place}{dot}{ending}" if self.place else self.tool.file

    @property
    def evaluates(self) -> bool:
        """Whether rows are held out."""
        return self.rows is not None and self.rows.counts[TEST] > 0

    @property
    def kind(self) -> str:
        """The kind of its rows."""
        return self.rows.kind if self.rows else KINDS[self.entry.stage.objective]

    @property
    def start(self) -> str:
        """The command that trains it, in the folder of the export."""
        processes = self.plan.launch.processes
        many = self.tool.start_many if processes > 1 else ""
        return (many or self.tool.start).format(
            file=self.file, command=self.command, processes=processes
        )


def job_of(tool: Tool, plan: Plan, entry: Entry, *, source: Path, work: Path) -> Job:
    """The training with all that is written for it; its rows are written in a folder of `work`."""
    parts = [entry.task.name] if entry.task else []
    if len(plan.stages) > 1:
        parts.append(_numbered(plan, entry.stage))
    job = Job(tool=tool, plan=plan, entry=entry, place=".".join(parts), model=plan.model)
    _start(job, source)
    path = resolve_path(source, entry.data.path)
    if path.exists() or not is_hub_id(entry.data.path):
        more = {"chat_template_kwargs": dict(plan.template)} if plan.template else {}
        job.rows = write_rows(entry, path, work / job.folder, tool.rows, more)
        job.notes += job.rows.notes
    else:
        job.notes.append(
            "the data set stays on the hub: its columns must be those that the tool reads; no rows"
            " are held out, since they were not read"
        )
    _write(job)
    module = import_module(f"advisor.extras.other_tools.{tool.id}")
    if hasattr(module, "complete"):
        module.complete(job)
    job.notes.append("rows come in another order, and other rows are held out")
    if plan.extra_key("benchmarks", "evaluation") is not None:
        job.notes.append("the benchmarks of `evaluation` are not run")
    return job


def _numbered(plan: Plan, stage: Stage) -> str:
    return f"{[one.name for one in plan.stages].index(stage.name) + 1}-{stage.name}"


def _start(job: Job, source: Path) -> None:
    """What the training starts from: the model, a folder, or the result of an earlier one."""
    entry = job.entry
    if entry.starts_from is None:
        named = entry.start_folder or job.plan.model
        path = resolve_path(source, named)
        job.model = str(path) if path.exists() else named
        return
    earlier = next(one for one in entries(job.plan) if one.name == entry.starts_from)
    task = f"{entry.task.name}." if entry.task else ""
    folder = f"out/{task}{_numbered(job.plan, earlier.stage)}"
    if earlier.stage.update == "full":
        job.model = folder
        return
    job.model = f"{folder}-merged"
    job.before.append(MERGE.format(at=folder, to=job.model))
    job.notes.append(f"this stage trains a new LoRA on the merged result of {earlier.stage.name}")


def _write(job: Job) -> None:
    """The stage in the tool's words, and what no key of a plan stands beside (`written`)."""
    stage = job.entry.stage
    if job.rows is not None:  # what is learned decides, not what it is called
        objective = {"sft": "cpt"} if job.kind == TEXT else {"cpt": "sft"}
        stage = replace(stage, objective=objective.get(stage.objective, stage.objective))
        if stage.objective != job.entry.stage.objective:
            job.notes.append(
                f"objective {job.entry.stage.objective} is written as {stage.objective}, which is"
                " what these rows are trained by"
            )
    ours = {**flat_stage(job.plan, stage), "model": job.model}
    ours = {key: value for key, value in ours.items() if key not in ELSEWHERE}
    usual = usual_values(stage.objective, stage.update)
    job.command = str(write(job.tool, ours, command=None, usual=usual).aside.get(COMMAND, "train"))
    found = write(job.tool, ours, command=job.command, usual=usual)
    job.values, job.lost = found.values, found.lost
    facts = {**ours, **_facts(job)}
    for part in job.tool.written:
        if all(_is(facts.get(key), wanted) for key, wanted in part.get("when", {}).items()):
            _add(job, part, facts)
    if isinstance(settings := job.values.get("deepspeed"), Mapping):  # in a file of its own
        job.values["deepspeed"] = f"deepspeed-{job.plan.launch.strategy}.json"
        job.files[job.values["deepspeed"]] = settings


def _facts(job: Job) -> dict[str, Any]:
    """What `written` of rules/tools/TOOL.yaml may ask for, beside the keys of the stage."""
    plan, rows = job.plan, job.rows
    template, differs = job.tool.template_of(plan.model)
    target, task = plan.extra_key("hub", "push_to"), job.entry.task
    is_last = job.entry.stage.name == plan.stages[-1].name
    return {
        "command": job.command,
        "on_hub": rows is None,
        "data": job.entry.data.path,
        "kind": job.kind,
        "is_split": rows is not None and rows.is_split,
        "evaluates": job.evaluates,
        "folder": job.folder,
        "output": f"out/{job.place}".rstrip("/"),
        "plan": plan.name,
        "device": plan.launch.device,
        "parallel": plan.launch.processes > 1 or plan.launch.strategy not in (None, "ddp"),
        "has_template": bool(plan.template),
        "template": dict(plan.template),
        "its_template": template,
        "template_differs": bool(differs),
        "differs": differs,
        "name": job.place.replace("-", "_") or "rows",
        "thinking": plan.template.get("enable_thinking"),
        "zero": ZERO.get(plan.launch.strategy or ""),
        "uploads": target is not None and is_last,
        "hub": f"{target}-{task.name}" if task else target,
        **dict.fromkeys(plan.extra_key("trackers", "trackers") or (), True),
    }


def _is(value: Any, wanted: Any) -> bool:
    """Whether a fact is the wanted one, or one of a list."""
    return any(same_value(value, one) for one in (wanted if isinstance(wanted, list) else [wanted]))


def _add(job: Job, part: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """An entry of `written` that holds."""
    job.values |= filled(part.get("values", {}), facts)
    loses = part.get("loses", {})
    said = {*part.get("says", ()), *loses}
    job.lost = [one for one in job.lost if one.key not in said]
    job.lost += [Lost(key=key, value=facts.get(key), why=why) for key, why in loses.items()]
    if "note" in part:
        job.notes.append(part["note"].format_map(facts))


def filled(value: Any, facts: Mapping[str, Any]) -> Any:
    """A value with its {facts} filled in; a text that is one fact becomes that fact."""
    if isinstance(value, Mapping):
        return {key: filled(one, facts) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, facts) for one in value]
    if not isinstance(value, str):
        return value
    name = value.removeprefix("{").removesuffix("}")
    return facts[name] if value == f"{{{name}}}" else value.format_map(facts)
