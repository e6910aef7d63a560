"""Whether a file that was written for another tool fits the plan's GPU there: that tool keeps and
copies other things than our trainers, for which the plan was fitted.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from advisor.extras.other_tools.read import read_any
from advisor.extras.other_tools.report import ConfigurationReport
from advisor.ground.errors import AdviseError
from advisor.ground.files import shown_path
from advisor.ground.units import format_gib
from advisor.plan.model import Plan
from advisor.situation.of_plan import plan_hardware

GIB = 2**30


def fitting_there(plan: Plan, files: Sequence[Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """(what to say of the memory of each file's training, as lines; the same as JSON)."""
    if plan.launch.device == "cpu":
        return [], []
    lines, found = list[str](), list[dict[str, Any]]()
    try:
        hardware, _ = plan_hardware(plan, is_elsewhere=True)
        reports = [ConfigurationReport(read_any(file), hardware) for file in files]
    except AdviseError:  # the files are written all the same
        return [], []
    for report in reports:
        fit = report.fit
        if fit is None or fit.document.get("limit_gib") is None:
            place = shlex.quote(shown_path(report.file.path))
            lines += ["Whether it fits a GPU:", f"  advise check {place} --gpu NAME"]
            continue
        found.append({"file": report.file.path.name, "fits": fit.fits, **report.document["memory"]})
        lines += _lines(report)
    return list(dict.fromkeys(lines)), found


def _lines(report: ConfigurationReport) -> Iterator[str]:
    assert report.fit is not None
    title, document = report.file.about.name, report.fit.document
    if report.fit.fits in ("fits", "tight"):
        need, limit = (format_gib(document[key] * GIB) for key in ("need_gib", "limit_gib"))
        yield f"Memory in {title}: about {need} of {limit}: it fits"
        return
    said = f"In {title}: {report.document['summary']}"
    yield from textwrap.wrap(said, 80, subsequent_indent="  ", break_on_hyphens=False)
