"""Whether this machine can run a plan: told before anybody is offered to start it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.types import Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.launch.checks import package_faults
from advisor.launch.device_check import device_faults, device_missing
from advisor.launch.expected import expect_stage
from advisor.launch.hub_model import login
from advisor.launch.model_need import cache_line, gate_fault, model_needs
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.situation.of_plan import device_hardware, plan_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """What stands between a plan and a run on this machine."""

    other_machine: str = ""  # why it takes another one; empty: this one can
    lacking: tuple[Fault, ...] = ()  # what can be mended here; each hint is the line that does
    download_bytes: int | None = 0  # of models, before it starts; None: not known
    downloads: tuple[str, ...] = ()  # each with its size, licence and the room for it, in words


def look_here(plan: Plan, plan_path: Path, hardware: Hardware) -> Here:
    """What stands between the plan and a run on this machine. No network is asked."""
    todo = entries(plan)
    shape = plan_shape(plan, plan_path)
    missing = device_missing(plan, hardware)
    reasons = [missing.what] if missing is not None else list(_too_big(plan, todo, shape, hardware))
    quantized = any(stage.quantization for stage in plan.stages)
    faults = [*package_faults(hardware, quantized=quantized)]
    if not reasons:
        faults += device_faults(plan, hardware)
    models = model_needs(plan, plan_path, todo, shape)
    if login() is None:
        faults += [gate_fault(need) for need in models if need.is_gated and not need.is_cached]
    needs = [need.download_bytes for need in models]
    return Here(
        other_machine=reasons[0] if reasons else "",
        lacking=tuple(faults),
        downloads=tuple(need.line() for need in models if not need.is_cached)
        + tuple(filter(None, [cache_line(models)])),
        download_bytes=None if None in needs else sum(need or 0 for need in needs),
    )


def _too_big(
    plan: Plan, todo: Sequence[Entry], shape: ModelShape | None, hardware: Hardware
) -> Iterator[str]:
    """The stages that are estimated to need more memory than this machine has."""
    used = device_hardware(plan, hardware)
    for entry in todo:
        found = expect_stage(plan, entry, shape, used)
        if found.fits == "too_big" and found.need_bytes and found.limit_bytes:
            yield (
                f"stage {entry.name} needs about {format_gib(found.need_bytes)}, and this machine"
                f" has {format_gib(found.limit_bytes)} for it"
            )
