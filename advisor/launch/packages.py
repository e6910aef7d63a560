"""Whether the packages that training needs are installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from advisor.ground.errors import Fault, MachineNotReady
from advisor.ground.install_line import install_line
from advisor.ground.types import Hardware
from advisor.methods.optimizers import missing, optimizer
from advisor.plan.entries import Entry

NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def refuse_without_trainers(hardware: Hardware) -> None:
    """Raise MachineNotReady with the line to install if the training extra is missing."""
    faults = list(package_faults(hardware, quantized=False))
    if faults:
        raise MachineNotReady(faults=faults)


def package_faults(hardware: Hardware, *, quantized: bool) -> Iterable[Fault]:
    """The packages that training needs and that are not installed."""
    wanted = (*NEEDED, "bitsandbytes") if quantized else NEEDED
    missing = [name for name in wanted if hardware.software.get(name) is None]
    if missing:
        yield Fault(
            what=f"training needs packages that are not installed: {', '.join(missing)}",
            hint=install_line(),
        )


def optimizer_package_faults(todo: Sequence[Entry]) -> list[Fault]:
    """Packages of the stages' optimizers that are not installed."""
    import importlib.metadata

    entries = [optimizer(entry.stage.optimizer) for entry in todo]
    versions: dict[str, str | None] = {}
    for name in {one.library.name for one in entries if one.library is not None}:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return missing(entries, versions)
