"""What of a plan's `launch` no run starts: asked before a run, and before a plan is written for a
scheduler.
"""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.methods.strategies import strategies
from advisor.plan.model import Plan


def launch_faults(plan: Plan) -> list[Fault]:
    """The faults of `launch` that are certain on every machine."""
    name = plan.launch.strategy
    if name is None or not strategies()[name].instead:
        return []
    found = strategies()[name]
    return [
        Fault(
            where="launch.strategy",
            what=f"launch.strategy is {name}, which is estimated and not started ({found.about})",
            allowed="`advise run` starts one process, or several with ddp or fsdp",
            hint=(
                f"{found.instead} divides as much: --set launch.strategy=fsdp; with --set"
                " launch.offload=true, too, it lies in the computer's memory"
            ),
        )
    ]
