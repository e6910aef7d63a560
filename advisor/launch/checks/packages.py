"""Whether the packages that training needs are installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from contextlib import suppress

from advisor.ground.errors import Fault, MachineNotReady
from advisor.ground.extras import Checked
from advisor.ground.resources import install_line
from advisor.ground.types import Hardware
from advisor.launch.call import Call
from advisor.methods.optimizers import missing, optimizer
from advisor.plan.entries import Entry
from advisor.plan.model import Stage

PHASE = "machine"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def check(call: Call) -> Checked:
    """Packages of training, of quantisation and of optimizers that are missing."""
    stages = [entry.stage for entry in call.left]
    return Checked(lacking=[*package_faults(call.machine, stages), *_of_optimizers(call.left)])


def refuse_without_trainers(hardware: Hardware) -> None:
    """Raise MachineNotReady with the line to install if the training extra is missing."""
    if faults := package_faults(hardware):
        raise MachineNotReady(faults=faults)


def package_faults(hardware: Hardware, stages: Sequence[Stage] = ()) -> list[Fault]:
    """The packages that training the stages needs and that are not installed."""
    quantizes = any(
        stage.quantization or stage.options.get("teacher_quantization") for stage in stages
    )
    wanted = (*NEEDED, "bitsandbytes") if quantizes else NEEDED
    lacking = [name for name in wanted if hardware.software.get(name) is None]
    if not lacking:
        return []
    what = f"training needs packages that are not installed: {', '.join(lacking)}"
    return [Fault(what=what, hint=install_line())]


def _of_optimizers(todo: Sequence[Entry]) -> list[Fault]:
    entries = [optimizer(entry.stage.optimizer) for entry in todo]
    versions: dict[str, str | None] = {}
    for name in {one.library.name for one in entries if one.library is not None}:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return missing(entries, versions)
