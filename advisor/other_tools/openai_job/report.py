"""All that is said of one job: the values behind the page and the JSON of `advise check JOB`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.advice.types import Advice
from advisor.ground.types import DataProfile, GpuSpec
from advisor.other_tools.openai_job.carry import Carried
from advisor.other_tools.openai_job.job import Job
from advisor.other_tools.openai_job.service import Service
from advisor.plan.model import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class JobReport:
    """What is said of one job."""

    path: str  # the file it stands in
    job: Job
    others: tuple[Job, ...]  # of the same file
    service: Service
    advice: Advice
    data: str | None  # its training file, if that is here
    profile: DataProfile | None
    data_problem: str  # why a training file that is here cannot be used
    options: tuple[str, ...]  # that were given and decide the answer: --gpu L4
    rented: GpuSpec | None  # a GPU to rent, since this machine has none and none was named
    assumed: tuple[str, ...]
    differs: str  # how the advice's method is not the job's
    carried: tuple[Carried, ...]
    not_carried: tuple[Carried, ...]
    plan: Plan | None
    missing: tuple[str, ...]  # what a plan lacks
    duration_s: float | None = None  # of the plan; None: not known, or no plan
    cost_usd: float | None = None
    price: str = ""

    @property
    def trains(self) -> bool:
        """Whether the advice is to train, and something fits."""
        return bool(self.advice.recommendation.composition.chain) and self.advice.fits

    @property
    def exit_code(self) -> int:
        """0 if there is an answer, 3 if nothing fits."""
        return 0 if self.advice.fits else 3


def chosen_job(jobs: Sequence[Job]) -> tuple[Job, tuple[Job, ...]]:
    """The job that is answered for, and the others: the newest that succeeded, else the newest."""
    best = max(
        enumerate(jobs),
        key=lambda numbered: (
            numbered[1].status == "succeeded",
            numbered[1].created_at,
            -numbered[0],  # the API lists the newest first
        ),
    )[1]
    return best, tuple(job for job in jobs if job is not best)
