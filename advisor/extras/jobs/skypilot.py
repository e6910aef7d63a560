"""A plan as a task of SkyPilot: `sky.yaml` in a bundle that holds all it needs. SkyPilot starts it
on clouds and on Kubernetes.
"""

from __future__ import annotations

from typing import Literal

from advisor.export.exporter import Wanted

NAME = "skypilot"
HELP = "sky.yaml in a bundle, for clouds; skypilot:H100 names the GPU"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()
VARIANTS = True


def export(wanted: Wanted) -> int:
    """Write the bundle with its task and say how it is launched."""
    from advisor.extras.jobs.accelerators import gpu_of, known_name
    from advisor.extras.jobs.job import write_job
    from advisor.extras.jobs.skypilot_task import skypilot_job

    name = known_name(wanted.variant) if wanted.variant else None
    return write_job(
        wanted, lambda needs: skypilot_job(needs, name), gpu=gpu_of(name) if name else None
    )
