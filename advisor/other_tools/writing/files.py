"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data in the shape that its loader reads. Written whole or not at all; a file that is there and
differs is never overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path
from advisor.other_tools.tables.keys import ToolRelease, keys_of, newest
from advisor.other_tools.tables.mapping import COMMAND, Writing, write
from advisor.other_tools.tables.ours import flat_stage, usual_values
from advisor.other_tools.tables.tool import Tool, tool_named
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.keys import TEST, TRAIN, complete, start_of
from advisor.other_tools.writing.page import page
from advisor.other_tools.writing.rewards import add_rewards, rewards_fault
from advisor.other_tools.writing.rows import KINDS, PROMPTS, TEXT, rows_of
from advisor.other_tools.writing.shapes import layout_of
from advisor.plan.comments import comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Comments, Plan
from advisor.plan.read import read_plan, resolve_path

# Said in other words: held-out rows are a file, processes an argument of the start command.
ELSEWHERE = ("holdout", "save_minutes")
MOST_SHOWN = 3  # notes on the screen; all of them stand in the files
MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as P; from transformers import'
    " AutoTokenizer as T; P.from_pretrained('{at}').merge_and_unload().save_pretrained('{to}');"
    " T.from_pretrained('{at}').save_pretrained('{to}')\""
)


class Everything:
    """All names: before the command of a tool's command line is known."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written."""

    folder: Path
    jobs: tuple[Job, ...]
    release: str
    unchanged: int  # files that were there already, with the same content

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is started."""
        tool, first = self.jobs[0].tool, self.jobs[0]
        files = ", ".join(job.file for job in self.jobs[:3])
        more = f" and {len(self.jobs) - 3} more" if len(self.jobs) > 3 else ""
        rows = {name: count for job in self.jobs for name, count in job.written.items()}
        trained = sum(count for name, count in rows.items() if name.endswith(TRAIN))
        held = sum(rows.values()) - trained
        lines = [f"Wrote {shown_path(self.folder)}: {files}{more}, for {tool.name} {self.release}."]
        if rows:
            lines.append(
                f"Data: {trained:,} rows to train on, {held:,} held out"
                f" ({shown_path(self.folder / 'data')})."
            )
        lost = list(dict.fromkeys(f"{one.key}: {one.why}" for job in self.jobs for one in job.lost))
        if lost:
            lines.append(f"Not carried over: {len(lost)} (all in the file), such as")
            lines += [f"  {_cut(line)}" for line in lost[:MOST_SHOWN]]
        left = dict.fromkeys(note for job in self.jobs for note in job.notes if "left out" in note)
        lines += [f"  {_cut(note)}" for note in list(left)[:2]]
        lines.append(f"Install it in an environment of its own: {tool.install}")
        if first.before:
            lines.append("Give the commands at the top of the file first.")
        lines.append(f"Start: cd {shown_path(self.folder)} && {start_of(first)}")
        return lines


def _cut(text: str, width: int = 76) -> str:
    return text if len(text) <= width else f"{text[: width - 4].rstrip()} ..."


def write_files(tool_id: str, source: Path, out: Path | None, *, only: str | None) -> Written:
    """Write the files of a plan for another tool.

    Args:
        tool_id: Which one (rules/tools/).
        source: The plan file.
        out: The folder; default: <name of the plan>-<tool> in the current one.
        only: One task or stage.

    Raises InputError for a plan that the tool cannot train, and for files that are there and
    differ; MachineNotReady if it cannot be written.
    """
    plan = read_plan(source)
    tool, release = tool_named(tool_id), newest(tool_id)
    chosen = _chosen(plan, only)
    faults = [fault for entry in chosen for fault in _refusals(tool, plan, entry)]
    if faults:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (out or Path(f"{plan.name}-{tool_id}")).expanduser().absolute()
    comments = comments_of(source.read_text("utf-8"), name=str(source))
    jobs = [_job(tool, release, plan, entry, source, comments) for entry in chosen]
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
        texts = _texts(jobs, work, release.release)
        for name, text in texts.items():
            (work / name).write_text(text, "utf-8")
        unchanged = _place(work, folder)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Written(folder=folder, jobs=tuple(jobs), release=release.release, unchanged=unchanged)


def _chosen(plan: Plan, only: str | None) -> list[Entry]:
    every = entries(plan)
    if only is None:
        return every
    found = [
        entry
        for entry in every
        if only in (entry.name, entry.stage.name, entry.task.name if entry.task else None)
    ]
    if not found:
        names = [entry.name for entry in every]
        raise InputError(
            f"the plan has no task or stage '{only}'",
            where="--only",
            allowed=", ".join(names),
        )
    return found


# --------------------------------------------------------------------------- what it cannot hold


def _refusals(tool: Tool, plan: Plan, entry: Entry) -> Iterator[Fault]:
    """What the tool has no word for, without which the training would be another one."""
    stage, place = entry.stage, f"stage {entry.stage.name}"
    hint = "`advise export PLAN --to bundle` carries the plan itself to another machine"
    written = write(
        tool, flat_stage(plan, stage), known=Everything(),
        usual=usual_values(stage.objective, stage.update),
    )  # fmt: skip
    if why := tool.not_written.get(stage.objective):
        yield Fault(
            where=place, what=f"{stage.objective} is not written for {tool.name}: {why}", hint=hint
        )
        return
    for lost in written.lost:
        if lost.key in ("objective", "update", "quantization") or stage.objective not in KINDS:
            yield Fault(
                where=place,
                what=f"{tool.name} has no {lost.key} '{lost.value}'"
                if lost.key in ("objective", "update", "quantization")
                else f"{tool.name} has no objective '{stage.objective}'",
                hint=hint,
            )
            break
    if stage.options.get("head") not in (None, "language"):
        yield Fault(
            where=place,
            what=f"`head: {stage.options['head']}` is not written for {tool.name}: it trains"
            " language models here",
            hint=hint,
        )
    if KINDS.get(stage.objective) == PROMPTS and (fault := rewards_fault(stage, place, hint)):
        yield fault


# --------------------------------------------------------------------------- one training


def _job(
    tool: Tool,
    release: ToolRelease,
    plan: Plan,
    entry: Entry,
    source: Path,
    comments: Comments,
) -> Job:
    stage = entry.stage
    number = [one.name for one in plan.stages].index(stage.name) + 1
    parts = [
        entry.task.name if entry.task else "",
        f"{number}-{stage.name}" if len(plan.stages) > 1 else "",
    ]
    place = ".".join(part for part in parts if part)
    job = Job(
        tool=tool, plan=plan, entry=entry, place=place, model=plan.model, rows=None, layout=None
    )
    _start(job, source)
    path = resolve_path(source, entry.data.path)
    if path.exists() or not is_hub_id(entry.data.path):
        job.rows = rows_of(entry, path)
        job.layout = layout_of(
            tool.id, stage.objective, job.rows.traits,
            learn_all=stage.options.get("loss_on") == "all",
            marks=bool(tool.template_of(plan.model)[0]),
        )  # fmt: skip
        job.notes += [*job.rows.notes, *job.layout.notes]
        job.notes += [f"{count:,} rows left out: {why}" for why, count in job.rows.left_out.items()]
    written = _written(job, release)
    job.values, job.lost = written.values, list(written.lost)
    job.command = str(written.aside.get(COMMAND, "train"))
    job.because = {**written.because, **_reasons(plan, entry, written, comments)}
    complete(job)
    if KINDS[stage.objective] == PROMPTS:
        add_rewards(job)
    job.notes.append("rows come in another order")
    if plan.evaluation is not None:
        job.notes.append("the benchmarks of `evaluation` are not run")
    return job


def _written(job: Job, release: ToolRelease) -> Writing:
    """The stage in the tool's words."""
    stage = job.entry.stage
    if job.rows is not None:  # what is learned decides, not what it is called
        kind = job.rows.traits.kind
        objective = {"sft": "cpt"} if kind == TEXT else {"cpt": "sft"}
        stage = replace(stage, objective=objective.get(stage.objective, stage.objective))
        if stage.objective != job.entry.stage.objective:
            job.notes.append(
                f"objective {job.entry.stage.objective} is written as {stage.objective}, which is"
                " what these rows are trained by"
            )
    ours = {**flat_stage(job.plan, stage), "model": job.model}
    usual = usual_values(stage.objective, stage.update)
    for key in ELSEWHERE:
        ours.pop(key, None)
    if KINDS[stage.objective] == PROMPTS:  # a file of its own says them
        for key in ("verifier", "pattern"):
            ours.pop(key, None)
    command = write(job.tool, ours, known=Everything(), usual=usual).aside.get(COMMAND, "train")
    known = keys_of(release, str(command))
    found = write(job.tool, ours, known=known, usual=usual)
    found.aside.setdefault(COMMAND, command)
    return found


def _start(job: Job, source: Path) -> None:
    """What the training starts from: the model, a folder, or the result of an earlier one."""
    entry = job.entry
    if entry.starts_from is not None:
        earlier = next(one for one in entries(job.plan) if one.name == entry.starts_from)
        number = [one.name for one in job.plan.stages].index(earlier.stage.name) + 1
        task = f"{entry.task.name}." if entry.task else ""
        folder = f"out/{task}{number}-{earlier.stage.name}"
        if earlier.stage.update == "full":
            job.model = folder
            return
        job.model = f"{folder}-merged"
        job.before.append(MERGE.format(at=folder, to=job.model))
        job.notes.append(
            f"this stage trains a new LoRA on the merged result of {earlier.stage.name}"
        )
        return
    named = entry.start_folder or job.plan.model
    path = resolve_path(source, named)
    job.model = str(path) if path.exists() else named


def _reasons(plan: Plan, entry: Entry, written: Writing, comments: Comments) -> Mapping[str, str]:
    """Their key -> the reason that stands beside ours in the plan."""
    place = [stage.name for stage in plan.stages].index(entry.stage.name)
    found = {}
    for theirs, ours in written.came_from.items():
        said = [comments.get(("stages", place, key), "") for key in ours]
        reason = next((one for one in said if one), "")
        if reason and "." not in theirs:
            found[theirs] = reason
    return found


# --------------------------------------------------------------------------- files


def _texts(jobs: list[Job], work: Path, release: str) -> dict[str, str]:
    """Write the data of all jobs, and give the text of every other file."""
    texts: dict[str, str] = {}
    info: dict[str, Any] = {}
    for job in jobs:
        job.written = _write_rows(job, work)
        for name, text in job.files.items():
            if name == "dataset_info.json":
                info |= json.loads(text)
            else:
                texts[name] = text if text.endswith("\n") else f"{text}\n"
    if info:
        texts["dataset_info.json"] = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    # After the data: the file says how many rows there are.
    return {**texts, **{job.file: page(job, release=release) for job in jobs}}


def _write_rows(job: Job, work: Path) -> dict[str, int]:
    """Data file -> rows. Rows that the tool cannot hold are counted in the notes."""
    if job.rows is None or job.layout is None:
        return {}
    folder = work / job.folder
    folder.mkdir(parents=True)
    counts = {TRAIN: 0, TEST: 0}
    refused: dict[str, int] = {}
    arguments = (
        {"chat_template_kwargs": dict(job.plan.template)}
        if job.plan.template and job.tool.id == "trl" and job.layout.name != TEXT
        else {}
    )
    with (
        (folder / TRAIN).open("x", encoding="utf-8", newline="\n") as train,
        (folder / TEST).open("x", encoding="utf-8", newline="\n") as test,
    ):
        for example, is_held in job.rows.examples():
            shaped = job.layout.shape(example)
            if isinstance(shaped, str):
                refused[shaped] = refused.get(shaped, 0) + 1
                continue
            for row in shaped:
                line = json.dumps({**row, **arguments}, ensure_ascii=False)
                (test if is_held else train).write(f"{line}\n")
                counts[TEST if is_held else TRAIN] += 1
    if not counts[TRAIN]:
        raise InputError(
            f"{job.tool.name} can hold none of the rows: {'; '.join(refused)}",
            where=job.rows.path,
            hint="`advise export PLAN --to bundle` carries the plan itself to another machine",
        )
    if not counts[TEST]:
        (folder / TEST).unlink()
    job.notes += [
        f"{count:,} rows left out: {job.tool.name} cannot hold {why}"
        for why, count in refused.items()
    ]
    return {f"{job.folder}/{name}": count for name, count in counts.items() if count}


def _place(work: Path, folder: Path) -> int:
    """Move every file to its place. Returns how many were there already.

    Raises InputError with every file that is there and differs.
    """
    files = sorted(path for path in work.rglob("*") if path.is_file())
    there = [path for path in files if (folder / path.relative_to(work)).exists()]
    differ = [
        path.relative_to(work).as_posix()
        for path in there
        if not _same(path, folder / path.relative_to(work))
    ]
    if differ:
        raise InputError(
            faults=[
                Fault(
                    where=str(folder / name),
                    what="is there already with another content, and nothing is overwritten",
                    hint="remove it, or choose another folder with --out",
                )
                for name in differ
            ]
        )
    for path in files:
        target = folder / path.relative_to(work)
        if path not in there:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return len(there)


def _same(one: Path, other: Path) -> bool:
    return (
        other.is_file()
        and one.stat().st_size == other.stat().st_size
        and one.read_bytes() == other.read_bytes()
    )
