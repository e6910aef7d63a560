"""A plan packed for another machine, a cluster or a cloud (docs/machines.md)."""

from __future__ import annotations

from advisor.extras.protocol import Extra


class Jobs(Extra):
    """The forms bundle, slurm and skypilot."""

    NAME = "jobs"
    HELP = "packs a plan for another machine, Slurm or SkyPilot"
    EXPORTERS = ("bundle", "slurm", "skypilot")


EXTRA = Jobs()
