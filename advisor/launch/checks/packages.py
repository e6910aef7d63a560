"""Whether the packages that training needs are installed."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.ground.errors import Fault, MachineNotReady
from advisor.ground.extras import Checked
from advisor.ground.resources import install_line
from advisor.ground.types import Hardware
from advisor.launch.call import Call
from advisor.methods.optimizers import optimizer
from advisor.plan.model import Stage

PHASE = "machine"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def check(call: Call) -> Checked:
    """Packages of training, of quantisation and of optimizers that are missing."""
    return Checked(lacking=package_faults(call.machine, [entry.stage for entry in call.left]))


def refuse_without_trainers(hardware: Hardware) -> None:
    """Raise MachineNotReady with the line to install if the training extra is missing."""
    if faults := package_faults(hardware):
        raise MachineNotReady(faults=faults)


def package_faults(hardware: Hardware, stages: Sequence[Stage] = ()) -> list[Fault]:
    """The packages that training the stages needs and that are not installed."""
    narrow = any(
        stage.quantization
        or stage.options.get("teacher_quantization")
        or optimizer(stage.optimizer).library
        for stage in stages
    )
    wanted = (*NEEDED, "bitsandbytes") if narrow else NEEDED
    lacking = [name for name in wanted if hardware.software.get(name) is None]
    if not lacking:
        return []
    what = f"training needs packages that are not installed: {', '.join(lacking)}"
    return [Fault(what=what, hint=install_line())]
