"""The hardware that a plan is estimated on."""

from __future__ import annotations

import re
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.types import Hardware
from advisor.plan.model import Plan
from advisor.probe import probe, stated_hardware
from advisor.situation.of_plan import device_hardware

# In a plan: '2 x RTX 4090 (probed)', '16 x H100 SXM5 80GB in 2 machines (stated)'.
GPUS_OF_ORIGIN = re.compile(r"(\d+ x .+?)(?: in \d+ machines)? \([a-z]+\)$")


def plan_hardware(
    plan: Plan, gpu: str | None = None, *, is_elsewhere: bool = False
) -> tuple[Hardware, list[str]]:
    """The hardware to estimate the plan on, and notes: the named GPU, else the hardware stated when
    the plan was made, else this machine, else the GPUs the plan was made for.

    Args:
        gpu: The name of a GPU, from a flag.
        is_elsewhere: The plan will run on another machine: the GPUs it was made for come before
            this machine's.

    Raises InputError if the name is not known, or names another number of GPUs than the plan.
    """
    if gpu is not None:
        hardware, notes = stated_hardware(gpu, from_flag=True)
        if len(hardware.gpus) not in (0, 1, plan.launch.world_size):
            raise InputError(
                f"--gpu names {len(hardware.gpus)} GPUs, the plan starts {plan.launch.world_size}"
                " processes (launch.processes x launch.nodes)",
                where="--gpu",
                hint="name one GPU, or edit the plan",
            )
        gpus = hardware.gpus[:1] * plan.launch.world_size
        return device_hardware(plan, hardware, gpus), list(notes)
    stated = plan.origin.answers.get("gpu")
    if stated is not None:
        card: dict[str, Any] = {"name": stated} if isinstance(stated, str) else dict(stated)
        hardware, notes = stated_hardware(
            card.get("name"),
            count=card.get("count"),
            memory_gib=card.get("vram_gib"),
            from_flag=False,
        )
        return device_hardware(plan, hardware), list(notes)
    made_for = GPUS_OF_ORIGIN.match(plan.origin.hardware or "")
    hardware, notes = stated_hardware(made_for[1] if made_for else "unknown", from_flag=False)
    if is_elsewhere and plan.launch.device != "cpu" and hardware.gpus:
        return hardware, list(notes)
    here = device_hardware(plan, probe())
    if here.gpus or plan.launch.device == "cpu":
        return here, []
    why = "the plan is for a GPU, and this machine has none"
    instead = "estimated on the GPU it was made for" if hardware.gpus else "name one with --gpu"
    return hardware, [f"{why}: {instead}", *notes]
