"""What of a plan's `launch` no run starts: asked before a run, and before a plan is written for a
scheduler.
"""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.plan.model import Plan


def launch_faults(plan: Plan) -> list[Fault]:
    """The faults of `launch` that are certain on every machine."""
    if plan.launch.startable:
        return []
    return [
        Fault(
            where="launch.strategy",
            what=f"launch.strategy is {plan.launch.strategy}",
            allowed="`advise run` starts one process, or several with ddp or fsdp",
            hint="strategy: fsdp shares the weights, gradients and optimizer in the same way",
        )
    ]
