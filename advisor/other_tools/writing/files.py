"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data in the shape that its loader reads. Written whole or not at all; a file that is there and
differs is never overwritten.
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

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path, text_of
from advisor.other_tools.tables.keys import newest
from advisor.other_tools.tables.mapping import write
from advisor.other_tools.tables.ours import flat_stage, usual_values
from advisor.other_tools.tables.tool import Tool, tool_named
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.one_training import Everything, job_of
from advisor.other_tools.writing.page import page
from advisor.other_tools.writing.placing import place
from advisor.other_tools.writing.rewards import rewards_fault
from advisor.other_tools.writing.rows import KINDS, PROMPTS
from advisor.other_tools.writing.shared import TEST, TRAIN
from advisor.other_tools.writing.writer import start_of
from advisor.plan.comments import comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan

MOST_SHOWN = 3  # notes on the screen; all of them stand in the files


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
            some = f"{len(lost)}, such as" if len(lost) > MOST_SHOWN else "the file says it too"
            lines.append(f"Not carried over ({some}):")
            lines += [one for line in lost[:MOST_SHOWN] for one in _wrapped(line)]
        left = dict.fromkeys(note for job in self.jobs for note in job.notes if "left out" in note)
        lines += [one for note in list(left)[:2] for one in _wrapped(note)]
        lines.append(f"Install it in an environment of its own: {tool.install}")
        if first.before:
            lines.append("Give the commands at the top of the file first.")
        lines.append(f"Start: cd {shlex.quote(shown_path(self.folder))} && {start_of(first)}")
        return lines


def _wrapped(text: str) -> list[str]:
    """A note as lines of a narrow terminal."""
    return textwrap.wrap(text, 79, initial_indent="  ", subsequent_indent="    ")


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
    comments = comments_of(text_of(source), name=str(source))
    jobs = [job_of(tool, release, plan, entry, source, comments) for entry in chosen]
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
        texts = _texts(jobs, work, release.release)
        for name, text in texts.items():
            (work / name).write_text(text, "utf-8")
        unchanged = place(work, folder)
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
                line = json.dumps({**row, **job.columns}, ensure_ascii=False)
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
