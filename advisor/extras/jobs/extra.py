"""A plan packed for another machine, a cluster or a cloud (docs/scale.md)."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.extras.protocol import Catalogue, Extra, Form


class Jobs(Extra):
    """The forms bundle, slurm and skypilot."""

    NAME = "jobs"
    HELP = "packs a plan for another machine, Slurm or SkyPilot"
    EXPORTERS = (
        Form(
            NAME="bundle",
            HELP="everything to run it on another machine",
            TAKES="plan",
            function="advisor.extras.jobs.pack:write_bundle",
        ),
        Form(
            NAME="slurm",
            HELP="job.sbatch in a bundle; slurm:h100 names the cluster's GPU",
            TAKES="plan",
            VARIANTS=True,
            function="advisor.extras.jobs.slurm:export",
        ),
        Form(
            NAME="skypilot",
            HELP="sky.yaml in a bundle, for clouds; skypilot:H100 names the GPU",
            TAKES="plan",
            VARIANTS=True,
            function="advisor.extras.jobs.skypilot:export",
        ),
    )

    def catalogues(self) -> Iterable[Catalogue]:
        from advisor.extras.jobs.skypilot import SKYPILOT_FILE, skypilot_accelerators

        return [Catalogue("skypilot", SKYPILOT_FILE, [skypilot_accelerators])]


EXTRA = Jobs()
