"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data. Written whole or not at all; a file that is there and
differs is never overwritten.
"""

from __future__ import annotations

import filecmp
import json
import os
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from advisor.export.exporter import Wanted
from advisor.extras.other_tools.job import SPLIT, Job, job_of
from advisor.extras.other_tools.mapping import flat_stage, usual_values, write
from advisor.extras.other_tools.rows import KINDS, written
from advisor.extras.other_tools.tool import TEXT, Tool, tool_named
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path, text_of
from advisor.ground.version import __version__
from advisor.plan.comments import comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan

TRAIN, TEST = "train.jsonl", "test.jsonl"
BUNDLE = "`advise export PLAN --to bundle` carries the plan itself to another machine"
MOST_SHOWN = 3  # notes on the screen; all of them stand in the files
WIDTH = 96
LONGEST_REASON = 90
# What stands at the top of the file: the model, then its data.
FIRST = (
    "model_name_or_path", "base_model", "model_revision", "revision_of_model", "trust_remote_code",
    "dataset_name", "dataset_train_split", "dataset_test_split", "dataset_dir", "dataset",
    "eval_dataset", "template", "enable_thinking", "datasets", "test_datasets", "val_set_size",
    "chat_template", "chat_template_kwargs", "dataset_prepared_path",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written."""

    folder: Path
    jobs: tuple[Job, ...]
    unchanged: int  # files that were there already, with the same content

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is started."""
        tool, first = self.jobs[0].tool, self.jobs[0]
        files = ", ".join(job.file for job in self.jobs[:3])
        more = f" and {len(self.jobs) - 3} more" if len(self.jobs) > 3 else ""
        rows = {name: count for job in self.jobs for name, count in job.written.items()}
        trained = sum(count for name, count in rows.items() if name.endswith(TRAIN))
        held = sum(rows.values()) - trained
        lines = [f"Wrote {shown_path(self.folder)}: {files}{more}, for {tool.title}."]
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
        lines.append(f"Start: cd {shlex.quote(shown_path(self.folder))} && {first.start}")
        return lines


def _wrapped(text: str) -> list[str]:
    """A note as lines of a narrow terminal."""
    return textwrap.wrap(text, 79, initial_indent="  ", subsequent_indent="    ")


def export_to(tool_id: str, wanted: Wanted) -> int:
    """Write the files of a plan for another tool and say what is in them."""
    for line in write_files(tool_id, wanted.source, wanted.out, only=wanted.only).lines():
        wanted.say(line)
    return 0


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
    tool = tool_named(tool_id)
    chosen = _chosen(plan, only)
    faults = [fault for entry in chosen for fault in _refusals(tool, plan, entry)]
    if faults:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (out or Path(f"{plan.name}-{tool_id}")).expanduser().absolute()
    comments = comments_of(text_of(source), name=str(source))
    jobs = [job_of(tool, plan, entry, source, comments) for entry in chosen]
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
        texts = _texts(jobs, work)
        for name, text in texts.items():
            (work / name).write_text(text, "utf-8")
        unchanged = place(work, folder)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Written(folder=folder, jobs=tuple(jobs), unchanged=unchanged)


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
    stage = entry.stage
    usual = usual_values(stage.objective, stage.update)
    lost = write(tool, flat_stage(plan, stage), command=None, usual=usual).lost
    head = stage.options.get("head")
    whats = []
    if why := tool.not_written.get(stage.objective):
        whats = [f"{stage.objective} is not written for {tool.name}: {why}"]
    elif named := [one for one in lost if one.key in ("objective", "update", "quantization")]:
        whats = [f"{tool.name} has no {named[0].key} '{named[0].value}'"]
    elif stage.objective not in KINDS:
        whats = [f"{tool.name} has no objective '{stage.objective}'"]
    if head not in (None, "language"):
        whats.append(f"`head: {head}` is not written for {tool.name}: it trains language models")
    for what in whats:
        yield Fault(where=f"stage {stage.name}", what=what, hint=BUNDLE)


# --------------------------------------------------------------------------- files


def _texts(jobs: list[Job], work: Path) -> dict[str, str]:
    """Write the data of all jobs, and give the text of every other file."""
    files: dict[str, dict[str, Any]] = {}
    for job in jobs:
        job.written = _write_rows(job, work)
        for name, content in job.files.items():
            files.setdefault(name, {}).update(content)
    texts = {
        name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for name, content in files.items()
    }
    # After the data: the file says how many rows there are.
    return {**texts, **{job.file: page(job) for job in jobs}}


def _write_rows(job: Job, work: Path) -> dict[str, int]:
    """Data file -> rows. Rows that the tool cannot hold are counted in the notes."""
    if job.rows is None:
        return {}
    folder = work / job.folder
    folder.mkdir(parents=True)
    counts, refused = {TRAIN: 0, TEST: 0}, dict[str, int]()
    more: dict[str, Any] = {}
    if job.plan.template and job.kind != TEXT and "split" in job.tool.rows:
        more = {"chat_template_kwargs": dict(job.plan.template)}
        job.notes.append("the arguments of the chat template stand in each row")
    with (
        (folder / TRAIN).open("x", encoding="utf-8", newline="\n") as train,
        (folder / TEST).open("x", encoding="utf-8", newline="\n") as test,
    ):
        for example, is_held in job.rows.examples():
            rows = written(
                example,
                job.kind,
                is_split=job.layout == SPLIT,
                takes_tools="tools" in job.tool.rows,
            )
            if isinstance(rows, str):
                refused[rows] = refused.get(rows, 0) + 1
                continue
            counts[TEST if is_held else TRAIN] += len(rows)
            for row in rows:
                line = json.dumps({**row, **more}, ensure_ascii=False)
                (test if is_held else train).write(f"{line}\n")
    if not counts[TRAIN]:
        raise InputError(
            f"{job.tool.name} can hold none of the rows: {'; '.join(refused)}",
            where=job.rows.path,
            hint=BUNDLE,
        )
    if not counts[TEST]:
        (folder / TEST).unlink()
    job.notes += [
        f"{count:,} rows left out: {job.tool.name} cannot hold {why}"
        for why, count in refused.items()
    ]
    return {f"{job.folder}/{name}": count for name, count in counts.items() if count}


def place(work: Path, folder: Path) -> int:
    """Move every file to its place. Returns how many were there already.

    Raises InputError with every file that is there and differs.
    """
    files = sorted(path for path in work.rglob("*") if path.is_file())
    there = [path for path in files if (folder / path.relative_to(work)).exists()]
    differ = [
        path.relative_to(work).as_posix()
        for path in there
        if not filecmp.cmp(path, folder / path.relative_to(work), shallow=False)
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


# --------------------------------------------------------------------------- the page


def page(job: Job) -> str:
    """The text of the file."""
    return "\n".join([*_head(job), "", *_body(job), ""])


def _head(job: Job) -> Iterator[str]:
    stage = job.entry.stage
    what = f"{stage.objective}, {stage.update}" + (
        f" on a base in {stage.quantization}" if stage.quantization else ""
    )
    yield from _commented(
        f"{what} of {job.model}, for {job.tool.title}. Written by finetune-advisor"
        f" {__version__} from the plan {job.plan.name}."
    )
    if job.tool.install:
        yield f"# Install, in an environment of its own:  {job.tool.install}"
    for command in job.before:
        yield f"# First:  {command}"
    yield f"# Start, in this folder:  {job.start}"
    for name, count in job.written.items():
        yield f"# Data:  {name}, {count:,} rows"
    yield from _listed(
        "Not carried over:", [f"{one.key} ({_word(one.value)}): {one.why}" for one in job.lost]
    )
    yield from _listed("Different from `advise run`:", job.notes)


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(dict.fromkeys(lines))
    if lines:
        yield f"# {title}"
    for line in lines:
        yield from _commented(line, first="#  - ", later="#    ")


def _commented(text: str, first: str = "# ", later: str = "# ") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _word(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _body(job: Job) -> Iterator[str]:
    order = {key: place for place, key in enumerate(FIRST)}
    for key, value in sorted(job.values.items(), key=lambda item: order.get(item[0], len(order))):
        because = job.because.get(key, "")
        if isinstance(value, dict) or (isinstance(value, list) and any(map(_nests, value))):
            yield yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).rstrip("\n")
        elif because and len(because) <= LONGEST_REASON:
            yield f"{key}: {_word(value)}  # {because}"
        else:
            yield f"{key}: {_word(value)}"


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)
