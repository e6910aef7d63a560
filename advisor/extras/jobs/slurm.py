"""A plan as a job of Slurm: `job.sbatch` in a bundle that holds all it needs."""

from __future__ import annotations

from typing import Literal

from advisor.export.exporter import Wanted

NAME = "slurm"
HELP = "job.sbatch in a bundle; slurm:h100 names the cluster's GPU"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()
VARIANTS = True


def export(wanted: Wanted) -> int:
    """Write the bundle with its job and say how it is submitted."""
    from advisor.extras.jobs.job import write_job
    from advisor.extras.jobs.slurm_script import slurm_job

    return write_job(wanted, lambda needs: slurm_job(needs, wanted.variant or None))
