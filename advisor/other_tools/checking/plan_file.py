"""A configuration carried over to a launch file, with everything that could not be carried named in
it and on the screen.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.files import shown_path
from advisor.other_tools.checking.carrying import NO_DATA
from advisor.other_tools.checking.report import Report
from advisor.other_tools.tables.mapping import Lost
from advisor.plan.notes import stage_notes
from advisor.plan.smaller import in_words
from advisor.plan.write_target import write_plan_file

WIDE = 96  # columns of a comment


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The launch file and what is to be said of it."""

    path: Path
    lines: tuple[str, ...]


def write_carried(report: Report, path: Path) -> Written:
    """Write the plan of a configuration.

    Raises InputError if it has no word for what the configuration trains, or may not be written
    there.
    """
    if report.carried is None:
        raise InputError(
            "it cannot be carried over to a plan: " + "; ".join(report.why_no_estimate),
            where=report.path,
        )
    plan, lost = report.carried.plan, report.carried.lost
    instruct = bool(report.shape is not None and report.shape.instruct)
    block = [stage_notes(plan, 0, instruct=instruct)]
    if lost:
        block.append(f"Not carried over from {report.path}:")
        block += [line for one in lost for line in _comment(one)]
    if report.carried.no_data:
        block.append("Its data are not here: write their path into `data`.")
    comments = {**report.carried.comments, ("stages", 0): "\n".join(block)}
    write_plan_file(plan, comments, path, inputs=[Path(report.path)])
    return Written(path=path, lines=tuple(_said(report, path, lost)))


def _said(report: Report, path: Path, lost: tuple[Lost, ...]) -> list[str]:
    lines = [f"Written: {shown_path(path)}"]
    if report.carried is not None and report.carried.no_data:
        lines.append(f"  data: {NO_DATA} stands for data that are not here: write their path")
    if lost:
        lines.append(f"  not carried over ({len(lost)}):")
        lines += [f"    {one.key}: {in_words(one.value)} ({one.why})" for one in lost]
    return lines


def _comment(one: Lost) -> list[str]:
    said = f"{one.key}: {in_words(one.value)} ({one.why})"
    return [f"  {line}" for line in textwrap.wrap(said, WIDE, subsequent_indent="  ")]
