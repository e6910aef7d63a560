"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data. Written whole or not at all; a folder that is there is never overwritten.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from advisor.export.exporter import Wanted
from advisor.extras.other_tools.job import Job, job_of
from advisor.extras.other_tools.mapping import flat_stage, usual_values, write
from advisor.extras.other_tools.rows import KINDS, TEST, TRAIN
from advisor.extras.other_tools.tool import Tool, tool_named
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path
from advisor.ground.version import __version__
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.plan.smaller import in_words

BUNDLE = "`advise export PLAN --to bundle` carries the plan itself to another machine"
MOST_SHOWN = 3  # notes on the screen; all of them stand in the files


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written."""

    folder: Path
    jobs: tuple[Job, ...]

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is started."""
        first, place = self.jobs[0], shown_path(self.folder)
        files = ", ".join(job.file for job in self.jobs[:MOST_SHOWN])
        more = f" and {len(self.jobs) - MOST_SHOWN} more" if len(self.jobs) > MOST_SHOWN else ""
        lines = [f"Wrote {place}: {files}{more}, for {first.tool.title}."]
        if rows := [job.rows for job in self.jobs if job.rows]:
            trained, held = (sum(one.counts[name] for one in rows) for name in (TRAIN, TEST))
            where = shown_path(self.folder / "data")
            lines.append(f"Data: {trained:,} rows to train on, {held:,} held out ({where}).")
        notes = list(
            dict.fromkeys(f"{one.key}: {one.why}" for job in self.jobs for one in job.lost)
        )
        if notes:
            some = f"{len(notes)}, such as" if len(notes) > MOST_SHOWN else "the file says it too"
            lines.append(f"Not carried over ({some}):")
        left = dict.fromkeys(note for job in self.jobs for note in job.notes if "left out" in note)
        for note in (*notes[:MOST_SHOWN], *list(left)[:2]):
            lines += textwrap.wrap(note, 79, initial_indent="  ", subsequent_indent="    ")
        lines.append(f"Install it in an environment of its own: {first.tool.install}")
        if first.before:
            lines.append("Give the commands at the top of the file first.")
        return [*lines, f"Start: cd {shlex.quote(place)} && {first.start}"]


def export_to(tool_id: str, wanted: Wanted) -> int:
    """Write the files of a plan for another tool and say what is in them."""
    for line in write_files(tool_id, wanted.source, wanted.out, only=wanted.only).lines():
        wanted.say(line)
    return 0


def write_files(tool_id: str, source: Path, out: Path | None, *, only: str | None) -> Written:
    """Write the files of a plan, or of one task or stage, to a folder: <plan>-<tool> by default.
    Raises InputError for a plan that the tool cannot train, and for a folder that is there.
    """
    plan, tool = read_plan(source), tool_named(tool_id)
    chosen = _chosen(plan, only)
    faults = [fault for entry in chosen for fault in _refusals(tool, plan, entry)]
    if faults:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (out or Path(f"{plan.name}-{tool_id}")).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "is there already, and nothing is overwritten",
            hint="remove it, or choose another folder with --out",
            where=str(folder),
        )
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
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
        work.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Written(folder=folder, jobs=tuple(jobs))


def _chosen(plan: Plan, only: str | None) -> list[Entry]:
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
    elif not whats and stage.objective not in KINDS:
        whats = [f"{tool.name} has no objective '{stage.objective}'"]
    if head not in (None, "language"):
        whats.append(f"`head: {head}` is not written for {tool.name}: it trains language models")
    for what in whats:
        yield Fault(where=f"stage {stage.name}", what=what, hint=BUNDLE)


# --------------------------------------------------------------------------- the page


def _head(job: Job) -> Iterator[str]:
    stage = job.entry.stage
    base = f" on a base in {stage.quantization}" if stage.quantization else ""
    yield from _commented(
        f"{stage.objective}, {stage.update}{base} of {job.model}, for {job.tool.title}. Written by"
        f" finetune-advisor {__version__} from the plan {job.plan.name}."
    )
    yield f"# Install, in an environment of its own:  {job.tool.install}"
    yield from (f"# First:  {command}" for command in job.before)
    yield f"# Start, in this folder:  {job.start}"
    for name, count in job.rows.counts.items() if job.rows else ():
        if count:
            yield f"# Data:  {job.folder}/{name}, {count:,} rows"
    lost = [f"{one.key} ({in_words(one.value)}): {one.why}" for one in job.lost]
    for title, lines in (("Not carried over", lost), ("Different from `advise run`", job.notes)):
        if lines:
            yield f"# {title}:"
        for line in dict.fromkeys(lines):
            yield from _commented(line, first="#  - ", later="#    ")


def _commented(text: str, first: str = "# ", later: str = "# ") -> list[str]:
    return textwrap.wrap(
        text, 96, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
