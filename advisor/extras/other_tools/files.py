"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data. Written whole or not at all; a folder that is there is never overwritten.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct, field
from msgspec.structs import replace

from advisor.data.read.hub import is_hub_id
from advisor.export.exporter import ExportRequest
from advisor.extras.other_tools.mapping import (
    COMMAND,
    Lost,
    are_ones,
    flat_stage,
    usual_values,
    write,
)
from advisor.extras.other_tools.rows import (
    TEST,
    TRAIN,
    WrittenRows,
    example_row,
    is_split,
    kind_of_rows,
    write_rows,
)
from advisor.extras.other_tools.tool import FEEDBACK, PAIRS, TEXT, Tool, tool_named
from advisor.ground.counting import counted
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path
from advisor.ground.version import __version__
from advisor.ground.wrap import wrapped
from advisor.methods.stage import Stage
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan, resolve_path
from advisor.record.smaller import yaml_value
from advisor.situation.models import usable_shape

BUNDLE = "`advise export` with --to bundle carries the plan itself to another machine"
MOST_SHOWN = 3  # notes on the screen; all of them stand in the files
ELSEWHERE = ("holdout", "save_minutes")  # said in other words: held-out rows are a file
ZERO = {"zero2": 2, "zero3": 3}
MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as P; from transformers import'
    " AutoTokenizer as T; P.from_pretrained('{at}').merge_and_unload().save_pretrained('{to}');"
    " T.from_pretrained('{at}').save_pretrained('{to}')\""
)


class WrittenFolder(Struct, frozen=True, kw_only=True):
    """What was written."""

    folder: Path
    jobs: tuple[ToolJob, ...]

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is started."""
        first, place = self.jobs[0], shown_path(self.folder)
        files = ", ".join(job.file for job in self.jobs[:MOST_SHOWN])
        more = f" and {len(self.jobs) - MOST_SHOWN} more" if len(self.jobs) > MOST_SHOWN else ""
        lines = [f"Wrote {place}: {files}{more}, for {first.tool.title}."]
        if rows := [job.rows for job in self.jobs if job.rows]:
            trained, held = (sum(one.counts[name] for one in rows) for name in (TRAIN, TEST))
            where = shown_path(self.folder / "data")
            lines.append(
                f"Data: {counted(trained, 'row')} to train on, {held:,} held out ({where})."
            )
        lines += [line for job in self.jobs for line in data_lines(job.notes, job.form)]
        notes = list(
            dict.fromkeys(f"{one.key}: {one.why}" for job in self.jobs for one in job.lost)
        )
        if notes:
            some = f"{len(notes)}, such as" if len(notes) > MOST_SHOWN else "the file says it too"
            lines.append(f"Not carried over ({some}):")
        left = dict.fromkeys(note for job in self.jobs for note in job.notes if "left out" in note)
        for note in (*notes[:MOST_SHOWN], *list(left)[:2]):
            lines += wrapped(note, 79, initial_indent="  ", subsequent_indent="    ")
        lines.append(f"Install it in an environment of its own: {first.tool.install}")
        if first.before:
            lines.append("Give the commands at the top of the file first.")
        return [*lines, f"Start: cd {shlex.quote(place)} && {first.start}"]


def export(wanted: ExportRequest) -> int:
    """Write the files of a plan for another tool, and say what is in them and whether it fits."""
    from advisor.extras.other_tools.fits_there import fitting_there

    written = write_files(
        wanted.form, wanted.source, wanted.out, only=wanted.only, plan=wanted.plan
    )
    first = written.jobs[0]
    *lines, start = written.lines()
    fitting, memory = fitting_there(first.plan, [written.folder / one.file for one in written.jobs])
    wanted.document["memory"] = memory
    for line in (*lines, *fitting, start):
        wanted.say(line)
    return 0


def write_files(
    tool_id: str, source: Path, out: Path | None, *, only: str | None, plan: Plan | None = None
) -> WrittenFolder:
    """Write a plan, or one task or stage. Raises InputError for what the tool cannot train."""
    plan, tool = plan or read_plan(source), tool_named(tool_id)
    chosen = chosen_entries(plan, only)
    faults = [fault for entry in chosen for fault in _refusals(tool, plan, entry)]
    if faults:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (out or Path(f"{plan.name}-{tool_id}")).expanduser().absolute()
    with fresh_folder(folder) as work:
        files: dict[str, dict[str, Any]] = {}
        jobs = [job_of(tool, plan, entry, source=source, work=work) for entry in chosen]
        for job in jobs:
            for name, content in job.files.items():
                files.setdefault(name, {}).update(content)
            values = yaml.safe_dump(job.values, sort_keys=False, width=1000, allow_unicode=True)
            page = "\n".join((*_head(job), "", values))
            (work / job.file).write_text(page, "utf-8")
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (work / name).write_text(f"{text}\n", "utf-8")
    return WrittenFolder(folder=folder, jobs=tuple(jobs))


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` at the end, or nothing at all. Raises InputError
    where something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "is there already, and nothing is overwritten",
            hint="remove it, or choose another folder with --out",
            where=str(folder),
        )
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
        yield work
        work.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def chosen_entries(plan: Plan, only: str | None) -> list[Entry]:
    """The trainings of a plan that are wanted. Raises InputError if there is none of that name."""
    every = entries(plan)
    names = [(one.name, one.stage.name, one.task and one.task.name) for one in every]
    found = [one for one, known in zip(every, names, strict=True) if only in (None, *known)]
    if not found:
        allowed = ", ".join(entry.name for entry in every)
        raise InputError(f"the plan has no task or stage '{only}'", allowed, where="--only")
    return found


def _refusals(tool: Tool, plan: Plan, entry: Entry) -> Iterator[Fault]:
    """What the tool has no word for, without which the training would be another one."""
    stage, head = entry.stage, entry.stage.options.get("head")
    usual = usual_values(stage.objective, stage.update)
    lost = write(tool, flat_stage(plan, stage), command=None, usual=usual).lost
    whats = [
        f"{tool.name} has no {one.key} '{one.value}'"
        for one in lost
        if one.key in ("objective", "update", "quantization")
    ][:1]
    if why := tool.not_written.get(stage.objective):
        whats = [f"{stage.objective} is not written for {tool.name}: {why}"]
    elif not whats and not kind_of_rows(stage.objective):
        whats = [f"{tool.name} has no objective '{stage.objective}'"]
    if head not in (None, "language"):
        whats.append(f"`head: {head}` is not written for {tool.name}: it trains language models")
    for what in whats:
        yield Fault(where=f"stage {stage.name}", what=what, hint=BUNDLE)


def _head(job: ToolJob) -> Iterator[str]:
    stage = job.entry.stage
    base = f" on a base in {stage.quantization}" if stage.quantization else ""
    yield from commented(
        f"{stage.objective}, {stage.update}{base} of {job.model}, for {job.tool.title}. Written by"
        f" finetune-advisor {__version__} from the plan {job.plan.name}."
    )
    yield f"# Install, in an environment of its own:  {job.tool.install}"
    yield from (f"# First:  {command}" for command in job.before)
    yield f"# Start, in this folder:  {job.start}"
    for name, count in job.rows.counts.items() if job.rows else ():
        if count:
            yield f"# Data:  {job.folder}/{name}, {counted(count, 'row')}"
    lost = [f"{one.key} ({yaml_value(one.value)}): {one.why}" for one in job.lost]
    for title, lines in (("Not carried over", lost), ("Different from `advise run`", job.notes)):
        if lines:
            yield f"# {title}:"
        for line in dict.fromkeys(lines):
            yield from commented(line, first="#  - ", later="#    ")


def commented(text: str, first: str = "# ", later: str = "# ") -> list[str]:
    """A text as the lines of a comment."""
    return textwrap.wrap(
        text, 96, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


class ToolJob(Struct, kw_only=True):
    """What is written for one training."""

    tool: Tool
    plan: Plan
    entry: Entry
    place: str  # of this training in the names of its files: "", "legal", "2-dpo"
    model: str  # a hub id, a folder, or the result of the training before
    rows: WrittenRows | None = None  # None: a data set of the hub, whose name is passed on
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
        if self.rows is not None:
            return self.rows.kind
        objective = self.entry.stage.objective
        return TEXT if objective == "cpt" else kind_of_rows(objective)

    @property
    def is_split(self) -> bool:
        """Whether a request and its answer are columns of their own in its rows."""
        if self.rows is not None:
            return self.rows.is_split
        return is_split(self.entry, self.kind, self.tool.rows)

    @property
    def form(self) -> str:
        """A row as the configuration reads it."""
        return example_row(self.kind, is_split=self.is_split)

    @property
    def start(self) -> str:
        """The command that trains it, in the folder of the export."""
        processes = self.plan.launch.processes
        many = self.tool.start_many if processes > 1 else ""
        return (many or self.tool.start).format(
            file=self.file, command=self.command, processes=processes
        )


def job_of(tool: Tool, plan: Plan, entry: Entry, *, source: Path, work: Path) -> ToolJob:
    """The training with all that is written for it; its rows are written in a folder of `work`."""
    parts = [entry.task.name] if entry.task else []
    if len(plan.stages) > 1:
        parts.append(_numbered(plan, entry.stage))
    job = ToolJob(tool=tool, plan=plan, entry=entry, place=".".join(parts), model=plan.model)
    _start(job, source)
    path = resolve_path(source, entry.data.path)
    if not entry.data.path:
        job.notes.append(no_data(job.folder, job.form))
    elif path.exists() or not is_hub_id(entry.data.path):
        more = {"chat_template_kwargs": dict(plan.template)} if plan.template else {}
        job.rows = write_rows(entry, path, work / job.folder, tool.rows, more)
        job.notes += job.rows.notes
    else:
        job.notes.append(
            f"{entry.data.path} stays on the hub, unread, and no rows are held out. This file reads"
            f" rows such as {job.form} and no others: else download it and name the file (--data),"
            " whose rows are written so"
        )
    _write(job)
    if tool.id == "llamafactory":
        _list_data_sets(job)
    job.notes.append("rows may come in another order, and other rows are held out")
    if plan.extra_key("benchmarks", "evaluation") is not None:
        job.notes.append("the benchmarks of `evaluation` are not run")
    return job


def no_data(folder: str, form: str) -> str:
    """What to do where no data file is named, with a row as it must be."""
    return (
        f"no data file is named: put rows such as {form} into {folder}/{TRAIN}, one a line, or name"
        " your file (--data): its rows are written so"
    )


def data_lines(notes: Iterable[str], form: str) -> Iterator[str]:
    """What the notes say of rows that were not written; the row is not broken."""
    for note in notes:
        before, found, after = note.partition(form)
        if found:
            yield from textwrap.wrap(f"Data: {before.strip()}", 80, subsequent_indent="  ")
            yield f"  {form}"
            yield from textwrap.wrap(
                f"{after.strip()}.", 80, initial_indent="  ", subsequent_indent="  "
            )


def _list_data_sets(job: ToolJob) -> None:
    name = job.values["dataset"]
    info: dict[str, Any] = {name: {"hf_hub_url": job.entry.data.path, **_form(job.kind)}}
    if job.rows is not None or not job.entry.data.path:
        info[name] = {"file_name": f"{job.folder}/train.jsonl", **_form(job.kind)}
    if job.evaluates:
        info[f"{name}_test"] = {"file_name": f"{job.folder}/test.jsonl", **_form(job.kind)}
    job.files["dataset_info.json"] = info


def _form(kind: str) -> dict[str, Any]:
    if kind == TEXT:
        return {"columns": {"prompt": "text"}}
    more = {PAIRS: {"chosen": "chosen", "rejected": "rejected"}, FEEDBACK: {"kto_tag": "label"}}
    return {
        "formatting": "sharegpt",
        "ranking": kind == PAIRS,
        "columns": {"messages": "messages", **more.get(kind, {})},
        "tags": {f"{one}_tag": one for one in ("role", "content", "user", "assistant", "system")},
    }


def _numbered(plan: Plan, stage: Stage) -> str:
    return f"{[one.name for one in plan.stages].index(stage.name) + 1}-{stage.name}"


def _start(job: ToolJob, source: Path) -> None:
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


def _write(job: ToolJob) -> None:
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
        if are_ones(facts, part.get("when", {})):
            _add(job, part, facts)
    if isinstance(settings := job.values.get("deepspeed"), Mapping):  # in a file of its own
        job.values["deepspeed"] = f"deepspeed-{job.plan.launch.strategy}.json"
        job.files[job.values["deepspeed"]] = settings


def _facts(job: ToolJob) -> dict[str, Any]:
    """What `written` of rules/tools/TOOL.yaml may ask for, beside the keys of the stage."""
    plan, rows = job.plan, job.rows
    template, differs = job.tool.template_of(plan.model)
    target, task = plan.extra_key("hub", "push_to"), job.entry.task
    is_last = job.entry.stage.name == plan.stages[-1].name
    return {
        "command": job.command,
        "on_hub": rows is None and bool(job.entry.data.path),
        "experts_4bit": job.entry.stage.quantization == "nf4" and _is_mixture(plan.model),
        "data": job.entry.data.path,
        "kind": job.kind,
        "is_split": job.is_split,
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
        "offload": plan.launch.offload,
        "zero": ZERO.get(plan.launch.strategy or ""),
        "uploads": target is not None and is_last,
        "hub": f"{target}-{task.name}" if task else target,
        **dict.fromkeys(plan.extra_key("trackers", "trackers") or (), True),
    }


def _is_mixture(model: str) -> bool:
    shape = usable_shape(model)
    return shape is not None and bool(shape.experts)


def _add(job: ToolJob, part: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    job.values |= fill_facts(part.get("values", {}), facts)
    loses = part.get("loses", {})
    said = {*part.get("says", ()), *loses}
    job.lost = [one for one in job.lost if one.key not in said]
    job.lost += [Lost(key=key, value=facts.get(key), why=why) for key, why in loses.items()]
    if "note" in part:
        job.notes.append(part["note"].format_map(facts))


def fill_facts(value: Any, facts: Mapping[str, Any]) -> Any:
    """A value with its {facts} filled in; a text that is one fact becomes that fact."""
    if isinstance(value, Mapping):
        return {key: fill_facts(one, facts) for key, one in value.items()}
    if isinstance(value, list):
        return [fill_facts(one, facts) for one in value]
    if not isinstance(value, str):
        return value
    name = value.removeprefix("{").removesuffix("}")
    return facts[name] if value == f"{{{name}}}" else value.format_map(facts)
