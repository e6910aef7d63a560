"""A result merged into one plain model."""

from __future__ import annotations

from advisor.extras.protocol import Extra


class Merged(Extra):
    """The form merged."""

    NAME = "merged"
    HELP = "merges a result into one plain model"
    EXPORTERS = ("merged",)


EXTRA = Merged()
