"""A bundle with a job file: what the exporters for schedulers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from advisor.export.exporter import Wanted
from advisor.extras.jobs.needs import Needs, plan_needs
from advisor.extras.jobs.pack import make_bundle
from advisor.extras.jobs.words import Job
from advisor.ground.errors import InputError
from advisor.plan.read import read_plan


def write_job(wanted: Wanted, job_of: Callable[[Needs], Job], *, gpu: str | None = None) -> int:
    """Write the bundle of a plan file with the job made of it, and say how it is submitted.

    Args:
        gpu: The GPU to estimate it on; None: that of the plan.

    Returns the exit code. Raises InputError for a plan that `advise run` would not start.
    """
    if wanted.only is not None:
        raise InputError(
            "--only has no effect here: the job carries the whole plan",
            hint="of a plan with tasks, each task is a job of its own",
        )
    job = job_of(plan_needs(read_plan(wanted.source), wanted.source, gpu=gpu))
    bundle = make_bundle(wanted.source, wanted.out, say=wanted.say, job=job)
    for line in bundle.lines(Path.cwd()):
        wanted.say(line)
    wanted.document.update(bundle.facts())
    return 0
