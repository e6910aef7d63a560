"""Whether this machine can run a plan: told before anybody is offered to start it."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from advisor.ground.errors import Fault
from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.launch.checks.device import device_faults, device_missing
from advisor.launch.checks.packages import package_faults
from advisor.launch.expected import StageEstimator
from advisor.launch.hub import cache_line, login, model_needs
from advisor.plan.entries import entries
from advisor.plan.model import Plan
from advisor.plan.read import PlanOnDisk
from advisor.situation.of_plan import device_hardware, plan_shape


class MachineCheck(Struct, frozen=True, kw_only=True):
    """What stands between a plan and a run on this machine."""

    other_machine: str = ""  # why it takes another one; empty: this one can
    lacking: tuple[Fault, ...] = ()  # what can be mended here; each hint is the line that does
    download_bytes: int | None = 0  # of models, before it starts; None: not known
    downloads: tuple[str, ...] = ()  # each with its size, licence and the room for it, in words


def check_machine(plan: Plan, plan_path: Path, hardware: Hardware) -> MachineCheck:
    """What stands between the plan and a run on this machine. No network is asked."""
    file, todo = PlanOnDisk(plan=plan, path=plan_path), entries(plan)
    shape, used = plan_shape(plan, plan_path), device_hardware(plan, hardware)
    missing = device_missing(plan, hardware)
    if missing is not None:
        reasons = [missing.what]
    else:
        estimator = StageEstimator(plan=plan, shape=shape, hardware=used)
        expected = {entry.name: estimator.expect(entry) for entry in todo}
        reasons = [
            f"stage {name} needs about {format_gib(one.need_bytes)}, and this machine has"
            f" {format_gib(one.limit_bytes)} for it"
            for name, one in expected.items()
            if one.fits == "too_big" and one.need_bytes and one.limit_bytes
        ]
    faults = package_faults(hardware, plan.stages)
    if not reasons:
        faults += device_faults(plan, hardware)
    models = model_needs(file, todo, shape)
    if login() is None:
        faults += [need.gate_fault() for need in models if need.is_gated and not need.is_cached]
    needs = [need.download_bytes for need in models]
    lines = [need.line() for need in models if not need.is_cached]
    return MachineCheck(
        other_machine=reasons[0] if reasons else "",
        lacking=tuple(faults),
        downloads=tuple(filter(None, [*lines, cache_line(models)])),
        download_bytes=None if None in needs else sum(need or 0 for need in needs),
    )
