"""A plan packed for another machine, a cluster or a cloud (docs/machines.md)."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.extras.protocol import Catalogue, Extra


class Jobs(Extra):
    """The forms bundle, slurm and skypilot."""

    NAME = "jobs"
    HELP = "packs a plan for another machine, Slurm or SkyPilot"
    EXPORTERS = ("bundle", "slurm", "skypilot")

    def catalogues(self) -> Iterable[Catalogue]:
        from advisor.extras.jobs.skypilot import SKYPILOT_FILE, skypilot_accelerators

        return [Catalogue("skypilot", SKYPILOT_FILE, [skypilot_accelerators])]


EXTRA = Jobs()
